"""Client and AsyncClient against a real server on loopback."""

import asyncio
import asyncio.base_events
import asyncio.selector_events
import gc
import hashlib
import inspect
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

import unitune_client
from tests.configs import entry, methods_of, sampling_config, tuning_config
from tests.unitune_client import scripted_server
from tests.unitune_client.scripted_server import EDIT, TUNING, Hold, ScriptedServer, Wire
from unitune import errors
from unitune.errors import Cancelled, DataLoss, Internal, InvalidArgument, InvalidField, NotFound, Unavailable
from unitune.v1 import edit_pb2, tuning_pb2
from unitune_client import AsyncClient, Client, events
from unitune_client.channel import is_this_machine

PICTURE = scripted_server.png((10, 20, 30))


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    """A blocking client of the scripted server, with little patience."""
    with Client(server.address, reconnect_s=5) as client:
        yield client


def test_upload_sends_the_file_in_chunks_under_its_digest(server: ScriptedServer, client: Client) -> None:
    """A large file arrives whole, in pieces of at most 256 KiB, announced by size and sha256."""
    data = bytes(range(256)) * 2500
    server.script("UploadImage", scripted_server.uploaded)

    image = client.upload_image(data)

    header, *parts = server.requests["UploadImage"][0]
    assert [256 << 10, 256 << 10, len(data) - (512 << 10)] == [len(part.chunk) for part in parts]
    assert data == b"".join(part.chunk for part in parts)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (header.header.size_bytes, header.header.sha256)
    assert "tenants/default/images/" + header.header.sha256 == image.name


def test_upload_is_sent_again_when_the_server_was_away(server: ScriptedServer, client: Client, photo: Path) -> None:
    """UNAVAILABLE makes the client send the whole file once more."""
    away = Unavailable("draining", reason="DRAINING")
    server.script("UploadImage", away, away, scripted_server.uploaded)

    image = client.upload_image(photo)

    assert len(photo.read_bytes()) == image.size_bytes
    assert 3 == len(server.requests["UploadImage"])
    assert server.requests["UploadImage"][0] == server.requests["UploadImage"][2]


def test_upload_is_not_sent_again_when_the_picture_is_wrong(server: ScriptedServer, client: Client) -> None:
    """What the server cannot decode is refused once, with its reason."""
    server.script("UploadImage", InvalidArgument("not a picture", reason="IMAGE_UNDECODABLE"))

    with pytest.raises(InvalidArgument, match="not a picture") as raised:
        client.upload_image(b"GIF89a")

    assert "IMAGE_UNDECODABLE" == raised.value.reason


def test_a_path_that_cannot_be_read_is_named(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file is an InvalidField before anything is sent."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidField, match=r"image is 'nobody\.png': No such file") as raised:
        client.upload_image(Path("nobody.png"))

    assert "image" == raised.value.field


def test_create_tuning_uploads_the_picture_and_sends_the_config(
    server: ScriptedServer, client: Client, photo: Path
) -> None:
    """Options reach the fields of the same meaning, a zero too; what was not said stays unset."""
    server.script("UploadImage", scripted_server.uploaded)
    server.script("CreateTuning", scripted_server.tuning("QUEUED", queue_position=2))

    tuning = client.create_tuning(photo, updates=0, learning_rate=1e-3, tuning_seed=7, labels={"who": "me"})

    request = server.requests["CreateTuning"][0]
    assert f"tenants/default/images/{hashlib.sha256(photo.read_bytes()).hexdigest()}" == request.image
    assert tuning_config(updates=0, learning_rate=1e-3, seed=7) == request.config
    assert request.config.HasField("updates") and not request.config.HasField("batch")
    assert {"who": "me"} == dict(request.labels)
    assert 36 == len(request.request_id)
    assert (TUNING, events.TuningState.QUEUED, 2, 128) == (
        tuning.name,
        tuning.state,
        tuning.queue_position,
        tuning.config.updates,
    )


def test_an_uploaded_image_is_not_uploaded_again(server: ScriptedServer, client: Client) -> None:
    """An Image, or its name, goes straight into the request."""
    server.script("UploadImage", scripted_server.uploaded)
    server.script("CreateTuning", scripted_server.tuning("QUEUED"), scripted_server.tuning("QUEUED"))

    image = client.upload_image(PICTURE)
    client.create_tuning(image)
    client.create_tuning(image.name)

    assert [image.name, image.name] == [request.image for request in server.requests["CreateTuning"]]


def test_a_value_of_a_wrong_type_is_an_invalid_field(client: Client) -> None:
    """A text for a number names the field and the value, and nothing is sent."""
    with pytest.raises(InvalidField, match="strength is 'high': give a number"):
        next(client.edit(PICTURE, "a dog", strength="high"))  # type: ignore[arg-type]
    with pytest.raises(InvalidField, match=r"updates is 1\.5: give a whole number"):
        client.create_tuning("tenants/default/images/i1", updates=1.5)  # type: ignore[arg-type]


def test_an_unknown_option_is_a_type_error(client: Client) -> None:
    """A misspelt keyword is refused as any function would."""
    with pytest.raises(TypeError, match=r"did you mean guidance_scale\? no option is called 'guidance'; there are "):
        next(client.edit(PICTURE, "a dog", guidance=3))  # type: ignore[call-arg]


def test_an_unknown_option_is_an_invalid_field_with_the_nearest_name(client: Client) -> None:
    """A name of another program is not ignored: field, value and remedy are told, and nothing is sent (P8)."""
    with pytest.raises(InvalidField, match=r"n_cross_replace is 0\.4: did you mean cross_replace\?") as refused:
        next(client.edit(PICTURE, "a dog", n_cross_replace=0.4))  # type: ignore[call-arg]
    with pytest.raises(InvalidField, match=r"steps is 20: did you mean num_inference_steps\?"):
        next(client.edit(PICTURE, "a dog", steps=20))  # type: ignore[call-arg]
    with pytest.raises(InvalidField, match=r"seed is 1: did you mean seeds\?"):
        next(client.edit(PICTURE, "a dog", seed=1))  # type: ignore[call-arg]
    assert {"field": "n_cross_replace", "value": "0.4"}.items() <= refused.value.metadata.items()
    with pytest.raises(InvalidField, match="word_weights is 3: give a mapping from words to numbers"):
        next(client.edit(PICTURE, "a dog", word_weights=3))  # type: ignore[arg-type]


OPTIONS = {
    "method": "unitune",
    "negative_prompt": "snow",
    "base_prompt": "a cat",
    "prompt_guidance_scale": 2.5,
    "unconditional_model": "base",
    "base_mixture": 0.4,
    "mask_source": "given",
    "mask_blur": 1.5,
    "only_masked": True,
    "mask_padding": 8,
    "mask_keeps": True,
    "repeats": 2,
    "guidance_sigma_low": 0.3,
    "guidance_sigma_high": 5.5,
    "timestep_spacing": "trailing",
    "guidance_rescale": 0.7,
}


def test_every_option_of_guidance_and_masks_reaches_its_field(
    server: ScriptedServer, client: Client, tmp_path: Path
) -> None:
    """By its own name; a mask is bytes or a path, and the mask that was used comes with the picture."""
    path = tmp_path / "mask.png"
    path.write_bytes(PICTURE)
    for _ in range(2):
        server.script("Edit", scripted_server.edit_events([b"one"], mask=b"used"))

    by_path = client.edit_to_end(PICTURE, "a dog", mask=path, **OPTIONS)
    client.edit_to_end(PICTURE, "a dog", mask=PICTURE, **OPTIONS)

    assert by_path.images[0].mask == b"used"
    for request in server.requests["Edit"]:
        assert request.mask == PICTURE
        assert request.config == sampling_config(**OPTIONS)


def test_a_mask_may_be_an_uploaded_image(server: ScriptedServer, client: Client) -> None:
    """It is named as `image` may be, and not sent again."""
    server.script("UploadImage", scripted_server.uploaded)
    for _ in range(2):
        server.script("Edit", scripted_server.edit_events([b"one"]))

    mask = client.upload_image(PICTURE)
    for given in (mask, mask.name):
        client.edit_to_end(PICTURE, "a dog", mask=given)

    assert [(mask.name, b"")] * 2 == [(request.mask_image, request.mask) for request in server.requests["Edit"]]


async def test_an_async_client_sends_and_gets_masks(server: ScriptedServer, tmp_path: Path) -> None:
    """The same options as the blocking one; a mask that is not there is named before anything is sent."""
    server.script("Edit", scripted_server.edit_events([b"one"]))

    async with AsyncClient(server.address) as client:
        result = await client.edit_to_end(PICTURE, "a dog", mask=PICTURE, **OPTIONS)
        with pytest.raises(InvalidField) as refusal:
            await client.edit_to_end(PICTURE, "a dog", mask=tmp_path / "nobody.png")

    assert result.images[0].mask is None
    assert server.requests["Edit"][0].mask == PICTURE
    assert refusal.value.field == "mask" and "PNG" in refusal.value.metadata["remedy"]


def test_what_an_edit_does_not_read_is_none(server: ScriptedServer, client: Client) -> None:
    """So it can be told from a setting of 0."""
    log = scripted_server.edit_events([b"one"])
    log[0].accepted.config.base_mixture = 0
    server.script("Edit", log)

    config = client.edit_to_end(PICTURE, "a dog").config

    assert (config.base_mixture, config.repeats, config.mask_blur) == (0, None, None)


def test_edit_maps_every_event(server: ScriptedServer, client: Client) -> None:
    """Each message of the stream becomes its dataclass, with its values, in order."""
    queued, ready = scripted_server.tuning_events("queued", "ready")
    log = scripted_server.edit_events([b"one", b"two"], seeds=[5, 6], warnings=["unknown word: zebra"])
    log[1:1] = [edit_pb2.EditEvent(tuning=queued), edit_pb2.EditEvent(tuning=ready)]
    log.insert(3, edit_pb2.EditEvent(heartbeat=edit_pb2.EditEvent.Heartbeat()))
    log[5].step.preview = b"preview"
    server.script("Edit", log)

    seen = list(client.edit(PICTURE, "a dog", seeds=[5, 6], strength=0.8, preview_every=2, rare_tokens="xyz"))

    request = server.requests["Edit"][0]
    assert (PICTURE, "a dog", [5, 6], 2) == (
        request.image_data,
        request.prompt,
        list(request.seeds),
        request.preview_every,
    )
    assert sampling_config(strength=0.8) == request.config
    assert tuning_config(rare_tokens="xyz") == request.tuning_config
    accepted, queued_event, ready_event, heartbeat, loading, step, last_step, one, two, done = seen
    assert isinstance(accepted, events.EditAccepted)
    assert (EDIT, (5, 6), ("unknown word: zebra",)) == (accepted.edit, accepted.seeds, accepted.warnings)
    assert ("ddim", 20, 7.5) == (
        accepted.config.scheduler,
        accepted.config.num_inference_steps,
        accepted.config.guidance_scale,
    )
    assert events.TuningQueued(sequence=1, position=1) == queued_event
    assert isinstance(ready_event, events.TuningReady) and "d1" == ready_event.tuning.weights.digest
    assert events.Heartbeat() == heartbeat
    assert events.EditLoading(sequence=2, warm=False, refit_s=0.25, probe_ratio=0.01) == loading
    assert events.EditStep(sequence=3, index=0, total=2, preview=b"preview") == step
    assert events.EditStep(sequence=4, index=1, total=2, preview=None) == last_step
    assert events.EditedImage(sequence=5, index=0, seed=5, png=b"one") == one
    assert events.EditedImage(sequence=6, index=1, seed=6, png=b"two") == two
    assert isinstance(done, events.EditDone) and (TUNING, 1.5) == (done.tuning, done.timings.denoise_s)


def test_compare_maps_every_event(server: ScriptedServer, client: Client) -> None:
    """Each message becomes its dataclass, in order: a method's events, then its pictures or its error."""
    scores = edit_pb2.Scores(prompt=0.3, base_prompt=0.2, kept=0.9, passed=True)
    log = scripted_server.compare_events(
        {"unitune": [b"one", b"two"], "sdedit": Internal("broken", reason="INTERNAL")},
        seeds=[5, 6],
        mask=b"mask",
        scores=scores,
    )
    log.insert(1, edit_pb2.CompareEvent(heartbeat=edit_pb2.CompareEvent.Heartbeat()))
    server.script("Compare", log)

    seen = list(client.compare(PICTURE, "a cat", seeds=[5, 6], class_noun="cat", initial_word="cat"))

    (request,) = server.requests["Compare"]
    assert request.request_id
    assert [request] == [
        edit_pb2.CompareRequest(
            parent="tenants/default",
            image_data=PICTURE,
            prompt="a cat",
            seeds=[5, 6],
            class_noun="cat",
            initial_word="cat",
            request_id=request.request_id,
        )
    ]
    assert seen[:2] == [events.CompareAccepted(sequence=1, methods=("unitune", "sdedit")), events.Heartbeat()]
    edits = [(event.method, type(event.event)) for event in seen if isinstance(event, events.CompareEdit)]
    steps = [events.EditLoading, events.EditStep, events.EditStep]
    tuned = [events.EditAccepted, events.TuningQueued, events.TuningProgress, *steps]
    assert edits == [("unitune", kind) for kind in tuned] + [("sdedit", kind) for kind in (events.EditAccepted, *steps)]
    good, bad = [event for event in seen if isinstance(event, events.CompareResult)]
    assert (good.method, good.prompt, good.tuning, good.error) == ("unitune", "a cat", TUNING, None)
    assert (good.tuning_s, good.edit_s, good.size_bytes, good.timings.denoise_s) == (12.5, 2.0, 3456, 1.5)
    assert [(one.seed, one.png, one.mask) for one in good.images] == [(5, b"one", b"mask"), (6, b"two", b"mask")]
    assert good.images[0].scores == events.Scores(prompt=0.3, base_prompt=0.2, kept=0.9, passed=True)
    assert (bad.method, bad.images) == ("sdedit", ()) and bad.error is not None and bad.error.reason == "INTERNAL"
    assert seen[-1] == events.CompareDone(sequence=len(log) - 1, total_s=17.0)


async def test_an_async_comparison_sends_each_methods_own_options(server: ScriptedServer) -> None:
    """Names alone, or with options for tuning and sampling; what belongs to all methods is refused there."""
    server.script("Compare", *[scripted_server.compare_events({"sdedit": [b"one"]})] * 2)
    image = f"tenants/default/images/{'a' * 64}"
    own = {"unitune": {"updates": 64, "tuning_seed": 3, "strength": 0.5}, "sdedit": {}}

    async with AsyncClient(server.address) as client:
        for methods in (own, ["sdedit", "imagic"]):
            assert [type(event) async for event in client.compare(image, "a cat", methods)][-1] is events.CompareDone
        with pytest.raises(TypeError, match="seeds is no option of a single method"):
            await anext(client.compare(image, "a cat", {"sdedit": {"seeds": [1]}}))
        with pytest.raises(TypeError, match="'guidance'"):
            await anext(client.compare(image, "a cat", {"sdedit": {"guidance": 1}}))  # type: ignore[dict-item]

    first, second = server.requests["Compare"]
    assert list(first.methods) == [
        entry(
            "unitune",
            tuning_config=tuning_config(updates=64, seed=3),
            config=sampling_config(strength=0.5),
        ),
        entry("sdedit"),
    ]
    assert methods_of(second.methods) == ["sdedit", "imagic"] and second.image == image


def test_a_comparison_that_breaks_off_raises(server: ScriptedServer) -> None:
    """Without patience: its own failure, a refusal before the first event, and a stream that just ends; a tuning is no
    picture."""
    failed = edit_pb2.CompareEvent(failed=errors.to_status(Unavailable("stopping", reason="DRAINING")))
    log = scripted_server.compare_events({"sdedit": [b"one"]})
    server.script("Compare", [*log[:-1], failed], InvalidField("class_noun", "", "say what kind"), log[:-1])

    raising = ((Unavailable, "DRAINING"), (InvalidField, "INVALID_FIELD"), (Unavailable, "STREAM_ENDED"))
    with Client(server.address, reconnect_s=0) as client:
        for kind, reason in raising:
            with pytest.raises(kind) as raised:
                list(client.compare(PICTURE, "a cat"))
            assert raised.value.reason == reason
        with pytest.raises(InvalidField, match="image is"):
            next(client.compare(TUNING, "a cat"))


def test_leaving_a_comparison_early_cancels_it_on_the_server(server: ScriptedServer, client: Client) -> None:
    """Closing the iterator ends the call that the server sees."""
    hold = Hold()
    server.script("Compare", [*scripted_server.compare_events({"sdedit": [b"one"]})[:2], hold])

    for event in client.compare(PICTURE, "a cat"):
        if isinstance(event, events.CompareEdit):
            assert hold.reached.wait(10)
            break

    assert hold.left.wait(10)


def test_edit_names_a_tuning_instead_of_sending_a_picture(server: ScriptedServer, client: Client) -> None:
    """A Tuning or its name is the target of the request."""
    server.script("GetTuning", scripted_server.tuning("READY"))
    server.script("Edit", scripted_server.edit_events([b"a"]), scripted_server.edit_events([b"a"]))

    client.edit_to_end(client.get_tuning(TUNING), "a dog")
    client.edit_to_end(TUNING, "a dog")

    assert [TUNING, TUNING] == [request.tuning for request in server.requests["Edit"]]


def test_edit_uploads_a_picture_too_large_for_one_message(server: ScriptedServer, client: Client) -> None:
    """Above 3 MiB the picture goes by upload and the edit names it."""
    server.script("UploadImage", scripted_server.uploaded)
    server.script("Edit", scripted_server.edit_events([b"a"]))

    client.edit_to_end(bytes(3 << 20) + b"!", "a dog")

    assert server.requests["Edit"][0].image.startswith("tenants/default/images/")
    assert "image" == server.requests["Edit"][0].WhichOneof("target")


def test_edit_to_end_collects_the_result(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    """The result holds pictures, settings, warnings and seconds; pictures can be saved."""
    log = scripted_server.edit_events([PICTURE, b"two"], seeds=[3, 4], warnings=["careful"])
    log.insert(4, edit_pb2.EditEvent(warning=edit_pb2.EditEvent.Warning(text="kept nothing")))
    server.script("Edit", log)
    seen: list[events.EditEvent] = []

    result = client.edit_to_end(TUNING, "a dog", on_event=seen.append)

    assert [(0, 3), (1, 4)] == [(image.index, image.seed) for image in result.images]
    warnings = ("careful", "kept nothing")
    assert (EDIT, TUNING, warnings, 2.0) == (result.edit, result.tuning, result.warnings, result.timings.total_s)
    assert 8 == len(seen)
    assert PICTURE == result.images[0].save(tmp_path / "dog.png").read_bytes()
    assert ["dog.png"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    "error",
    [
        DataLoss("the weights are corrupt", reason="WEIGHTS_CORRUPT"),
        InvalidField("prompt", "", "say what the picture shall show"),
        Internal("the tuning diverged at update 12", reason="TUNING_DIVERGED", metadata={"update": "12"}),
    ],
    ids=lambda error: error.reason,
)
def test_a_failed_edit_raises_its_typed_error(
    server: ScriptedServer, client: Client, error: errors.UniTuneError
) -> None:
    """The failed event, as a refusal by status, becomes the same error with reason and metadata."""
    accepted = scripted_server.edit_events([])[:1] if error.reason != "INVALID_FIELD" else []
    server.script("Edit", [*accepted, scripted_server.failed(error)], error)

    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            client.edit_to_end(PICTURE, "a dog")

        assert (error.message, error.reason, error.metadata) == (
            raised.value.message,
            raised.value.reason,
            raised.value.metadata,
        )


def test_a_cancelled_edit_raises_cancelled(server: ScriptedServer, client: Client) -> None:
    """The cancelled event ends the iteration with an error of its own."""
    edit = edit_pb2.Edit(name=EDIT, state="STATE_CANCELLED")
    server.script("Edit", [*scripted_server.edit_events([])[:1], edit_pb2.EditEvent(cancelled=edit)])

    with pytest.raises(Cancelled, match="the edit was cancelled"):
        client.edit_to_end(PICTURE, "a dog")


def test_an_edit_stream_without_its_last_event_is_unavailable(server: ScriptedServer) -> None:
    """A stream that just ends is told from one that is done."""
    server.script("Edit", scripted_server.edit_events([b"a"])[:-1])

    with Client(server.address, reconnect_s=0) as client, pytest.raises(Unavailable, match="ended before the edit did"):
        client.edit_to_end(PICTURE, "a dog")


def test_an_edit_that_takes_too_long_is_cancelled(server: ScriptedServer, client: Client) -> None:
    """`timeout_s` ends the call on both sides."""
    hold = Hold()
    server.script("Edit", [*scripted_server.edit_events([])[:1], hold])

    with pytest.raises(Unavailable, match="did not answer in time") as raised:
        client.edit_to_end(TUNING, "a dog", timeout_s=0.5)

    assert "DEADLINE_EXCEEDED" == raised.value.reason
    assert hold.left.wait(10)


def test_leaving_an_edit_early_cancels_it_on_the_server(server: ScriptedServer, client: Client) -> None:
    """Closing the iterator ends the call that the server sees."""
    hold = Hold()
    server.script("Edit", [*scripted_server.edit_events([])[:2], hold])

    for event in client.edit(TUNING, "a dog"):
        if isinstance(event, events.EditLoading):
            assert hold.reached.wait(10)
            break

    assert hold.left.wait(10)


async def test_leaving_an_async_edit_early_cancels_it_on_the_server(server: ScriptedServer) -> None:
    """Closing the asynchronous iterator does the same."""
    hold = Hold()
    server.script("Edit", [*scripted_server.edit_events([])[:1], hold])

    async with AsyncClient(server.address) as client, aclosing(client.edit(TUNING, "a dog")) as stream:
        assert isinstance(await anext(stream), events.EditAccepted)
        assert await asyncio.to_thread(hold.reached.wait, 10)

    assert hold.left.wait(10)


def test_get_and_cancel_edit(server: ScriptedServer, client: Client) -> None:
    """An edit can be asked for and stopped by name, from anywhere."""
    image = edit_pb2.EditEvent.EditedImage(index=0, seed=9, png=b"a")
    server.script("GetEdit", edit_pb2.Edit(name=EDIT, state="STATE_DONE", images=[image]))
    server.script("CancelEdit", edit_pb2.Edit(name=EDIT, state="STATE_CANCELLED"))

    done, cancelled = client.get_edit(EDIT), client.cancel_edit(EDIT)

    assert (events.EditState.DONE, 9, b"a") == (done.state, done.images[0].seed, done.images[0].png)
    assert (events.EditState.CANCELLED, ()) == (cancelled.state, cancelled.images)


def test_watch_goes_on_where_the_connection_broke(server: ScriptedServer) -> None:
    """Cut twice at different events, the watch still yields every event once, in order."""
    log = scripted_server.tuning_events("queued", "started", *["progress"] * 6, "ready")
    first, second = Hold(), Hold()
    server.script("WatchTuning", [*log[:2], first], lambda request: [*log[2:5], second], scripted_server.from_log(log))
    wire = Wire(server.address)

    with Client(wire.address, reconnect_s=20) as client:
        seen = []
        for event in client.watch_tuning(TUNING):
            seen.append(event.sequence)
            if event.sequence in (2, 5):
                wire.cut()
    wire.close()

    assert list(range(1, 10)) == seen
    assert [0, 2, 5] == [request.after_sequence for request in server.requests["WatchTuning"]]
    assert 3 == wire.connections


async def test_an_async_watch_goes_on_where_the_connection_broke(server: ScriptedServer) -> None:
    """The same, under asyncio, from an event in the middle."""
    log = scripted_server.tuning_events("queued", "started", *["progress"] * 3, "ready")
    server.script("WatchTuning", [*log[1:3], Hold()], scripted_server.from_log(log))
    wire = Wire(server.address)

    async with AsyncClient(wire.address, reconnect_s=20) as client:
        seen = []
        async for event in client.watch_tuning(TUNING, after_sequence=1):
            seen.append(event.sequence)
            if event.sequence == 3:
                wire.cut()
    wire.close()

    assert [2, 3, 4, 5, 6] == seen


def test_watch_goes_on_after_a_draining_server_and_an_early_end(server: ScriptedServer, client: Client) -> None:
    """UNAVAILABLE in mid-stream and a stream that ends too soon are taken up again; a snapshot counts as seen."""
    log = scripted_server.tuning_events("queued", "started", "progress", "ready")
    snapshot = tuning_pb2.TuningEvent(sequence=3, snapshot=scripted_server.tuning("RUNNING"))
    server.script("WatchTuning", [log[0], Unavailable("draining", reason="DRAINING")], [snapshot], log[3:])

    seen = list(client.watch_tuning(TUNING))

    assert [1, 3, 4] == [event.sequence for event in seen]
    assert isinstance(seen[1], events.TuningSnapshot) and seen[1].tuning.state == "RUNNING"
    assert [0, 1, 3] == [request.after_sequence for request in server.requests["WatchTuning"]]


def test_watch_raises_the_error_of_the_tuning_and_does_not_resume(server: ScriptedServer, client: Client) -> None:
    """A failed tuning is over, even if it failed because something was unavailable."""
    error = Unavailable("the tuner was lost three times", reason="TUNER_LOST")
    event = tuning_pb2.TuningEvent(sequence=1, failed=errors.to_status(error))
    server.script("WatchTuning", [event], scripted_server.tuning_events("cancelled"))

    with pytest.raises(Unavailable, match="lost three times"):
        list(client.watch_tuning(TUNING))
    with pytest.raises(Cancelled, match="the tuning was cancelled"):
        list(client.watch_tuning(TUNING))


def test_a_server_on_this_machine_is_reached_past_a_proxy(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy of http_proxy is for servers elsewhere."""
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.script("GetServerInfo", scripted_server.server_info())

    with Client(server.address) as client:
        assert client.server_info().version


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("127.0.0.1:50051", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("10.0.0.7:50051", False),
        ("unitune.example.com:443", False),
    ],
)
def test_only_addresses_of_this_machine_do_without_a_proxy(address: str, is_here: bool) -> None:
    """Loopback by number or by name."""
    assert is_here == is_this_machine(address)


def test_watch_gives_up_when_the_server_stays_away() -> None:
    """Patience ends: the last error is raised, naming the address."""
    with Client("127.0.0.1:1", reconnect_s=0.5) as client, pytest.raises(Unavailable) as raised:
        list(client.watch_tuning(TUNING))

    assert "no UniTune server answers at 127.0.0.1:1" == raised.value.message


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    """The first call names the address instead of waiting."""
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable) as raised:
        client.server_info()

    assert ("UNAVAILABLE", "no UniTune server answers at 127.0.0.1:1") == (raised.value.reason, raised.value.message)


def test_tune_creates_and_watches_to_the_end(server: ScriptedServer, client: Client) -> None:
    """The tuning that comes back is READY, and every event was shown."""
    server.script("CreateTuning", scripted_server.tuning("QUEUED"))
    server.script("WatchTuning", scripted_server.tuning_events("queued", "started", "progress", "ready"))
    seen: list[events.TuningEvent] = []

    tuning = client.tune("tenants/default/images/i1", on_event=seen.append, updates=128)

    assert (events.TuningState.READY, "d1") == (tuning.state, tuning.weights.digest)
    assert ["TuningQueued", "TuningStarted", "TuningProgress", "TuningReady"] == [
        type(event).__name__ for event in seen
    ]
    assert 128 == server.requests["CreateTuning"][0].config.updates


def test_list_tunings_reads_every_page(server: ScriptedServer, client: Client) -> None:
    """Pages are followed by their token, with the wanted state in each request."""
    first = tuning_pb2.ListTuningsResponse(tunings=[scripted_server.tuning("READY")] * 2, next_page_token="more")
    server.script("ListTunings", first, tuning_pb2.ListTuningsResponse(tunings=[scripted_server.tuning("READY")]))

    names = [tuning.name for tuning in client.list_tunings(state="READY")]

    assert [TUNING] * 3 == names
    assert [("", tuning_pb2.Tuning.STATE_READY), ("more", tuning_pb2.Tuning.STATE_READY)] == [
        (request.page_token, request.state) for request in server.requests["ListTunings"]
    ]


def test_cancel_and_delete_tuning(server: ScriptedServer, client: Client) -> None:
    """Both go by name; a missing one is NotFound."""
    server.script("CancelTuning", scripted_server.tuning("CANCELLED"))
    server.script("DeleteTuning", Empty(), NotFound("no such tuning", reason="TUNING_NOT_FOUND"))

    assert "CANCELLED" == client.cancel_tuning(TUNING).state
    client.delete_tuning(TUNING, allow_missing=True)
    with pytest.raises(NotFound, match="no such tuning"):
        client.delete_tuning(TUNING)

    assert [True, False] == [request.allow_missing for request in server.requests["DeleteTuning"]]


def test_create_is_repeated_under_one_request_id(server: ScriptedServer, client: Client) -> None:
    """A create that found the server away is repeated with the same id, so it can never tune twice."""
    away = Unavailable("starting", reason="STARTING")
    server.script("CreateTuning", away, scripted_server.tuning("QUEUED"))

    client.create_tuning("tenants/default/images/i1")

    ids = [request.request_id for request in server.requests["CreateTuning"]]
    assert 2 == len(ids) and 1 == len(set(ids))


def test_server_info_tells_defaults_and_limits(server: ScriptedServer, client: Client) -> None:
    """The server's description arrives field by field."""
    server.script("GetServerInfo", scripted_server.server_info(vocabulary=["cat", "dog"]))

    info = client.server_info()

    assert ("stickerbook", ("cat", "dog")) == (info.base_model.name, info.base_model.vocabulary)
    assert (128, 0.8, 8) == (info.tuning_defaults.updates, info.sampling_defaults.strength, info.limits.seeds)
    assert ("unitune", "imagic", "dreambooth", "textual_inversion", "sdedit", "prompt_to_prompt") == info.methods
    assert ("ddim", "euler", "dpmpp_2m", "lcm", "euler_ancestral", "tcd") == info.schedulers
    assert 500 == info.method_tuning_defaults["imagic"].embedding_updates
    assert 0.7 == info.method_sampling_defaults["imagic"].eta


def test_one_client_serves_many_threads(server: ScriptedServer, client: Client) -> None:
    """Edits of several threads run side by side on one connection."""
    holds = [Hold(), Hold()]
    for hold in holds:
        server.script("Edit", [*scripted_server.edit_events([])[:1], hold])
    streams = [client.edit(TUNING, "a dog") for _ in holds]
    threads = [threading.Thread(target=next, args=(stream,)) for stream in streams]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert all(hold.reached.wait(10) for hold in holds)
    for stream in streams:
        stream.close()
    assert all(hold.left.wait(10) for hold in holds)


def test_a_closed_client_says_so(server: ScriptedServer) -> None:
    """After close every method refuses; closing twice is harmless."""
    client = Client(server.address)
    client.close()
    client.close()

    with pytest.raises(RuntimeError, match=f"<Client of {server.address}, closed> cannot be used any more"):
        client.server_info()


def test_closing_waits_for_what_grpc_has_to_say(server: ScriptedServer) -> None:
    """A call that close ends has ended when its loop is closed: no event comes for it later."""
    tasks = list[asyncio.Task[Any]]()

    def remembered(loop: asyncio.AbstractEventLoop, call: Any, **options: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.Task(call, loop=loop, **options))
        return tasks[-1]

    for _ in range(10):
        server.script("Edit", [*scripted_server.edit_events([b"one"]), Hold()])
        with Client(server.address) as client:
            client._loop.call_soon_threadsafe(client._loop.set_task_factory, remembered)
            stream = client.edit(TUNING, "a dog")
            next(stream)

    assert tasks and not [task for task in tasks if task.cancelled()]


def test_a_client_closed_by_another_thread_leaves_nobody_waiting(server: ScriptedServer) -> None:
    """Threads in the middle of a stream are told that the client is closed, and end."""
    told = list[BaseException]()

    def follow(stream: Iterator[Any]) -> None:
        try:
            list(stream)
        except BaseException as error:
            told.append(error)

    for _ in range(25):
        holds = [Hold() for _ in range(3)]
        server.script("Edit", *[[scripted_server.edit_events([])[0], hold] for hold in holds])
        client = Client(server.address)
        threads = [threading.Thread(target=follow, args=[client.edit(TUNING, "a dog")], daemon=True) for _ in holds]
        for thread in threads:
            thread.start()
        for hold in holds:
            assert hold.reached.wait(10)
        client.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()

    assert {RuntimeError} == {type(error) for error in told}
    assert all("cannot be used any more" in str(error) for error in told)


def test_an_unclosed_client_warns(server: ScriptedServer) -> None:
    """Forgetting close is a ResourceWarning that names the client, and its thread ends."""
    server.script("GetServerInfo", scripted_server.server_info())
    client = Client(server.address)
    client.server_info()
    thread = client._thread

    with pytest.warns(ResourceWarning, match=f"unclosed <Client of {server.address}>"):
        del client
        gc.collect()

    thread.join(10)
    assert not thread.is_alive()


async def test_an_unclosed_async_client_warns(server: ScriptedServer) -> None:
    """The same for AsyncClient, once it has connected; one that never connected has nothing to close."""
    server.script("GetServerInfo", scripted_server.server_info())
    client = AsyncClient(server.address)
    await client.server_info()

    with pytest.warns(ResourceWarning, match="unclosed <AsyncClient of"):
        del client
        gc.collect()


def test_a_program_that_forgets_its_stream_still_ends(server: ScriptedServer) -> None:
    """Leaving with a client and an edit open neither hangs nor fails."""
    server.script("Edit", [*scripted_server.edit_events([])[:1], Hold()])
    program = (
        "import sys; from unitune_client import Client\n"
        f"client = Client({server.address!r}); stream = client.edit({TUNING!r}, 'a dog'); print(next(stream).edit)\n"
    )
    root = Path(unitune_client.__file__).parents[1]

    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)

    assert (0, EDIT) == (done.returncode, done.stdout.strip())


def test_both_clients_have_the_same_methods() -> None:
    """Every public method has the same name and the same parameters in both."""

    def public(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        shown = [(name, method) for name, method in methods if not name.startswith("_") or name == "__init__"]
        return {name: [str(one) for one in inspect.signature(method).parameters.values()] for name, method in shown}

    assert public(AsyncClient) == public(Client)
    assert {"edit", "edit_to_end", "tune", "watch_tuning", "upload_image", "close"} <= public(Client).keys()


class InterruptAt:
    """While entered, raises KeyboardInterrupt in this thread once, at the n-th line that it runs in some files.

    As Ctrl-C does: between any two lines. `raised` says whether there were so many.
    """

    def __init__(self, n: int, files: set[str]) -> None:
        self.left, self.files, self.raised = n, files, False

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, what: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        if what == "line" and not self.raised:
            self.left -= 1
            if self.left == 0:
                self.raised = True
                raise KeyboardInterrupt
        return self._trace


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_interrupt_anywhere_is_an_interrupt(server: ScriptedServer) -> None:
    """Whatever line it strikes while a stream is read, the caller gets KeyboardInterrupt and the client goes on."""
    files = {inspect.getfile(part) for part in (Client, asyncio.base_events, asyncio.selector_events)}
    with Client(server.address) as client:
        for n in itertools.count(1):
            server.script("WatchTuning", scripted_server.tuning_events("queued", "ready"))
            server.script("GetTuning", scripted_server.tuning("READY"))
            interrupt, heard = InterruptAt(n, files), False
            stream = client.watch_tuning(TUNING)
            try:
                with interrupt:
                    list(stream)
            except KeyboardInterrupt:
                heard = True
            assert heard == interrupt.raised
            assert client.get_tuning(TUNING).state == events.TuningState.READY
            server._answers["WatchTuning"].clear()  # an early interrupt comes before the call
            if not interrupt.raised:
                break
    assert n > 40
