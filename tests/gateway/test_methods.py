"""Methods at the gateway: whose options are whose, what each needs, and which tuning an edit finds or makes."""

from typing import Any

import grpc
import pytest

from tests.configs import entry, sampling_config, tuning_config
from tests.gateway.conftest import World, picture, refused, sha256
from unitune.errors import InvalidField
from unitune.options import Flat
from unitune.v1.edit_pb2 import CompareRequest, EditEvent, EditRequest, SamplingConfig
from unitune.v1.tuning_pb2 import CreateTuningRequest, DeleteTuningRequest, TuningConfig

INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def edit(world: World, prompt: str, **fields: Any) -> list[EditEvent]:
    """All events of an edit that succeeds."""
    events = [event async for event in world.edits.Edit(EditRequest(prompt=prompt, **fields), timeout=20)]
    assert events[-1].WhichOneof("event") == "done", events[-1]
    return events


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (tuning_config(class_noun="dog"), "config.class_noun", "dog"),
        (tuning_config(method="unitune", num_vectors=2), "config.num_vectors", "2"),
        (tuning_config(prior_weight=0), "config.prior_weight", "0.0"),
        (tuning_config(method="imagic", prompt="a dog", rare_tokens="zqx"), "config.rare_tokens", "zqx"),
        (tuning_config(method="dreambooth", class_noun="dog", prompt="a dog"), "config.prompt", "5 characters"),
        (tuning_config(method="textual_inversion", initial_word="dog", mode="full"), "config.mode", "full"),
        (tuning_config(method="imagic"), "config.prompt", ""),
        (tuning_config(method="imagic", prompt=" "), "config.prompt", "blank"),
        (tuning_config(method="imagic", prompt="a dog", embedding_updates=5001), "config.embedding_updates", "5001"),
        (
            tuning_config(method="imagic", prompt="a dog", embedding_learning_rate=0),
            "config.embedding_learning_rate",
            "0.0",
        ),
        (tuning_config(method="dreambooth"), "config.class_noun", ""),
        (tuning_config(method="dreambooth", class_noun="x" * 65), "config.class_noun", "65 characters"),
        (tuning_config(method="dreambooth", class_noun="d\n"), "config.class_noun", "d\n"),
        (tuning_config(method="dreambooth", class_noun="dog", num_class_images=-1), "config.num_class_images", "-1"),
        (
            tuning_config(method="dreambooth", class_noun="dog", prior_weight=float("nan")),
            "config.prior_weight",
            "nan",
        ),
        (tuning_config(method="null_text"), "config.base_prompt", ""),
        (tuning_config(method="null_text", base_prompt="a cat", prompt="a dog"), "config.prompt", "5 characters"),
        (tuning_config(method="null_text", base_prompt="a cat", batch=1), "config.batch", "1"),
        (tuning_config(method="null_text", base_prompt="a cat", updates=5001), "config.updates", "5001"),
        (tuning_config(method="null_text", base_prompt="a cat", guidance_scale=65), "config.guidance_scale", "65.0"),
        (
            tuning_config(method="null_text", base_prompt="a cat", num_inference_steps=0),
            "config.num_inference_steps",
            "0",
        ),
        (tuning_config(method="imagic", prompt="a dog", base_prompt="a cat"), "config.base_prompt", "5 characters"),
        (tuning_config(method="textual_inversion"), "config.initial_word", ""),
        (tuning_config(method="textual_inversion", initial_word="dog", num_vectors=0), "config.num_vectors", "0"),
        (tuning_config(method="textual_inversion", initial_word="dog", num_vectors=17), "config.num_vectors", "17"),
    ],
)
async def test_bad_options_of_a_method_are_refused(world: World, config: TuningConfig, field: str, value: str) -> None:
    """Another method's option, a missing word, and a number out of range are each refused before a tuning is made."""
    image = await world.upload(picture())

    error = await refused(
        world.tunings.CreateTuning(CreateTuningRequest(image=image.name, config=config)),
        INVALID,
        "INVALID_FIELD",
        field,
    )

    assert value == error.metadata["value"]
    assert [] == world.tuner.requests


async def test_defaults_are_those_of_the_method(world: World) -> None:
    """Each method's own, and none of another's."""
    tuning = await world.tune(method="imagic", prompt="a dog")

    assert (
        tuning_config(
            method="imagic",
            mode="full",
            updates=4,
            batch=1,
            learning_rate=2e-6,
            embedding_updates=3,
            embedding_learning_rate=1e-3,
            prompt="a dog",
        )
        == tuning.config
    )


async def test_the_key_follows_the_value_in_force(world: World) -> None:
    """A left-out value and the base model's own give one tuning; another value, asked for, gives another key."""
    left_out = await world.tuned(method="imagic", prompt="a dog")
    same = await world.tuned(method="imagic", prompt="a dog", learning_rate=2e-6, updates=4, batch=1)
    other = await world.tuned(method="imagic", prompt="a dog", learning_rate=1e-3)

    assert same.name == left_out.name
    assert other.key != left_out.key and other.config.learning_rate == 1e-3


async def test_another_text_is_another_tuning(world: World) -> None:
    """Imagic tunes for one text: a second one on the same image has a key of its own and runs anew (I6)."""
    first = await world.tuned(method="imagic", prompt="a dog")
    same = await world.tuned(method="imagic", prompt="a dog")
    second = await world.tuned(method="imagic", prompt="a cat")

    assert same.name == first.name
    assert second.name != first.name and second.key != first.key
    assert ["a dog", "a cat"] == [request.config.prompt for request in world.tuner.requests]


async def test_an_edit_of_an_image_tunes_for_its_own_prompt(world: World) -> None:
    """With imagic the edit's prompt goes into the tuning, and an edit by another prompt makes another (I6)."""
    config = sampling_config(method="imagic", eta=0.9)
    for prompt in ("a dog", "a cat", "a dog"):
        events = await edit(world, prompt, image_data=picture(), config=config)
        accepted = Flat(events[0].accepted.config)
        assert ("imagic", "euler", 0.9) == (accepted.method, accepted.scheduler, accepted.eta)

    assert ["a dog", "a cat"] == [request.config.prompt for request in world.tuner.requests]
    assert ["", "", ""] == [request.rare_tokens for request in world.sampler.requests]
    assert 2 == len({request.weights.digest for request in world.sampler.requests})


async def test_a_tunings_text_is_the_only_one_it_edits_by(world: World) -> None:
    """An edit with an imagic tuning and another prompt is refused, as is a second prompt in the request (I6)."""
    tuning = await world.tuned(method="imagic", prompt="a dog")

    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a cat"))
    error = await refused(call, INVALID, "INVALID_FIELD", "prompt")
    assert "5 characters" == error.metadata["value"] and "a dog" not in error.message
    call = world.edits.Edit(
        EditRequest(
            image_data=picture(),
            prompt="a cat",
            config=sampling_config(method="imagic"),
            tuning_config=tuning_config(prompt="a cow"),
        )
    )
    await refused(call, INVALID, "INVALID_FIELD", "tuning_config.prompt")
    assert (await edit(world, "a dog", tuning=tuning.name))[0].accepted.config.eta == 0.7


@pytest.mark.parametrize("prompt", ["a dog", "a beikkpic", "a beikkpicdog", "a beikkpic cat", "a beikkpic dogs"])
async def test_dreambooth_needs_token_and_class_noun(world: World, prompt: str) -> None:
    """A prompt without both is refused, for an image before anything is stored or tuned (D7)."""
    config = sampling_config(method="dreambooth")
    request = EditRequest(
        image_data=picture(), prompt=prompt, config=config, tuning_config=tuning_config(class_noun="dog")
    )

    error = await refused(world.edits.Edit(request), INVALID, "INVALID_FIELD", "prompt")

    assert "'beikkpic' and 'dog'" in error.metadata["remedy"]
    assert [] == world.stored() and [] == world.tuner.requests


async def test_dreambooth_prompts_go_as_they_are(world: World) -> None:
    """With token and class noun in it the prompt is sampled as it is, nothing is put before it (D7)."""
    tuning = await world.tuned(method="dreambooth", class_noun="dog")

    await edit(world, "a Beikkpic dog on a beach", tuning=tuning.name)
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog on a beach"))
    await refused(call, INVALID, "INVALID_FIELD", "prompt")

    assert ("a Beikkpic dog on a beach", "") == (
        world.sampler.requests[0].prompt,
        world.sampler.requests[0].rare_tokens,
    )


async def test_further_images_reach_the_tuner_and_the_key(world: World) -> None:
    """In their order, under the tuning's images; another set of them is another tuning."""
    names = [(await world.upload(picture(colour))).name for colour in ("teal", "red", "blue")]
    config = tuning_config(method="dreambooth", class_noun="dog")
    made = [
        await world.tunings.CreateTuning(CreateTuningRequest(image=names[0], images=further, config=config))
        for further in ([], names[1:], names[1:], names[:0:-1])
    ]
    for tuning in made:
        await world.watch(tuning.name)

    assert names[1:] == list(made[1].images)
    assert made[1].name == made[2].name
    assert 3 == len({tuning.key for tuning in made})
    further = [[], [picture("red"), picture("blue")], [picture("blue"), picture("red")]]
    assert [[sha256(file) for file in files] for files in further] == [
        [image.sha256 for image in request.images[1:]] for request in world.tuner.requests
    ]


async def test_too_many_images_are_refused(world: World) -> None:
    """Two for UniTune, six for DreamBooth, one that is not there, and one that is no image's name."""
    image = (await world.upload(picture())).name
    other = image.replace(sha256(picture()), "a" * 64)
    dreambooth = tuning_config(method="dreambooth", class_noun="dog")
    for request, field in (
        (CreateTuningRequest(image=image, images=[image]), "images"),
        (CreateTuningRequest(image=image, images=[image] * 5, config=dreambooth), "images"),
        (CreateTuningRequest(image=image, images=["x"], config=dreambooth), "images[0]"),
    ):
        await refused(world.tunings.CreateTuning(request), INVALID, "INVALID_FIELD", field)
    missing = CreateTuningRequest(image=image, images=[other], config=dreambooth)
    await refused(world.tunings.CreateTuning(missing), grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")


async def test_further_images_go_with_their_last_tuning(world: World) -> None:
    """A further image stays while any tuning was made from it, and is discarded with the last one."""
    names = [(await world.upload(picture(colour))).name for colour in ("teal", "red")]
    config = tuning_config(method="dreambooth", class_noun="dog")
    both = await world.tunings.CreateTuning(CreateTuningRequest(image=names[0], images=names[1:], config=config))
    single = await world.tuned(picture("red"))
    await world.watch(both.name)

    await world.tunings.DeleteTuning(DeleteTuningRequest(name=single.name))
    assert any(sha256(picture("red")) in path for path in world.stored())
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=both.name))

    assert [] == world.stored()


async def test_the_tokenizer_is_asked_before_a_tuning_is_made(world: World) -> None:
    """What the tuner refuses of a placeholder or initial word is refused here, under the request's own field (T4)."""
    world.sampler.tuning_refusal = InvalidField("config.rare_tokens", "dog", "the vocabulary has this word already")
    image = await world.upload(picture())
    config = tuning_config(method="textual_inversion", initial_word="cat", rare_tokens="dog")

    call = world.tunings.CreateTuning(CreateTuningRequest(image=image.name, config=config))
    await refused(call, INVALID, "INVALID_FIELD", "config.rare_tokens")
    call = world.edits.Edit(EditRequest(image=image.name, prompt="a dog", tuning_config=config))
    error = await refused(call, INVALID, "INVALID_FIELD", "tuning_config.rare_tokens")

    assert "dog" == error.metadata["value"]
    assert [] == world.tuner.requests
    assert [("dog", "cat", 1)] * 2 == [
        (one.rare_tokens, one.initial_word, one.num_vectors) for one in world.sampler.checked_tunings
    ]


async def test_textual_inversion_needs_its_placeholder(world: World) -> None:
    """A prompt without it would be edited by words alone."""
    tuning = await world.tuned(method="textual_inversion", initial_word="dog")

    await refused(world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog")), INVALID, "INVALID_FIELD", "prompt")
    await edit(world, "beikkpic on a beach", tuning=tuning.name)

    assert tuning.weights.digest == world.sampler.requests[0].weights.digest


async def test_an_edits_method_is_its_tunings(world: World) -> None:
    """Left out it follows the tuning; another one that tunes is refused, and sdedit uses the image alone."""
    tuning = await world.tuned(method="dreambooth", class_noun="dog")

    events = await edit(world, "a beikkpic dog", tuning=tuning.name)
    assert "dreambooth" == Flat(events[0].accepted.config).method
    for method in ("unitune", "imagic", "textual_inversion"):
        call = world.edits.Edit(
            EditRequest(tuning=tuning.name, prompt="a beikkpic dog", config=sampling_config(method=method))
        )
        error = await refused(call, INVALID, "INVALID_FIELD", "config.method")
        assert method == error.metadata["value"] and "made by dreambooth" in error.metadata["remedy"]
    await edit(world, "a cat", tuning=tuning.name, config=sampling_config(method="sdedit"))
    assert not world.sampler.requests[-1].HasField("weights")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"config": sampling_config(eta=0.5)}, "config.eta"),
        ({"config": sampling_config(method="sdedit", eta=0.5)}, "config.eta"),
        ({"config": sampling_config(method="imagic", eta=2.5)}, "config.eta"),
        ({"config": sampling_config(method="imagic", eta=float("nan"))}, "config.eta"),
        (
            {"config": sampling_config(method="imagic"), "tuning_config": tuning_config(method="dreambooth")},
            "tuning_config.method",
        ),
        (
            {"config": sampling_config(method="imagic"), "tuning_config": tuning_config(class_noun="dog")},
            "tuning_config.class_noun",
        ),
        ({"config": sampling_config(method="dreambooth")}, "tuning_config.class_noun"),
        ({"config": sampling_config(method="textual_inversion")}, "tuning_config.initial_word"),
    ],
)
async def test_bad_edits_of_an_image_are_refused(world: World, fields: dict[str, Any], field: str) -> None:
    """An option of another method, two methods, and a missing word are refused before anything is stored."""
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", **fields))

    await refused(call, INVALID, "INVALID_FIELD", field)

    assert [] == world.stored()


async def test_the_methods_may_be_told_by_the_tuning_config(world: World) -> None:
    """An edit of an image takes the method of its tuning_config."""
    config = tuning_config(method="imagic")

    events = await edit(world, "a dog", image_data=picture(), tuning_config=config)

    assert "imagic" == Flat(events[0].accepted.config).method
    (request,) = world.tuner.requests
    assert ("imagic", "a dog") == (Flat(request.config).method, request.config.prompt)
    assert events[-1].done.tuning == request.name


@pytest.mark.parametrize("option", ["automatic", "clip_filter"])
async def test_every_method_takes_the_gate(world: World, option: str) -> None:
    """It reaches the sampler with the method's own defaults; automatic leaves strength and guidance to the gate."""
    for method, prompt, fields in (
        ("imagic", "a dog", {"prompt": "a dog"}),
        ("dreambooth", "a beikkpic dog", {"class_noun": "dog"}),
        ("textual_inversion", "a beikkpic at night", {"initial_word": "dog"}),
    ):
        tuning = await world.tuned(method=method, **fields)

        await edit(world, prompt, tuning=tuning.name, config=sampling_config(**{option: True}))

        config = Flat(world.sampler.requests[-1].config)
        assert method == config.method and getattr(config, option)
        assert config.has("strength") == config.has("guidance_scale") == (option == "clip_filter")
        assert config.has("eta") == (method == "imagic")


@pytest.mark.parametrize("config", [sampling_config(automatic=True), sampling_config(clip_filter=True)])
async def test_a_gate_needs_more_than_the_tunings_words(world: World, config: SamplingConfig) -> None:
    """It reads the prompt without them, so that a placeholder alone is refused, before anything is stored or tuned."""
    config.method = SamplingConfig.METHOD_TEXTUAL_INVERSION
    request = EditRequest(
        image_data=picture(), prompt=" beikkpic ", config=config, tuning_config=tuning_config(initial_word="dog")
    )

    error = await refused(world.edits.Edit(request), INVALID, "INVALID_FIELD", "prompt")

    assert "'beikkpic'" in error.metadata["remedy"]
    assert [] == world.stored() and [] == world.tuner.requests


def null_text(**options: Any) -> SamplingConfig:
    """A config of Prompt-to-Prompt with null-text inversion."""
    return sampling_config(
        **{"method": "prompt_to_prompt", "base_prompt": "a cat", "inversion": "null_text", **options}
    )


async def test_null_text_makes_the_tuning_that_the_edit_needs(world: World) -> None:
    """For the edit's own base prompt, steps and guidance, unset ones being Prompt-to-Prompt's; found again for another
    prompt, and another one for another guidance; the sampler gets its weights."""
    asked = tuning_config(updates=2)
    first = await edit(world, "a dog", image_data=picture(), config=null_text(), tuning_config=asked)
    again = await edit(world, "a cow", image_data=picture(), config=null_text(), tuning_config=asked)
    other = await edit(world, "a dog", image_data=picture(), config=null_text(guidance_scale=3))

    assert {"tuning"} < {event.WhichOneof("event") for event in first}
    assert first[-1].done.tuning == again[-1].done.tuning != other[-1].done.tuning
    made, more = (request.config for request in world.tuner.requests)
    assert (
        tuning_config(
            method="null_text",
            updates=2,
            learning_rate=0.01,
            base_prompt="a cat",
            num_inference_steps=10,
            guidance_scale=5,
        )
        == made
    )
    assert (3, 3) == (more.updates, more.guidance_scale)
    sampled = world.sampler.requests[0]
    config = Flat(sampled.config)
    assert sampled.weights.key
    assert (10, 5, "null_text") == (config.num_inference_steps, config.guidance_scale, config.inversion)
    assert "" == sampled.rare_tokens and sampled.config == first[0].accepted.config


async def test_an_edit_with_null_texts_tuning_takes_its_settings(world: World) -> None:
    """All that it leaves out; what it says otherwise is refused, with what the tuning is for; another inversion and
    SDEdit use the picture alone, as with every tuning."""
    bound = {"base_prompt": "a cat", "num_inference_steps": 7, "guidance_scale": 4.0}
    tuning = await world.tuned(method="null_text", **bound)
    for config in (sampling_config(), null_text(), null_text(**bound), sampling_config(inversion="null_text")):
        accepted = (await edit(world, "a dog", tuning=tuning.name, config=config))[0].accepted.config
        assert accepted == world.sampler.requests[-1].config
        assert bound == {name: getattr(accepted, name) for name in bound}
        assert ("prompt_to_prompt", "null_text") == (Flat(accepted).method, Flat(accepted).inversion)
        assert tuning.weights.digest == world.sampler.requests[-1].weights.digest

    for change, value in (
        ({"num_inference_steps": 8}, "8"),
        ({"guidance_scale": 0}, "0.0"),
        ({"base_prompt": "a dog"}, "5 characters"),
    ):
        (name,) = change
        call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog", config=null_text(**change)))
        error = await refused(call, INVALID, "INVALID_FIELD", f"config.{name}")
        assert value == error.metadata["value"] and tuning.name in error.metadata["remedy"]

    for config in (sampling_config(method="sdedit"), null_text(inversion="ddim")):
        await edit(world, "a dog", tuning=tuning.name, config=config)
        assert not world.sampler.requests[-1].HasField("weights")


async def test_null_text_and_other_methods_refuse_each_others_tunings(world: World) -> None:
    """Before anything is sampled, with the method that made them and what to do."""
    nulls = await world.tuned(method="null_text", base_prompt="a cat")
    for other, config, field in (
        (
            await world.tuned(method="textual_inversion", initial_word="dog"),
            null_text(),
            "config.prompt_to_prompt.inversion",
        ),
        (await world.tuned(), null_text(), "config.prompt_to_prompt.inversion"),
        (nulls, sampling_config(method="unitune"), "config.method"),
        (nulls, sampling_config(method="textual_inversion"), "config.method"),
    ):
        call = world.edits.Edit(EditRequest(tuning=other.name, prompt="a beikkpic dog", config=config))
        error = await refused(call, INVALID, "INVALID_FIELD", field)
        assert f"made by {Flat(other.config).method}" in error.metadata["remedy"]
    assert not world.sampler.requests


@pytest.mark.parametrize(
    ("config", "tuning_config", "field", "value"),
    [
        (null_text(negative_prompt="snow"), None, "config.negative_prompt", "4 characters"),
        (null_text(automatic=True), None, "config.automatic", "true"),
        (null_text(only_masked=True), None, "config.mask.only_masked", "true"),
        (null_text(guidance_scale=1), None, "config.guidance_scale", "1.0"),
        (null_text(base_prompt=""), None, "config.base_prompt", "unset"),
        (null_text(), tuning_config(updates=5001), "tuning_config.updates", "5001"),
        (null_text(), tuning_config(seed=1), "tuning_config.seed", "1"),
        (null_text(), tuning_config(guidance_scale=6), "tuning_config.guidance_scale", "6.0"),
        (null_text(), tuning_config(base_prompt="a dog"), "tuning_config.base_prompt", "5 characters"),
        (null_text(), tuning_config(method="imagic"), "tuning_config.method", "imagic"),
        (sampling_config(), tuning_config(method="null_text", base_prompt="a"), "tuning_config.method", "null_text"),
        (null_text(inversion="ddim"), tuning_config(updates=2), "tuning_config", "set"),
        (
            sampling_config(method="sdedit", inversion="null_text"),
            None,
            "config.prompt_to_prompt.inversion",
            "null_text",
        ),
        (sampling_config(inversion="null_text"), None, "config.prompt_to_prompt.inversion", "null_text"),
    ],
)
async def test_bad_null_text_is_refused(
    world: World, config: SamplingConfig, tuning_config: TuningConfig | None, field: str, value: str
) -> None:
    """Updates out of range, options of other methods or that its embeddings cannot serve, before anything is stored."""
    request = EditRequest(image_data=picture(), prompt="a dog", config=config, tuning_config=tuning_config)

    error = await refused(world.edits.Edit(request), INVALID, "INVALID_FIELD", field)

    assert value == error.metadata["value"] and error.metadata["remedy"]
    assert [] == world.stored()


async def test_a_samplers_warning_comes_before_the_pictures(world: World) -> None:
    """An edit that succeeds tells of it, by itself and in a comparison."""
    world.sampler.warning = "local blend keeps nothing"
    events = await edit(world, "a dog", image_data=picture(), config=sampling_config(method="sdedit"))

    assert ["warning", "image", "done"] == [event.WhichOneof("event") for event in events][-3:]
    assert "local blend keeps nothing" == events[-3].warning.text
    request = CompareRequest(image_data=picture(), prompt="a dog", methods=[entry("sdedit")])
    edits = [event.edit async for event in world.edits.Compare(request) if event.HasField("edit")]
    assert "local blend keeps nothing" in [event.warning.text for event in edits]
