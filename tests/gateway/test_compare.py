"""A comparison: one method after the other, each with its result, and one last event."""

import asyncio
import os
from typing import Any

import grpc
import pytest

from tests.configs import entry, sampling_config, tuning_config
from tests.gateway.conftest import World, eventually, picture, refused
from tests.gateway.upstream_servers import BASE_MODEL, serve_tuner
from unitune.errors import DataLoss, InvalidField, from_status
from unitune.image_pieces import Assembly
from unitune.options import Flat
from unitune.v1.edit_pb2 import CancelEditRequest, CompareEvent, CompareRequest, Edit, GetEditRequest
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import GetTuningRequest, Tuning
from unitune_client import AsyncClient, CompareDone, CompareResult

INVALID = grpc.StatusCode.INVALID_ARGUMENT
Entry = CompareRequest.Entry


def compare(world: World, *methods: str | Entry, prompt: str = "a dog on a beach", **fields: Any) -> Any:
    """The call of a comparison; a method is an entry, or its name."""
    if "image" not in fields:
        fields.setdefault("image_data", picture())
    entries = [entry(one) if isinstance(one, str) else one for one in methods]
    return world.edits.Compare(CompareRequest(prompt=prompt, methods=entries, **fields), timeout=20)


async def events_of(call: Any) -> list[CompareEvent]:
    """All events that are still to come."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


def kinds(events: list[CompareEvent]) -> list[str]:
    """What happened, as `method:event`, without repetitions in a row."""
    names = []
    for event in events:
        name = event.WhichOneof("event") or ""
        name = event.edit.WhichOneof("event") or "" if name == "edit" else name
        names.append(f"{Flat(event).method}:{name}" if event.method else name)
    return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


def results(events: list[CompareEvent]) -> dict[str, CompareEvent.Result]:
    """The result of each method."""
    return {Flat(event).method: event.result for event in events if event.HasField("result")}


async def test_each_method_has_its_turn(world: World) -> None:
    """All events of the first edit, its result, those of the second, its result, and one last event; all numbered."""
    events = await events_of(compare(world, "unitune", "sdedit", seeds=[3, 9]))

    assert kinds(events) == [
        "accepted",
        *(f"unitune:{kind}" for kind in ("accepted", "tuning", "loading", "step", "result")),
        *(f"sdedit:{kind}" for kind in ("accepted", "loading", "step", "result")),
        "done",
    ]
    assert Flat(events[0].accepted).methods == ["unitune", "sdedit"]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert all(event.HasField("create_time") for event in events)
    assert events[-1].done.total_s >= sum(one.edit_s for one in results(events).values())
    for result in results(events).values():
        assert [image.seed for image in result.images] == [3, 9] and not result.HasField("error")
        assert result.edit_s > 0 and result.timings.denoise_s == 1.5


async def test_a_result_tells_what_its_tuning_took_and_left(world: World) -> None:
    """Seconds and bytes are the tuning's own, also when it was there before; without a tuning both are 0."""
    first, again = [results(await events_of(compare(world, "unitune", "sdedit"))) for _ in range(2)]

    tuning = await world.tunings.GetTuning(GetTuningRequest(name=first["unitune"].tuning))
    seconds = (tuning.end_time.ToMicroseconds() - tuning.start_time.ToMicroseconds()) / 1e6
    for result in (first["unitune"], again["unitune"]):
        assert (result.tuning, result.size_bytes) == (tuning.name, tuning.weights.size_bytes)
        assert result.size_bytes > 0 and result.tuning_s == pytest.approx(seconds) and seconds > 0
    assert first["unitune"].timings.tune_s > 0 == again["unitune"].timings.tune_s
    assert (first["sdedit"].tuning, first["sdedit"].tuning_s, first["sdedit"].size_bytes) == ("", 0, 0)
    assert len(world.tuner.requests) == 1


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        ({}, ["unitune", "imagic", "sdedit"]),
        ({"class_noun": "dog"}, ["unitune", "imagic", "dreambooth", "sdedit"]),
        (
            {"class_noun": "dog", "initial_word": "beach"},
            ["unitune", "imagic", "dreambooth", "textual_inversion", "sdedit"],
        ),
        ({"base_prompt": "a cat on a beach"}, ["unitune", "imagic", "sdedit", "prompt_to_prompt"]),
    ],
)
async def test_without_names_every_method_runs_that_can(
    world: World, words: dict[str, str], methods: list[str]
) -> None:
    """Class noun, initial word and base prompt bring in the methods that need them."""
    events = await events_of(compare(world, **words))

    assert Flat(events[0].accepted).methods == methods == list(results(events))
    assert not any(result.HasField("error") for result in results(events).values())


async def test_each_method_gets_the_prompt_with_the_words_that_it_binds(world: World) -> None:
    """DreamBooth's before the class noun, the placeholder instead of the initial word, and the others' plain (D7)."""
    events = await events_of(compare(world, class_noun="dog", initial_word="dog", prompt="A Dog on a beach, dog"))

    wanted = {
        "unitune": "A Dog on a beach, dog",
        "imagic": "A Dog on a beach, dog",
        "dreambooth": "A beikkpic Dog on a beach, dog",
        "textual_inversion": "A beikkpic on a beach, dog",
        "sdedit": "A Dog on a beach, dog",
    }
    assert {method: result.prompt for method, result in results(events).items()} == wanted
    assert [request.prompt for request in world.sampler.requests] == list(wanted.values())
    assert [request.rare_tokens for request in world.sampler.requests] == ["beikkpic", "", "", "", ""]
    assert [request.config.prompt for request in world.tuner.requests if Flat(request.config).method == "imagic"] == [
        "A Dog on a beach, dog"
    ]


async def test_settings_of_an_entry_are_its_methods_own(world: World) -> None:
    """They reach that method's tuning and sampling, and no other's."""
    own = entry(
        "unitune",
        tuning_config=tuning_config(updates=2, rare_tokens="zqx"),
        config=sampling_config(strength=0.5, scheduler="euler"),
    )

    await events_of(compare(world, "sdedit", own))

    (tuned,) = world.tuner.requests
    assert (tuned.config.updates, tuned.config.rare_tokens) == (2, "zqx")
    configs = [Flat(request.config) for request in world.sampler.requests]
    assert [(one.method, one.strength, one.scheduler) for one in configs] == [
        ("sdedit", 0.75, "ddim"),
        ("unitune", 0.5, "euler"),
    ]


async def test_an_entry_may_be_fast_where_the_base_model_says_how(world: World) -> None:
    """Its steps are that method's alone; without such it is refused in the entry's own field, and nothing runs."""
    fast = entry("unitune", config=sampling_config(fast=True))
    await refused(compare(world, "sdedit", fast), INVALID, "INVALID_FIELD", "methods[1].config.fast")
    assert not world.tuner.requests and not world.sampler.requests

    world.sampler.base_model = BaseModel(name="tiny", digest=BASE_MODEL.digest, fast_steps=4)
    await events_of(compare(world, "sdedit", fast))

    assert [request.config.num_inference_steps for request in world.sampler.requests] == [20, 4]


async def test_pictures_are_scored_where_there_is_a_gate(world: World) -> None:
    """By the gate without other seeds, unless an entry says otherwise; without a gate nothing is asked of one."""
    automatic = entry("unitune", config=sampling_config(automatic=True))
    own = entry("imagic", config=sampling_config(clip_filter=True, resamples=2))
    await events_of(compare(world, "sdedit", automatic, own))
    world.sampler.base_model = BaseModel(name="tiny", digest=BASE_MODEL.digest)
    await events_of(compare(world, "sdedit"))

    configs = [Flat(request.config) for request in world.sampler.requests]
    assert [(one.clip_filter, one.automatic, one.resamples) for one in configs] == [
        (True, False, 0),
        (False, True, 0),
        (True, False, 2),
        (False, False, 0),
    ]
    assert configs[0].has("resamples") and not configs[3].has("resamples")


async def test_a_prompt_of_nothing_but_the_tunings_words_is_not_scored(world: World) -> None:
    """What the gate could not read is edited all the same, unless the gate was asked for, which is refused."""
    gate = entry("textual_inversion", config=sampling_config(clip_filter=True))
    call = compare(world, gate, prompt="dog", initial_word="dog")
    await refused(call, INVALID, "INVALID_FIELD", "prompt")

    events = await events_of(compare(world, "textual_inversion", "sdedit", prompt="dog", initial_word="dog"))

    assert not any(result.HasField("error") for result in results(events).values())
    assert [(request.prompt, Flat(request.config).clip_filter) for request in world.sampler.requests] == [
        ("beikkpic", False),
        ("dog", True),
    ]


async def test_one_methods_failure_is_its_result(world: World) -> None:
    """A tuning that diverges ends its method's turn; the others have theirs, and the comparison succeeds."""
    world.tuner.failure = DataLoss("the loss was not finite at update 3", reason="TUNING_DIVERGED")

    events = await events_of(compare(world, "unitune", "sdedit"))

    failed, done = results(events)["unitune"], results(events)["sdedit"]
    assert from_status(failed.error).reason == "TUNING_DIVERGED" and not failed.images
    assert failed.prompt == "a dog on a beach"
    assert len(done.images) == 1 and not done.HasField("error")
    assert kinds(events)[-1] == "done"
    assert not any(event.edit.WhichOneof("event") in {"done", "failed", "cancelled", "image"} for event in events)


async def test_a_tuner_that_is_away_fails_those_that_need_it(world: World) -> None:
    """What Edit would refuse later is the method's result as well; a bug of the sampler leaks nothing."""
    await world.tuned(picture("red"))
    address = world.tuner_server.address
    await world.tuner_server.stop()
    events = await events_of(compare(world, "unitune", "sdedit", image_data=picture("blue")))
    world.tuner_server = await serve_tuner(world.tuner, address)
    world.sampler.failure = KeyError("/secret/path")
    broken = await events_of(compare(world, "sdedit"))

    assert from_status(results(events)["unitune"].error).reason == "BACKEND_DOWN"
    assert not results(events)["sdedit"].HasField("error")
    assert from_status(results(broken)["sdedit"].error).reason == "INTERNAL"
    assert kinds(broken)[-1] == "done" and "secret" not in str(broken)


async def test_pictures_that_do_not_fit_one_message_come_in_pieces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result larger than a message is followed by the rest of its pictures, all of which are whole (N3)."""
    whole = results(await events_of(compare(world, "unitune", "sdedit", seeds=[1, 2, 3, 4, 5, 6, 7])))
    monkeypatch.setattr("gateway.validation.ANSWER_BYTES", 600)

    events = await events_of(compare(world, "unitune", "sdedit", seeds=[1, 2, 3, 4, 5, 6, 7]))

    assembly, found = Assembly(), {}
    for event in events:
        if event.HasField("result"):
            assert event.result.ByteSize() <= 1200  # names and numbers have no limit of their own
            assembly.begin(event.result.images)
        elif event.HasField("image_part"):
            assembly.add(event.image_part)
        if event.WhichOneof("event") in ("result", "image_part") and assembly.is_whole:
            found[Flat(event).method] = [image.png for image in assembly.take()]
    assert found == {method: [image.png for image in result.images] for method, result in whole.items()}
    assert sum(event.HasField("image_part") for event in events) >= 14 and kinds(events)[-1] == "done"


@pytest.mark.parametrize("is_stored", [True, False])
async def test_the_sdk_puts_a_large_comparison_together(world: World, is_stored: bool) -> None:
    """Two pictures of a method, together larger than any message, are whole in its result, though the store may take
    none of them (N3)."""
    if not is_stored:
        (world.folder / "store" / "edits").write_bytes(b"a file where a folder must be")
    world.sampler.png = os.urandom(9 << 20)

    async with AsyncClient(world.server.address) as client:
        methods = ["sdedit", "unitune"]
        stream = client.compare(picture(), "a dog", methods, seeds=[1, 2], omit_metadata=True)
        seen = [event async for event in stream]

    found = [event for event in seen if isinstance(event, CompareResult)]
    assert [result.method for result in found] == ["sdedit", "unitune"]
    for result in found:
        assert result.error is None and [image.seed for image in result.images] == [1, 2]
        assert [image.png for image in result.images] == [world.sampler.png] * 2
    assert isinstance(seen[-1], CompareDone)


async def test_closing_the_stream_stops_the_edit_that_runs_and_begins_no_other(world: World) -> None:
    """The sampler stops before its next step, the edit is CANCELLED, and the second method never begins."""
    world.sampler.step_s = 0.2
    call = compare(world, "sdedit", "unitune")
    while not (event := await call.read()).edit.HasField("accepted"):
        pass
    while not (await call.read()).edit.HasField("step"):
        pass
    call.cancel()
    await asyncio.wait_for(world.sampler.stopped.wait(), 10)
    name = event.edit.accepted.edit

    async def cancelled() -> bool:
        return (await world.edits.GetEdit(GetEditRequest(name=name))).state == Edit.STATE_CANCELLED

    await eventually(cancelled)
    assert world.sampler.steps_done < 15
    assert len(world.sampler.requests) == 1 and not world.tuner.requests


async def test_closing_the_stream_leaves_the_tuning_it_began(world: World) -> None:
    """The tuning that was waited for goes on, and serves the next comparison."""
    world.tuner.go_on.clear()
    call = compare(world, "unitune", "imagic")
    while not (await call.read()).edit.tuning.HasField("progress"):
        pass
    call.cancel()
    world.tuner.go_on.set()

    await world.until(world.tuner.requests[0].name, Tuning.STATE_READY)
    assert len(world.tuner.requests) == 1 and not world.sampler.requests
    assert results(await events_of(compare(world, "unitune")))["unitune"].timings.tune_s == 0


async def test_cancel_edit_ends_one_turn(world: World) -> None:
    """The edit that it names has CANCELLED as its result, and the next method begins."""
    world.sampler.step_s = 0.1
    call = compare(world, "sdedit", "unitune")
    while not (event := await call.read()).edit.HasField("accepted"):
        pass
    while not (await call.read()).edit.HasField("step"):
        pass
    await world.edits.CancelEdit(CancelEditRequest(name=event.edit.accepted.edit))
    world.sampler.step_s = 0
    events = await events_of(call)

    assert from_status(results(events)["sdedit"].error).reason == "EDIT_CANCELLED"
    assert not results(events)["unitune"].HasField("error") and kinds(events)[-1] == "done"


async def test_a_silent_comparison_has_heartbeats(world: World) -> None:
    """They have no number and no method."""
    await world.close()
    world.config = world.config.__class__(**{**world.config.__dict__, "heartbeat_s": 0.05})
    await world.open()
    world.tuner.go_on.clear()
    call = compare(world, "unitune")
    seen: list[CompareEvent] = []
    while len([event for event in seen if event.HasField("heartbeat")]) < 3:
        seen.append(await call.read())
    world.tuner.go_on.set()
    seen += await events_of(call)

    assert all((event.sequence, event.method) == (0, 0) for event in seen if event.HasField("heartbeat"))
    numbers = [event.sequence for event in seen if event.sequence]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not any(event.edit.HasField("heartbeat") for event in seen)


async def test_a_drain_ends_a_comparison(world: World) -> None:
    """The method that waits for its tuning has no result, no other begins, and the stream says DRAINING, so that both
    are asked for again elsewhere."""
    world.tuner.go_on.clear()
    call = compare(world, "unitune", "sdedit")
    while not (await call.read()).edit.HasField("tuning"):
        pass
    assert world.gateway is not None
    await world.gateway.drain()
    events = await asyncio.wait_for(events_of(call), 20)
    world.tuner.go_on.set()

    assert not results(events)
    assert kinds(events)[-1] == "failed" and from_status(events[-1].failed).reason == "DRAINING"
    assert not world.sampler.requests and not world.tuner.stopped


@pytest.mark.parametrize(
    ("methods", "fields", "field", "value"),
    [
        ([Entry(method=99)], {}, "methods[0].method", "99"),
        (["sdedit", ""], {}, "methods[1].method", ""),
        (["sdedit", "unitune", "sdedit"], {}, "methods[2].method", "sdedit"),
        (["unitune"], {"prompt": " "}, "prompt", "blank"),
        (["sdedit"], {"seeds": [1, -1]}, "seeds[1]", "-1"),
        (["sdedit"], {"parent": "x"}, "parent", "x"),
        (["sdedit"], {"image_data": b"GIF89a"}, "image_data", None),
        (["sdedit"], {"image": "x"}, "image", "x"),
        (["sdedit", "dreambooth"], {}, "class_noun", ""),
        (["textual_inversion"], {}, "initial_word", ""),
        (["sdedit"], {"class_noun": "dog"}, "class_noun", "dog"),
        (["sdedit"], {"base_prompt": "a cat"}, "base_prompt", "5 characters"),
        (["prompt_to_prompt"], {}, "methods[0].config.base_prompt", "unset"),
        (["prompt_to_prompt"], {"base_prompt": " "}, "base_prompt", "blank"),
        (
            [entry("prompt_to_prompt", config=sampling_config(base_prompt="a cow"))],
            {"base_prompt": "a cat"},
            "methods[0].config.base_prompt",
            "5 characters",
        ),
        (["dreambooth"], {"class_noun": "dog", "initial_word": "dog"}, "initial_word", "dog"),
        (["dreambooth"], {"class_noun": "x" * 65}, "class_noun", "65 characters"),
        ([], {"class_noun": "cat"}, "prompt", "16 characters"),
        ([], {"initial_word": "cat"}, "prompt", "16 characters"),
        ([], {"class_noun": "dog", "prompt": f"a dog {'x' * 1994}"}, "prompt", "2009 characters"),
        (
            [entry("dreambooth", tuning_config=tuning_config(class_noun="cat"))],
            {"class_noun": "dog"},
            "methods[0].tuning_config.class_noun",
            "cat",
        ),
        (
            [entry("dreambooth", tuning_config=tuning_config(class_noun="d\n"))],
            {},
            "methods[0].tuning_config.class_noun",
            "d\n",
        ),
        (
            ["sdedit", entry("unitune", config=sampling_config(strength=2))],
            {},
            "methods[1].config.strength",
            "2.0",
        ),
        (
            [entry("unitune", tuning_config=tuning_config(updates=5001))],
            {},
            "methods[0].tuning_config.updates",
            "5001",
        ),
        ([entry("sdedit", tuning_config=tuning_config(updates=5))], {}, "methods[0].tuning_config", "set"),
        (
            [entry("sdedit", config=sampling_config(method="imagic"))],
            {},
            "methods[0].config.method",
            "imagic",
        ),
        (
            [entry("imagic", tuning_config=tuning_config(prompt="a cat"))],
            {},
            "methods[0].tuning_config.prompt",
            "5 characters",
        ),
        ([entry("unitune", config=sampling_config(eta=0.5))], {}, "methods[0].config.eta", "0.5"),
        (
            [entry("unitune", config=sampling_config(mask_source="given"))],
            {},
            "methods[0].config.mask.source",
            "given",
        ),
    ],
)
async def test_bad_comparisons_are_refused_before_the_first_event(
    world: World, methods: list[str | Entry], fields: dict[str, Any], field: str, value: str | None
) -> None:
    """By field, value and remedy, of whichever method, with nothing stored, tuned or sampled."""
    reason = "INVALID_FIELD" if field != "image_data" else "IMAGE_UNDECODABLE"

    error = await refused(compare(world, *methods, **fields), INVALID, reason, field)

    assert value is None or error.metadata["value"] == value
    assert [] == world.stored() and [] == world.tuner.requests and [] == world.sampler.requests


async def test_a_picture_is_needed_and_must_be_there(world: World) -> None:
    """Neither picture is a refusal, as is one that was never uploaded."""
    await refused(world.edits.Compare(CompareRequest(prompt="a dog")), INVALID, "INVALID_FIELD", "target")
    missing = f"tenants/default/images/{'a' * 64}"
    await refused(compare(world, "sdedit", image=missing), grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
    image = await world.upload(picture())
    assert kinds(await events_of(compare(world, "sdedit", image=image.name)))[-1] == "done"


async def test_the_tokenizers_refusal_names_the_requests_word(world: World) -> None:
    """What the tuner's tokenizer cannot take as initial word is refused under that name (T4)."""
    world.sampler.tuning_refusal = InvalidField("config.initial_word", "dog", "it must be one token")

    error = await refused(compare(world, initial_word="dog"), INVALID, "INVALID_FIELD", "initial_word")

    assert error.metadata["value"] == "dog" and world.stored() == []
