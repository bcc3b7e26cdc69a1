"""What the sampler finds before a tuning is made: refused, or told in `accepted`, and nothing is made until then."""

import grpc
import pytest

from tests.configs import entry, sampling_config, tuning_config
from tests.gateway.conftest import World, edit, picture, refused
from tests.gateway.upstream_servers import BASE_MODEL
from unitune.errors import InvalidField
from unitune.v1.edit_pb2 import CompareRequest, EditRequest
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import CreateTuningRequest, ListTuningsRequest

UNREAD = "prompt has 41 tokens and the text encoder reads 30: it does not read 'at sunset'"
STRANGE = "the picture is unlike what tiny knows"


def knows_pictures(world: World) -> None:
    """From now on the sampler says that its base model knows some pictures, and that none it is shown is one."""
    world.sampler.base_model = BaseModel()
    world.sampler.base_model.CopyFrom(BASE_MODEL)
    world.sampler.base_model.has_known_pictures = True
    world.sampler.picture_warning = STRANGE


async def test_warnings_of_the_sampler_come_before_the_tuning(world: World) -> None:
    """`accepted` has what the sampler warns of, behind the gateway's own words (N5)."""
    world.sampler.warnings = [UNREAD]

    events = await edit(world, image_data=picture())

    assert list(events[0].accepted.warnings) == [UNREAD]
    assert events[1].HasField("tuning")
    (asked,) = world.sampler.checked
    assert (asked.prompt, asked.rare_tokens, asked.tuning_config.rare_tokens) == ("a dog", "beikkpic", "beikkpic")
    assert not asked.HasField("weights") and not asked.image
    assert asked.config == world.sampler.requests[0].config


async def test_an_edit_of_a_tuning_is_checked_with_its_weights(world: World) -> None:
    """The sampler is asked about the very run that follows (N5)."""
    tuning = await world.tuned()
    world.sampler.warnings = [UNREAD]

    events = await edit(world, tuning=tuning.name)

    assert list(events[0].accepted.warnings) == [UNREAD]
    (asked,) = world.sampler.checked
    assert asked.weights == tuning.weights and asked.tuning_config == tuning.config


@pytest.mark.parametrize("target", ["image", "image_data"])
async def test_a_refused_text_costs_nothing(world: World, target: str) -> None:
    """No tuning is made and no picture kept for a prompt of which nothing is left (N14)."""
    world.sampler.refusal = InvalidField("prompt", "1 characters", "describe the edited picture in words")
    given = {"image": (await world.upload(picture())).name} if target == "image" else {"image_data": picture()}
    stored = world.stored()

    error = await refused(
        world.edits.Edit(EditRequest(prompt="🦊", **given)), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "prompt"
    )

    assert "🦊" not in error.message
    assert world.stored() == stored and world.tuner.requests == []
    assert not (await world.tunings.ListTunings(ListTuningsRequest())).tunings


async def test_a_comparison_is_refused_before_it_begins(world: World) -> None:
    """Compare says the same of a text, by the place where the comparison has it (N14)."""
    world.sampler.refusal = InvalidField("config.negative_prompt", "1 characters", "describe it in words")
    entries = [entry("sdedit", config=sampling_config(negative_prompt="x"))]
    asked = CompareRequest(image_data=picture(), prompt="a dog", methods=entries)

    field = "methods[0].config.negative_prompt"
    await refused(world.edits.Compare(asked), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)


async def test_a_comparison_tells_the_warnings_of_each_method(world: World) -> None:
    """They are in the `accepted` of the method's edit, before its tuning (N5)."""
    world.sampler.warnings = [UNREAD]
    asked = CompareRequest(image_data=picture(), prompt="a dog", methods=[entry("unitune")])

    events = [event.edit async for event in world.edits.Compare(asked, timeout=60) if event.HasField("edit")]

    assert list(events[0].accepted.warnings) == [UNREAD] and events[1].HasField("tuning")


@pytest.mark.parametrize("method", ["unitune", "sdedit"])
async def test_a_strange_picture_is_told_before_the_tuning(world: World, method: str) -> None:
    """The sampler is shown the picture where its base model says which it knows (the end of N25)."""
    knows_pictures(world)

    events = await edit(world, image_data=picture(), config=sampling_config(method=method))

    assert list(events[0].accepted.warnings) == [STRANGE]
    assert world.sampler.checked[-1].image == picture()


async def test_a_picture_that_takes_too_long_to_look_at_is_edited(world: World) -> None:
    """A warning is not worth an error: the texts are checked all the same (the end of N25)."""
    knows_pictures(world)
    world.sampler.picture_s, world.sampler.warnings = 30, [UNREAD]

    events = await edit(world, image_data=picture())

    assert list(events[0].accepted.warnings) == [UNREAD]
    assert events[-1].HasField("done")


async def test_a_new_tuning_has_warnings_of_its_texts(world: World) -> None:
    """CreateTuning answers with what is not read, and keeps it (N5)."""
    world.sampler.tuning_warnings = [UNREAD]

    tuning = await world.tune(method="imagic", prompt="a dog")

    assert list(tuning.warnings) == [UNREAD]
    assert list((await world.until(tuning.name, tuning.STATE_READY)).warnings) == [UNREAD]


async def test_a_tuning_of_words_that_say_nothing_is_refused(world: World) -> None:
    """CreateTuning asks the sampler, whose tokenizer knows, and names the field (N14)."""
    world.sampler.tuning_refusal = InvalidField("config.rare_tokens", "🦊", "use letters")
    image = await world.upload(picture())

    asked = CreateTuningRequest(image=image.name, config=tuning_config(rare_tokens="🦊"))

    status = grpc.StatusCode.INVALID_ARGUMENT
    await refused(world.tunings.CreateTuning(asked), status, "INVALID_FIELD", "config.rare_tokens")


async def test_services_that_are_away_make_a_tuning_wait(world: World) -> None:
    """Its texts are then checked by the tuner when it begins, as ever (N14)."""
    image = await world.upload(picture())
    await world.tuned(picture("navy"))  # the tuner is known
    await world.tuner_server.stop()
    await world.sampler_server.stop()

    tuning = await world.tunings.CreateTuning(CreateTuningRequest(image=image.name))

    assert tuning.state == tuning.STATE_QUEUED and not tuning.warnings
