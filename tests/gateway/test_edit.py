"""An edit, from the request to its one last event."""

import asyncio
import io
import os
from typing import Any

import grpc
import pytest
from PIL import Image

from gateway.edit import StepThrottle
from gateway.edit_plan import warnings_of
from tests.configs import sampling_config, tuning_config
from tests.gateway.conftest import World, edit, eventually, picture, refused
from tests.gateway.upstream_servers import BASE_MODEL, serve_sampler, serve_tuner
from tests.picture_files import file_of
from unitune.errors import DataLoss, from_status
from unitune.image_pieces import Assembly
from unitune.options import SAMPLING, Flat
from unitune.png_text import HEADER_BYTES
from unitune.v1.edit_pb2 import CancelEditRequest, Edit, EditEvent, EditRequest, GetEditRequest, SamplingConfig
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import DeleteTuningRequest, GetTuningRequest, Tuning, WatchTuningRequest

TERMINAL = {"done", "failed", "cancelled"}


def kinds(events: list[EditEvent]) -> list[str]:
    """What happened, without repetitions in a row."""
    names = [event.WhichOneof("event") or "" for event in events]
    return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


async def rest(call: Any) -> list[EditEvent]:
    """The events that are still to come, for a call whose first ones were read one by one."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def test_an_image_is_tuned_then_edited(world: World) -> None:
    """With a picture nobody has tuned, all events come in the promised order, numbered, with one last event."""
    events = await edit(world, image_data=picture(), seeds=[3, 9])
    assert kinds(events) == ["accepted", "tuning", "loading", "step", "image", "done"]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert all(event.HasField("create_time") for event in events)
    assert [event.WhichOneof("event") in TERMINAL for event in events] == [False] * (len(events) - 1) + [True]
    tuning_events = [event.tuning.WhichOneof("event") for event in events if event.HasField("tuning")]
    assert tuning_events[:2] == ["queued", "started"] and tuning_events[-1] == "ready"
    assert [event.image.seed for event in events if event.HasField("image")] == [3, 9]
    done = events[-1].done
    assert done.timings.tune_s > 0 and done.timings.total_s >= done.timings.tune_s and done.timings.denoise_s == 1.5
    tuning = await world.tunings.GetTuning(GetTuningRequest(name=done.tuning))
    assert tuning.state == Tuning.STATE_READY


async def test_accepted_tells_all_defaults(world: World) -> None:
    """`accepted` carries the sampler's defaults, the caller's own values over them, and whole steps."""
    events = await edit(world, image_data=picture(), config=sampling_config(strength=0.68, scheduler="euler"))
    accepted = events[0].accepted
    assert accepted.config == sampling_config(
        method="unitune",
        scheduler="euler",
        num_inference_steps=20,
        guidance_scale=7.5,
        strength=0.68,
        interpolation=0.25,
        mask_source="difference",
        prompt_guidance_scale=0,
        unconditional_model="tuned",
        base_mixture=0,
    )
    assert accepted.effective_strength == 13 / 20
    assert list(accepted.seeds) == [0] and not accepted.warnings
    assert accepted.edit.startswith("tenants/default/edits/")
    request = world.sampler.requests[0]
    assert request.config == accepted.config and request.rare_tokens == "beikkpic" and request.prompt == "a dog"
    assert request.image == picture() and request.weights.key == world.tuner.requests[0].key


async def test_a_fast_edit_takes_the_base_models_fast_steps(world: World) -> None:
    """In place of the number of steps, on the weights of any other edit; `accepted` tells the number, and can be sent
    again. With a tuning of another method it is refused."""
    world.sampler.base_model = BaseModel(name="tiny", digest=BASE_MODEL.digest, fast_steps=4)
    usual = await edit(world, image_data=picture())

    events = await edit(world, image_data=picture(), config=sampling_config(fast=True))
    again = await edit(world, tuning=usual[-1].done.tuning, config=events[0].accepted.config)

    wanted = sampling_config()
    wanted.CopyFrom(usual[0].accepted.config)
    wanted.num_inference_steps = 4
    assert wanted == events[0].accepted.config == again[0].accepted.config == world.sampler.requests[1].config
    assert events[0].accepted.effective_strength == 0.75 and events[-2].HasField("image")
    last = [event.step for event in events if event.HasField("step")][-1]
    assert (last.index, last.total) == (2, 3)
    assert len(world.tuner.requests) == 1

    nulls = await world.tuned(method="null_text", base_prompt="a cat")
    call = world.edits.Edit(EditRequest(tuning=nulls.name, prompt="a dog", config=sampling_config(fast=True)))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "config.fast")
    assert "not of prompt_to_prompt" in error.metadata["remedy"]


async def test_a_fast_edit_has_the_base_models_fast_lora(world: World) -> None:
    """With its scheduler, guidance and spacing, unless the request says them, and without the preset's own interval;
    `accepted` tells it, and can be sent again. It is refused beside what needs the plain model."""
    few = sampling_config(scheduler="euler", num_inference_steps=2, guidance_scale=1.0, timestep_spacing="trailing")
    lora = {"fast_lora": "lightning", "fast_lora_defaults": few}
    world.sampler.base_model = BaseModel(name="tiny", digest=BASE_MODEL.digest, fast_steps=2, **lora)
    usual = await edit(world, image_data=picture())

    events = await edit(world, image_data=picture(), config=sampling_config(fast=True))
    again = await edit(world, tuning=usual[-1].done.tuning, config=events[0].accepted.config)
    chosen = sampling_config(fast_lora=True, num_inference_steps=6, guidance_scale=2.0)
    own = (await edit(world, image_data=picture(), config=chosen))[0].accepted.config

    told = Flat(events[0].accepted.config)
    assert (True, False, "euler", 2, 1.0, "trailing") == tuple(
        getattr(told, name)
        for name in ("fast_lora", "fast", "scheduler", "num_inference_steps", "guidance_scale", "timestep_spacing")
    )
    assert events[0].accepted.config == again[0].accepted.config == world.sampler.requests[1].config
    assert ("euler", 6, 2.0) == (Flat(own).scheduler, own.num_inference_steps, own.guidance_scale)
    assert not usual[0].accepted.config.fast_lora and len(world.tuner.requests) == 1
    for refused_field, asked in (
        ("config.fast", {"fast": True, "base_mixture": 0.5}),
        ("config.fast_lora", {"fast_lora": True, "base_mixture": 0.5}),
        ("config.fast_lora", {"fast_lora": True, "inverted": True}),
        ("config.fast_lora", {"fast_lora": True, "unconditional_model": "base"}),
        ("config.fast_lora", {"fast_lora": True, "method": "prompt_to_prompt"}),
    ):
        call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=sampling_config(**asked)))
        error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", refused_field)
        assert "leave it unset" in error.metadata["remedy"]
    assert len(world.tuner.requests) == 1


async def test_second_edit_uses_the_weights_of_the_first(world: World) -> None:
    """The same picture and settings never tune twice, whichever way the picture is given."""
    first = await edit(world, image_data=picture())
    image = await world.upload(picture())
    for request in ({"image_data": picture()}, {"image": image.name}, {"tuning": first[-1].done.tuning}):
        again = await edit(world, **request)
        assert kinds(again) == ["accepted", "loading", "step", "image", "done"]
        assert again[-1].done.tuning == first[-1].done.tuning and again[-1].done.timings.tune_s == 0
    assert len(world.tuner.requests) == 1


async def test_other_settings_tune_anew(world: World) -> None:
    """A change of any setting of the tuning is another tuning."""
    first = await edit(world, image_data=picture())
    other = await edit(world, image_data=picture(), tuning_config=tuning_config(seed=1))
    assert other[-1].done.tuning != first[-1].done.tuning
    assert [request.config.seed for request in world.tuner.requests] == [0, 1]


async def test_sdedit_needs_no_tuning(world: World) -> None:
    """Method sdedit samples with the base weights, tunes nothing, and keeps nothing of a picture sent along."""
    events = await edit(world, image_data=picture(), config=sampling_config(method="sdedit"))
    assert kinds(events) == ["accepted", "loading", "step", "image", "done"]
    assert events[-1].done.tuning == "" and not world.tuner.requests
    assert all(path.startswith("edits/") for path in world.stored())  # its result, for GetEdit
    assert not world.sampler.requests[0].HasField("weights") and world.sampler.requests[0].rare_tokens == ""


async def test_steps_are_paced_and_previews_survive(world: World) -> None:
    """A fast sampler's steps are thinned to five a second; the last one is never dropped, nor the newest preview."""
    events = await edit(world, image_data=picture(), preview_every=4, config=sampling_config(strength=1))
    steps = [event.step for event in events if event.HasField("step")]
    assert len(steps) <= 3 and steps[-1].index == 19 and steps[-1].total == 20
    assert steps[-1].preview == b"preview 19"


def test_pace_carries_a_held_back_preview() -> None:
    """A preview of a step that is not sent rides on the next step that is."""
    pace = StepThrottle()
    assert pace.admits(EditEvent.Step(index=0, total=3))
    assert not pace.admits(EditEvent.Step(index=1, total=3, preview=b"x"))
    last = EditEvent.Step(index=2, total=3)
    assert pace.admits(last) and last.preview == b"x"


async def test_get_edit_answers_with_the_pictures(world: World) -> None:
    """After the end the pictures can be fetched by the edit's name, and they are pictures."""
    events = await edit(world, image_data=picture(), seeds=[7])
    found = await world.edits.GetEdit(GetEditRequest(name=events[0].accepted.edit))
    assert found.state == Edit.STATE_DONE and found.tuning == events[-1].done.tuning
    assert found.timings == events[-1].done.timings and not found.HasField("error")
    assert Image.open(io.BytesIO(found.images[0].png)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("size_bytes", [5 << 20, 17 << 20])
async def test_a_large_picture_comes_in_pieces(world: World, size_bytes: int) -> None:
    """The stream has all of it, in order, with what it says of itself; GetEdit has it too, or says why not (N3)."""
    header = picture()[:HEADER_BYTES]
    world.sampler.png = header + os.urandom(size_bytes)

    events = await edit(world, image_data=picture(), seeds=[7], config=sampling_config(method="sdedit"))

    assert kinds(events)[-1] == "done" and max(event.ByteSize() for event in events) < 3 << 20
    assembly = Assembly()
    for event in events:
        if event.HasField("image"):
            assembly.begin([event.image])
        elif event.HasField("image_part"):
            assembly.add(event.image_part)
    (image,) = assembly.take()
    assert image.size_bytes == len(image.png) > len(world.sampler.png)
    assert image.png.startswith(header + image.png[HEADER_BYTES:][:4] + b"tEXt")
    assert image.png.endswith(world.sampler.png[HEADER_BYTES:])
    asked = world.edits.GetEdit(GetEditRequest(name=events[0].accepted.edit))
    if size_bytes < 16 << 20:
        assert [found.png for found in (await asked).images] == [image.png]
    else:
        error = await refused(asked, grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        assert int(error.metadata["size_bytes"]) >= size_bytes and "stream" in error.message


async def test_an_uploaded_mask_is_as_good_as_one_in_the_request(world: World) -> None:
    """Of a picture in the request, an upload and a tuning: it reaches the sampler as it was uploaded (N9)."""
    mask, tuning = await world.upload(picture("white")), await world.tuned(picture())
    for target in ({"image_data": picture()}, {"image": tuning.image}, {"tuning": tuning.name}):
        events = await edit(world, **target, mask_image=mask.name)
        assert kinds(events)[-1] == "done"
        assert Flat(events[0].accepted.config).mask_source == "given"
    assert [request.mask for request in world.sampler.requests] == [picture("white")] * 3


async def test_an_uploaded_mask_that_cannot_be_used_is_refused(world: World) -> None:
    """Another tenant's, one beside a mask, another kind of file, another size, and one that edits nothing (N9)."""
    theirs = await world.upload(picture("white"), parent="tenants/acme")
    files = {"jpeg": picture("white", kind="JPEG"), "small": picture("white", (4, 4)), "black": picture("black")}
    names = {name: (await world.upload(data)).name for name, data in files.items()}
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND

    def asked(**request: object) -> object:
        return world.edits.Edit(EditRequest(prompt="a dog", image_data=picture(), **request))

    await refused(asked(mask_image=theirs.name), missing, "IMAGE_NOT_FOUND")
    await refused(asked(mask_image=names["black"], mask=picture("white")), invalid, "INVALID_FIELD", "mask_image")
    await refused(asked(mask_image="white.png"), invalid, "INVALID_FIELD", "mask_image")
    await refused(asked(mask_image=names["jpeg"]), invalid, "IMAGE_UNDECODABLE", "mask_image")
    await refused(asked(mask_image=names["small"]), invalid, "INVALID_FIELD", "mask_image")
    await refused(asked(mask_image=names["black"]), invalid, "INVALID_FIELD", "mask_image")
    error = await refused(asked(mask=bytes((768 << 10) + 1)), invalid, "UPLOAD_TOO_LARGE", "mask")
    assert "mask_image" in error.metadata["remedy"]
    assert not world.sampler.requests and not world.tuner.requests


async def test_what_a_picture_loses_is_in_the_warnings_of_its_edits(world: World) -> None:
    """Of an upload, of a tuning of it, and of a picture in the request (N22, N23)."""
    clear = file_of(Image.new("RGBA", (40, 30), (200, 0, 0, 40)))
    image = await world.upload(clear)
    tuning = await world.tuned(clear)

    assert ["transparent" in warning for warning in image.warnings] == [True]
    for target in ({"image_data": clear}, {"image": image.name}, {"tuning": tuning.name}):
        for method in ("unitune", "sdedit"):
            events = await edit(world, **target, config=sampling_config(method=method))
            assert list(events[0].accepted.warnings) == list(image.warnings)


async def test_a_second_pass_is_the_samplers_to_do_and_told_where_there_is_none(world: World) -> None:
    """The request reaches it; of a picture that is no larger than the model's, a warning says why there is none."""
    small, large = (file_of(Image.new("RGB", size, "teal")) for size in ((60, 40), (90, 80)))
    tuning = await world.tuned(small)
    config = sampling_config(second_pass=True)

    for target, is_none in (
        ({"image_data": small}, True),
        ({"tuning": tuning.name}, True),
        ({"image_data": large}, False),
    ):
        events = await edit(world, **target, config=config)
        assert ["no second pass" in warning for warning in events[0].accepted.warnings] == [True] * is_none
        assert Flat(world.sampler.requests[-1].config).second_pass


async def test_a_mask_is_given_and_keeps_pixels_exactly_unless_told_otherwise(world: World) -> None:
    """It reaches the sampler as it came, implies its source and interpolation 1, and comes back with the pictures."""
    mask = picture("white")

    events = await edit(world, image_data=picture(), mask=mask)
    mixed = await edit(world, image_data=picture(), mask=mask, config=sampling_config(interpolation=0.5))
    estimated = await edit(world, image_data=picture(), config=sampling_config(mask_source="diffedit"))

    config = events[0].accepted.config
    assert (Flat(config).mask_source, config.interpolation, config.mask.blur) == ("given", 1, 0)
    assert mixed[0].accepted.config.interpolation == 0.5
    assert estimated[0].accepted.config.interpolation == 1
    assert [request.mask for request in world.sampler.requests] == [mask, mask, b""]
    assert [event.image.mask for event in events if event.HasField("image")] == [mask]
    found = await world.edits.GetEdit(GetEditRequest(name=events[0].accepted.edit))
    assert found.images[0].mask == mask


async def test_a_mask_is_taken_wherever_its_picture_comes_from(world: World) -> None:
    """An upload, a tuning and a picture in the request, by either method; white may be what is kept."""
    tuning = await world.tuned(picture())
    targets = ({"image_data": picture()}, {"image": tuning.image}, {"tuning": tuning.name})
    for target in targets:
        for method in ("unitune", "sdedit"):
            config = sampling_config(method=method, mask_keeps=True)
            events = await edit(world, **target, mask=picture("black"), config=config)
            assert kinds(events)[-1] == "done"
    assert all(request.config.mask.keeps for request in world.sampler.requests)


async def test_prompt_to_prompts_defaults_are_in_force(world: World) -> None:
    """What the base model says for the method is sampled with, and told, where the request leaves it out."""
    asked = sampling_config(method="prompt_to_prompt", base_prompt="a cat", self_replace=0.5)
    config = (await edit(world, image_data=picture(), config=asked))[0].accepted.config
    accepted = Flat(config)

    assert (0.8, 0.5, 5.0) == (accepted.cross_replace, accepted.self_replace, accepted.guidance_scale)
    assert config == world.sampler.requests[-1].config


@pytest.mark.parametrize(
    ("config", "mask"),
    [
        (sampling_config(method="unitune", unconditional_model="base", base_mixture=0.4), b""),
        (sampling_config(method="unitune", prompt_guidance_scale=2, base_prompt="a cat"), b""),
        (sampling_config(method="unitune", mask_source="diffedit", base_prompt="a cat", mask_blur=2), b""),
        (sampling_config(method="sdedit", repeats=3, negative_prompt="snow"), b""),
        (
            sampling_config(method="prompt_to_prompt", base_prompt="a cat", clip_filter=True, negative_prompt="snow"),
            b"",
        ),
        (
            sampling_config(
                method="prompt_to_prompt",
                base_prompt="a cat",
                inversion="ddim",
                cross_replace=0.8,
                alignment="replace",
                word_weights={"dog": 2},
                blend_words=["cat", "dog"],
            ),
            b"",
        ),
        (sampling_config(method="unitune", only_masked=True, mask_padding=8), picture("white")),
        (sampling_config(method="sdedit", only_masked=True), picture("white")),
        (sampling_config(method="sdedit", mask_text="the cat", inverted=True, mask_blur=2), b""),
        (sampling_config(mask_text="the cat", mask_source="attention"), b""),
        (sampling_config(), b""),
        (sampling_config(automatic=True), b""),
        (sampling_config(clip_filter=True), b""),
    ],
)
async def test_the_config_that_was_accepted_can_be_sent_again(
    world: World, config: SamplingConfig, mask: bytes
) -> None:
    """It holds what was asked for and no option that nothing reads, so it means the same edit once more."""
    accepted = (await edit(world, image_data=picture(), config=config, mask=mask))[0].accepted.config
    again = (await edit(world, image_data=picture(), config=accepted, mask=mask))[0].accepted.config

    assert again == accepted
    filled = sampling_config()
    filled.CopyFrom(accepted)
    SAMPLING["blend_words"].clear(filled)  # merging appends to lists
    filled.MergeFrom(config)
    assert filled == accepted


async def test_closing_the_stream_stops_the_sampler_but_not_the_tuning(world: World) -> None:
    """A client that goes away ends its sampling at once, and leaves an edit that is CANCELLED."""
    world.sampler.step_s = 0.2
    tuning = await world.tuned()
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog", config=sampling_config(strength=1)))
    accepted = await call.read()
    await call.read()
    call.cancel()
    await asyncio.wait_for(world.sampler.stopped.wait(), 10)
    assert world.sampler.steps_done < 20
    name = accepted.accepted.edit

    async def cancelled() -> bool:
        return (await world.edits.GetEdit(GetEditRequest(name=name))).state == Edit.STATE_CANCELLED

    await eventually(cancelled)
    assert (await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))).state == Tuning.STATE_READY


async def test_closing_the_stream_leaves_the_tuning_it_began(world: World) -> None:
    """A tuning that an edit began goes on when the edit's client has gone."""
    world.tuner.go_on.clear()
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog"))
    while not (event := await call.read()).tuning.HasField("progress"):
        pass
    assert event.tuning.progress.total == 5
    call.cancel()
    world.tuner.go_on.set()
    name = world.tuner.requests[0].name
    await world.until(name, Tuning.STATE_READY)
    assert not world.sampler.requests


async def test_cancel_edit_from_another_connection(world: World) -> None:
    """CancelEdit ends the stream with `cancelled`, stops the sampler, touches no other edit, and may be repeated."""
    world.sampler.step_s = 0.05
    tuning = await world.tuned()
    request = EditRequest(tuning=tuning.name, prompt="a dog", config=sampling_config(strength=1))
    doomed, other = world.edits.Edit(request), world.edits.Edit(request)
    name = (await doomed.read()).accepted.edit
    await other.read()
    while not (await doomed.read()).HasField("step"):
        pass
    answer = await world.edits.CancelEdit(CancelEditRequest(name=name))
    assert answer.state == Edit.STATE_CANCELLED
    events = await rest(doomed)
    assert events[-1].cancelled.name == name and kinds(events)[-1] == "cancelled"
    assert sum(event.WhichOneof("event") in TERMINAL for event in events) == 1
    await asyncio.wait_for(world.sampler.stopped.wait(), 10)
    assert (await world.edits.CancelEdit(CancelEditRequest(name=name))).state == Edit.STATE_CANCELLED
    assert kinds(await rest(other))[-1] == "done"


async def test_cancel_edit_reaches_one_whose_reader_sleeps(world: World) -> None:
    """A client that has stopped reading cannot keep the sampler from being stopped."""
    world.sampler.step_s = 0.2
    tuning = await world.tuned()
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog", preview_every=1))
    name = (await call.read()).accepted.edit
    await asyncio.sleep(0.3)
    await world.edits.CancelEdit(CancelEditRequest(name=name))
    await asyncio.wait_for(world.sampler.stopped.wait(), 10)
    call.cancel()


async def test_cancel_edit_while_its_tuning_runs(world: World) -> None:
    """Cancelling an edit that waits for its tuning ends the edit, not the tuning."""
    world.tuner.go_on.clear()
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog"))
    name = (await call.read()).accepted.edit
    while not (await call.read()).tuning.HasField("progress"):
        pass
    await world.edits.CancelEdit(CancelEditRequest(name=name))
    assert kinds(await rest(call))[-1] == "cancelled"
    world.tuner.go_on.set()
    await world.until(world.tuner.requests[0].name, Tuning.STATE_READY)


async def test_a_silent_stream_has_heartbeats(world: World) -> None:
    """Neither an edit nor a watch is silent for longer than the interval, and heartbeats have no number."""
    await world.close()
    world.config = world.config.__class__(**{**world.config.__dict__, "heartbeat_s": 0.05})
    await world.open()
    world.tuner.go_on.clear()
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog"))
    seen = []
    while len([event for event in seen if event.HasField("heartbeat")]) < 3:
        seen.append(await call.read())
    assert all(event.sequence == 0 for event in seen if event.HasField("heartbeat"))
    watch = world.tunings.WatchTuning(WatchTuningRequest(name=world.tuner.requests[0].name))
    while not (await watch.read()).HasField("heartbeat"):
        pass
    world.tuner.go_on.set()
    numbers = [event.sequence for event in [*seen, *await rest(call)] if event.sequence]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_data_loss_ends_the_edit_with_failed(world: World) -> None:
    """Weights that rotted in the store end the edit as DATA_LOSS: the stream's own status is OK."""
    tuning = await world.tuned()
    file = world.folder / "store" / tuning.weights.path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    events = await edit(world, tuning=tuning.name)
    assert kinds(events) == ["accepted", "failed"]
    assert events[-1].failed.code == grpc.StatusCode.DATA_LOSS.value[0]
    assert from_status(events[-1].failed).reason == "WEIGHTS_CORRUPT"
    found = await world.edits.GetEdit(GetEditRequest(name=events[0].accepted.edit))
    assert found.state == Edit.STATE_FAILED and found.error == events[-1].failed


async def test_a_bug_of_the_sampler_leaks_nothing(world: World) -> None:
    """What a sampler's exception says stays in its log."""
    tuning = await world.tuned()
    world.sampler.failure = KeyError("/secret/path")
    events = await edit(world, tuning=tuning.name)
    assert kinds(events) == ["accepted", "loading", "step", "failed"]
    assert from_status(events[-1].failed).reason == "INTERNAL" and "secret" not in str(events[-1])
    world.sampler.failure = DataLoss("the probe does not prove them", reason="WEIGHTS_CORRUPT")
    assert from_status((await edit(world, tuning=tuning.name))[-1].failed).reason == "WEIGHTS_CORRUPT"


async def test_sampler_down_is_unavailable_with_retry_info(world: World) -> None:
    """Without a sampler an edit is refused before `accepted`, the server still answers, and a new sampler serves."""
    tuning = await world.tuned()
    address = world.sampler_server.address
    await world.sampler_server.stop()
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
    error = await refused(call, grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
    assert error.retry_after_s is not None and error.retry_after_s > 0 and error.metadata == {"upstream": "sampler"}
    assert "127.0.0.1" not in error.message
    assert (await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))).state == Tuning.STATE_READY
    world.sampler_server = await serve_sampler(world.sampler, address)

    async def works() -> bool:
        try:
            return kinds(await edit(world, tuning=tuning.name))[-1] == "done"
        except grpc.aio.AioRpcError:
            return False

    await eventually(works)


async def test_sampler_lost_in_the_middle_fails_the_edit(world: World) -> None:
    """A sampler that dies under an edit ends it with `failed`, UNAVAILABLE."""
    world.sampler.step_s = 0.2
    tuning = await world.tuned()
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
    await call.read()
    await call.read()
    await world.sampler_server.stop()
    events = await rest(call)
    assert kinds(events)[-1] == "failed" and from_status(events[-1].failed).reason == "BACKEND_DOWN"


async def test_tuner_down_refuses_an_edit_that_would_have_to_tune(world: World) -> None:
    """Without a tuner an untuned picture is refused; one that is tuned is edited as ever."""
    await edit(world, image_data=picture("red"))
    address = world.tuner_server.address
    await world.tuner_server.stop()
    call = world.edits.Edit(EditRequest(image_data=picture("blue"), prompt="a dog"))
    error = await refused(call, grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
    assert error.metadata == {"upstream": "tuner"}
    assert kinds(await edit(world, image_data=picture("red")))[-1] == "done"
    world.tuner_server = await serve_tuner(world.tuner, address)


async def test_base_models_that_differ_are_refused(world: World) -> None:
    """Weights of one base model never reach an engine of another."""
    tuning = await world.tuned()
    world.sampler.base_model = BaseModel(name="other", digest="f" * 64)
    for request in ({"tuning": tuning.name}, {"image_data": picture("blue")}):
        call = world.edits.Edit(EditRequest(prompt="a dog", **request))
        error = await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "BASE_MODEL_MISMATCH")
        assert error.metadata == {"tuned": BASE_MODEL.digest, "sampled": "f" * 64}
    assert len(world.tuner.requests) == 1 and not world.sampler.requests


async def test_failed_tuning_fails_the_edit(world: World) -> None:
    """An edit whose tuning diverges ends with that error."""
    world.tuner.failure = DataLoss("the loss was not finite at update 3", reason="TUNING_DIVERGED")
    events = await edit(world, image_data=picture())
    assert kinds(events) == ["accepted", "tuning", "failed"]
    assert from_status(events[-1].failed).reason == "TUNING_DIVERGED"


async def test_tuning_deleted_under_a_waiting_edit(world: World) -> None:
    """An edit whose tuning is deleted while it waits ends, and says why."""
    world.tuner.go_on.clear()
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog"))
    while not (await call.read()).tuning.HasField("progress"):
        pass
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=world.tuner.requests[0].name))
    events = await rest(call)
    assert from_status(events[-1].failed).reason == "TUNING_CANCELLED"


async def test_unknown_words_are_warned_of(world: World) -> None:
    """Words outside a closed vocabulary give one warning with the nearest known ones."""
    world.sampler.base_model = BaseModel(name="tiny", digest=BASE_MODEL.digest, vocabulary=["a", "dog", "on", "beach"])
    config = sampling_config(negative_prompt="qqqq", base_prompt="a wwww", prompt_guidance_scale=1)
    events = await edit(world, image_data=picture(), prompt="A dgo on a BEACH, zzzzzz", config=config)
    (warning,) = events[0].accepted.warnings
    assert "dgo (nearest: dog)" in warning and "zzzzzz" in warning and "beach" not in warning.lower()
    assert "qqqq" in warning and "wwww" in warning


@pytest.mark.parametrize(("prompt", "vocabulary"), [("a dog", ["a", "Dog"]), ("anything at all", [])])
def test_known_words_are_not_warned_of(prompt: str, vocabulary: list[str]) -> None:
    """Case does not matter, and an open vocabulary knows every word."""
    assert warnings_of(prompt, vocabulary) == []


async def test_a_drain_ends_an_edit_that_waits_for_its_tuning(world: World) -> None:
    """The stream ends with `failed`, DRAINING, and may be retried; the tuning itself is not cancelled."""
    world.tuner.go_on.clear()
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog"))
    while not (await call.read()).HasField("tuning"):
        pass
    assert world.gateway is not None
    await world.gateway.drain()
    last = (await asyncio.wait_for(rest(call), 20))[-1]
    world.tuner.go_on.set()

    assert kinds([last]) == ["failed"]
    assert from_status(last.failed).reason == "DRAINING"
    assert not world.tuner.stopped
