"""What the clients send again, and what their callers hear of it."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from tests.certificates import Authority
from tests.configs import entry, sampling_config
from tests.unitune_client import scripted_server
from tests.unitune_client.scripted_server import TUNING, ScriptedServer
from unitune.errors import (
    Aborted,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UniTuneError,
)
from unitune.v1 import edit_pb2, edit_pb2_grpc, tuning_pb2, tuning_pb2_grpc
from unitune_client import AsyncClient, Client, events, messages
from unitune_client.repeats import ToldEdit

DOWN = Unavailable("the sampler does not answer now", reason="BACKEND_DOWN", retry_after_s=0.05)
DRAINING = Unavailable("the server is stopping; ask again", reason="DRAINING")
FULL = ResourceExhausted("as many edits wait as may", reason="QUEUE_FULL", retry_after_s=0.05)
NO_EDIT = NotFound("there is no such edit", reason="EDIT_NOT_FOUND")
SECOND = "tenants/default/edits/e2"


def attempt(name: str = "") -> list[edit_pb2.EditEvent]:
    """The events of an edit of two seeds: accepted, loading, three steps, two images, done."""
    log = scripted_server.edit_events([b"one", b"two"], steps=3, seeds=[5, 6])
    log[0].accepted.edit = name or log[0].accepted.edit
    return log


def refused(error: UniTuneError) -> list[Any]:
    """An attempt that the server refuses before its first event."""
    return [error]


@pytest.mark.parametrize("as_event", [True, False])
def test_a_lost_edit_goes_on_with_what_was_not_told(server: ScriptedServer, as_event: bool) -> None:
    """Lost after its first picture, the same request is sent again; a refusal in between, of a server that is full by
    then, is waited out. Nothing is told twice but the name, and that it was lost is told once."""
    first = attempt()[:6]
    server.script(
        "Edit", [*first, scripted_server.failed(DOWN, 7) if as_event else DOWN], refused(DRAINING), refused(FULL)
    )
    server.script("Edit", attempt(SECOND))
    server.script("CancelEdit", NO_EDIT)

    seen: list[events.EditEvent] = []
    retried: list[str] = []
    with Client(server.address, on_retry=lambda error, pause_s: retried.append(error.reason)) as client:
        result = client.edit_to_end(TUNING, "a dog", seeds=[5, 6], on_event=seen.append)

    assert retried == ["BACKEND_DOWN", "QUEUE_FULL"]  # grpc itself had asked again after DRAINING
    assert [type(event).__name__ for event in seen] == [
        *("EditAccepted", "EditLoading", "EditStep", "EditStep", "EditStep", "EditedImage"),
        *("Retrying", "EditAccepted", "EditedImage", "EditDone"),
    ]
    assert isinstance(seen[6], events.Retrying) and seen[6].error.reason == "BACKEND_DOWN"
    assert (result.edit, [image.png for image in result.images]) == (SECOND, [b"one", b"two"])
    assert len({request.SerializeToString() for request in server.requests["Edit"]}) == 1
    assert [request.name for request in server.requests["CancelEdit"]] == [scripted_server.EDIT]


def test_a_refusal_of_the_first_request_for_a_moment_is_not_noticed(server: ScriptedServer) -> None:
    """Before the edit was accepted a server that stops is asked again, and nobody hears of it."""
    server.script("Edit", *[refused(DRAINING)] * 5, attempt())

    with Client(server.address) as client:
        seen = list(client.edit(TUNING, "a dog"))

    assert isinstance(seen[0], events.EditAccepted) and len(seen) == 8


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("wrong", reason="WRONG"),
        DataLoss("lost", reason="WEIGHTS_CORRUPT"),
        Aborted("another", reason="ETAG_MISMATCH"),
        FULL,
        DeadlineExceeded("too slow", reason="READER_TOO_SLOW"),
        Cancelled("stopped", reason="EDIT_CANCELLED"),
    ],
    ids=lambda error: error.reason,
)
def test_what_is_refused_is_not_sent_again(server: ScriptedServer, error: UniTuneError) -> None:
    """One request, one error; a server that is full is left to the caller, who knows when to come again."""
    server.script("Edit", refused(error))

    with Client(server.address) as client, pytest.raises(type(error)) as raised:
        client.edit_to_end(TUNING, "a dog")

    assert (error.reason, error.retry_after_s) == (raised.value.reason, raised.value.retry_after_s)


def test_a_tuning_that_failed_is_not_asked_for_again(server: ScriptedServer) -> None:
    """The error of the tuning that an edit waited for is the edit's, even if something was unavailable."""
    lost = Unavailable("the tuner was lost three times", reason="TUNER_LOST")
    told = scripted_server.failed(lost).failed
    failed = edit_pb2.EditEvent(tuning=tuning_pb2.TuningEvent(sequence=1, failed=told))
    server.script("Edit", [attempt()[0], failed, edit_pb2.EditEvent(failed=told)])

    with Client(server.address) as client, pytest.raises(Unavailable, match="lost three times"):
        client.edit_to_end(TUNING, "a dog")


async def test_an_edit_that_ends_every_sampler_is_given_up(server: ScriptedServer) -> None:
    """Lost five times at one place, it raises the last loss; steps that are new begin the count anew."""
    server.script("Edit", [*attempt()[:3], DOWN], *[[*attempt()[:4], DOWN]] * 5)
    server.script("CancelEdit", *[NO_EDIT] * 5)

    async with AsyncClient(server.address) as client:
        with pytest.raises(Unavailable) as raised:
            await client.edit_to_end(TUNING, "a dog")

    assert raised.value.reason == "BACKEND_DOWN" and len(server.requests["Edit"]) == 6


def test_an_edit_that_no_sampler_had_goes_on(server: ScriptedServer) -> None:
    """While the only sampler is away, attempts are taken and lost at once, which is no fault of the edit."""
    server.script("Edit", *[[attempt()[0], DOWN] for _ in range(7)], attempt(SECOND))
    server.script("CancelEdit", *[NO_EDIT] * 7)
    with Client(server.address) as client:
        assert len(client.edit_to_end(TUNING, "a dog").images) == 2


def test_an_edit_that_no_sampler_had_is_given_up_at_last() -> None:
    """When that has lasted for as long as a server may be away; a loss at which a sampler had worked counts at once."""
    accepted, loading = (messages.edit_event(message, messages.Assembly()) for message in attempt()[:2])
    assert isinstance(accepted, events.EditAccepted) and isinstance(loading, events.EditLoading)

    def losses(patience_s: float, *seen: events.EditEvent) -> int:
        told = ToldEdit()
        told.tells(loading)
        for number in range(1, 20):
            for event in seen:
                told.tells(event)
            try:
                told.lost(DOWN, patience_s)
            except Unavailable:
                return number
        return 20

    assert losses(100.0, accepted) == 20
    assert losses(-1.0, accepted) == 5
    assert losses(100.0, accepted, loading) == 5


def test_a_client_without_patience_repeats_nothing(server: ScriptedServer) -> None:
    """`reconnect_s=0` leaves all of it to the caller."""
    server.script("Edit", [*attempt()[:3], DOWN])

    with Client(server.address, reconnect_s=0) as client, pytest.raises(Unavailable) as raised:
        client.edit_to_end(TUNING, "a dog")

    assert raised.value.reason == "BACKEND_DOWN"


def test_repeats_end_with_the_callers_time(server: ScriptedServer) -> None:
    """A server that asks to come later than `timeout_s` is not waited for, and one that hangs ends with it."""
    later = Unavailable("not now", reason="BACKEND_DOWN", retry_after_s=60)
    hold = scripted_server.Hold()
    server.script("Edit", [attempt()[0], later], [*attempt()[:2], DOWN], [attempt(SECOND)[0], hold])
    server.script("CancelEdit", NO_EDIT)

    with Client(server.address) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="not now"):
            client.edit_to_end(TUNING, "a dog", timeout_s=20)
        assert time.monotonic() - began < 20
        with pytest.raises(Unavailable) as raised:
            client.edit_to_end(TUNING, "a dog", timeout_s=2)

    assert raised.value.reason == "DEADLINE_EXCEEDED" and hold.left.wait(10)


def test_closing_a_client_ends_its_pauses(server: ScriptedServer) -> None:
    """A thread that waits for the next attempt is told at once that the client is closed."""
    server.script("Edit", [attempt()[0], Unavailable("not now", reason="BACKEND_DOWN", retry_after_s=90)])
    client = Client(server.address)
    paused, told = threading.Event(), list[BaseException]()

    def follow() -> None:
        try:
            for event in client.edit(TUNING, "a dog"):
                if isinstance(event, events.Retrying):
                    paused.set()
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert paused.wait(30)
    client.close()
    thread.join(30)

    assert not thread.is_alive() and isinstance(told[0], RuntimeError)


async def test_an_edit_is_cancelled_by_any_name_that_it_had(server: ScriptedServer) -> None:
    """Between two attempts at once, without a call, and after another attempt began by that one's name."""
    later = Unavailable("not now", reason="BACKEND_DOWN", retry_after_s=90)
    hold = scripted_server.Hold()
    cancelled = edit_pb2.Edit(name=SECOND, state="STATE_CANCELLED")
    server.script("Edit", [attempt()[0], later], [attempt()[0], DOWN], [attempt(SECOND)[0], hold])
    server.script("CancelEdit", NO_EDIT, cancelled)

    async with AsyncClient(server.address) as client:
        edit = client.edit(TUNING, "a dog")
        assert [type(await anext(edit)) for _ in range(2)] == [events.EditAccepted, events.Retrying]
        waiting = asyncio.ensure_future(anext(edit))
        await asyncio.sleep(0)
        assert (await client.cancel_edit(scripted_server.EDIT)).state == events.EditState.CANCELLED
        with pytest.raises(Cancelled, match="the edit was cancelled"):
            await asyncio.wait_for(waiting, 30)
        assert not server.requests["CancelEdit"]

        edit = client.edit(TUNING, "a dog")
        names = [
            event.edit for event in [await anext(edit), await anext(edit), await anext(edit)] if hasattr(event, "edit")
        ]
        assert names == [scripted_server.EDIT, SECOND]
        await client.cancel_edit(scripted_server.EDIT)
        await edit.aclose()

    assert [request.name for request in server.requests["CancelEdit"]] == [scripted_server.EDIT, SECOND]


async def test_cancelling_a_task_ends_its_pause(server: ScriptedServer) -> None:
    """Who is cancelled between two attempts is so at once."""
    server.script("Edit", [attempt()[0], Unavailable("not now", reason="BACKEND_DOWN", retry_after_s=90)])
    paused = asyncio.Event()

    def on_event(event: events.EditEvent) -> None:
        if isinstance(event, events.Retrying):
            paused.set()

    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(client.edit_to_end(TUNING, "a dog", on_event=on_event))
        await asyncio.wait_for(paused.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)


def test_a_lost_comparison_goes_on_with_the_methods_that_are_left(server: ScriptedServer) -> None:
    """What has its result is not asked for again; the others keep their own options."""
    log = scripted_server.compare_events({"sdedit": [b"one"], "unitune": [b"two"]})
    at = next(index for index, event in enumerate(log) if event.WhichOneof("event") == "result")
    server.script("Compare", [*log[: at + 3], DOWN], scripted_server.compare_events({"unitune": [b"two"]}))

    seen: list[events.CompareEvent] = []
    with Client(server.address) as client:
        seen.extend(client.compare("tenants/default/images/i1", "a cat", {"sdedit": {}, "unitune": {"strength": 0.5}}))

    first, second = server.requests["Compare"]
    assert second.request_id == first.request_id and uuid.UUID(first.request_id).version == 4
    assert list(second.methods) == [entry("unitune", config=sampling_config(strength=0.5))]
    results = [(event.method, event.images[0].png) for event in seen if isinstance(event, events.CompareResult)]
    assert results == [("sdedit", b"one"), ("unitune", b"two")]
    kinds = [type(event) for event in seen]
    assert [kinds.count(kind) for kind in (events.CompareAccepted, events.Retrying, events.CompareDone)] == [1, 1, 1]
    edits = [event.event for event in seen if isinstance(event, events.CompareEdit) and event.method == "unitune"]
    assert [type(event).__name__ for event in edits].count("TuningQueued") == 1
    steps = [event.index for event in edits if isinstance(event, events.EditStep)]
    assert steps == [0, 1]


def test_a_lost_comparison_leaves_out_words_that_no_method_left_reads(server: ScriptedServer) -> None:
    """A server refuses a class noun without dreambooth: what was done takes its word along, and others keep theirs."""
    log = scripted_server.compare_events({"dreambooth": [b"one"], "prompt_to_prompt": [b"two"]})
    at = next(index for index, event in enumerate(log) if event.WhichOneof("event") == "result")
    server.script("Compare", [*log[: at + 1], DOWN], scripted_server.compare_events({"prompt_to_prompt": [b"two"]}))

    with Client(server.address) as client:
        words = {"class_noun": "cat", "base_prompt": "a cat on a beach"}
        seen = list(client.compare("tenants/default/images/i1", "a cat on a hill", **words))

    first, second = server.requests["Compare"]
    assert (first.class_noun, first.base_prompt) == ("cat", "a cat on a beach")
    assert (second.class_noun, second.base_prompt) == ("", "a cat on a beach")
    results = [event.method for event in seen if isinstance(event, events.CompareResult)]
    assert results == ["dreambooth", "prompt_to_prompt"]


def test_short_calls_are_repeated_too(server: ScriptedServer) -> None:
    """More often than grpc itself would, once a server has answered this client; tunings under one request id."""
    server.script("GetTuning", scripted_server.tuning("READY"), *[DRAINING] * 4, scripted_server.tuning("READY"))
    server.script("CreateTuning", *[DRAINING] * 4, scripted_server.tuning("QUEUED"))

    with Client(server.address) as client:
        client.get_tuning(TUNING)
        assert client.get_tuning(TUNING).state == "READY"
        client.create_tuning("tenants/default/images/i1")

    requests = server.requests["CreateTuning"]
    assert len(requests) == 5 and len({request.request_id for request in requests}) == 1


def test_a_deletion_is_repeated_and_may_have_been_done_before(server: ScriptedServer) -> None:
    """A repeat says that nothing may be there any more; the first attempt does not."""
    server.script("GetTuning", scripted_server.tuning("READY"))
    server.script("DeleteTuning", *[DRAINING] * 5, empty_pb2.Empty())
    with Client(server.address) as client:
        client.get_tuning(TUNING)
        client.delete_tuning(TUNING)

    requests = server.requests["DeleteTuning"]
    assert [request.allow_missing for request in requests][-1] and not requests[0].allow_missing


def test_an_address_that_never_answered_is_given_up_sooner() -> None:
    """It may be wrong: uploads and edits do not wait there as long as for a server that is known."""
    with Client("127.0.0.1:1", reconnect_s=0.5) as client:
        for call in (lambda: client.edit_to_end(TUNING, "a dog"), lambda: client.upload_image(b"GIF89a")):
            with pytest.raises(Unavailable, match=r"no UniTune server answers at 127\.0\.0\.1:1"):
                call()


def test_a_certificate_that_is_not_trusted_is_told_at_once(server: ScriptedServer, tmp_path: Path) -> None:
    """What is wrong with TLS stays wrong: no watch waits for it."""
    certificate = Authority.make(tmp_path).path.read_bytes()

    with Client(server.address, root_certificates=certificate) as client, pytest.raises(Unavailable, match="TLS"):
        list(client.watch_tuning(TUNING))


class ResetStreams(edit_pb2_grpc.EditServiceServicer, tuning_pb2_grpc.TuningServiceServicer):
    """Ends each stream's first call after its first event, as a proxy does whose server was killed: without details."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code, self._calls = code, list[str]()

    async def Edit(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for event in self._answer("Edit", attempt(), context):
            yield event

    async def WatchTuning(self, request: Any, context: Any) -> AsyncIterator[Any]:
        log = scripted_server.tuning_events("queued", "started", "ready")[request.after_sequence :]
        async for event in self._answer("WatchTuning", log, context):
            yield event

    async def _answer(self, method: str, log: list[Any], context: Any) -> AsyncIterator[Any]:
        self._calls.append(method)
        yield log[0]
        if self._calls.count(method) == 1:
            await context.abort(self._code, "Stream removed (RST_STREAM, error code 2)")
        for event in log[1:]:
            yield event


@asynccontextmanager
async def resetting(code: grpc.StatusCode) -> AsyncIterator[str]:
    """The address of such a server."""
    server = grpc.aio.server()
    edit_pb2_grpc.add_EditServiceServicer_to_server(ResetStreams(code), server)
    tuning_pb2_grpc.add_TuningServiceServicer_to_server(ResetStreams(code), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED])
async def test_a_stream_that_a_proxy_resets_goes_on(code: grpc.StatusCode) -> None:
    """Behind a proxy a killed server looks like an error of another kind, without our details."""
    async with resetting(code) as address, AsyncClient(address) as client:
        watched = [event.sequence async for event in client.watch_tuning(TUNING)]
        seen = [event async for event in client.edit(TUNING, "a dog", seeds=[5, 6])]

    assert watched == [1, 2, 3]
    (lost,) = [event for event in seen if isinstance(event, events.Retrying)]
    assert lost.error.reason == "CONNECTION_LOST" and isinstance(seen[-1], events.EditDone)
