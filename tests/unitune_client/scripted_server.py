"""A real server on loopback whose servicers answer from a script, and a wire to it that can be cut.

The server runs in a thread of its own, so that it answers blocking clients, asyncio clients and other processes alike.
A call that no script expects is answered with UNIMPLEMENTED by name, and fails the test; so does an answer that was
never asked for.
"""

import asyncio
import hashlib
import io
import socket
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from google.protobuf.message import Message
from PIL import Image

from tests.configs import sampling_config, tuning_config
from unitune import serving
from unitune.choices import BOUND_TO_NULL_TEXT, tuned_by
from unitune.errors import Internal, UniTuneError, to_status
from unitune.options import SAMPLING, Flat, put_words
from unitune.v1 import (
    edit_pb2,
    edit_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    key_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    tuning_pb2,
    tuning_pb2_grpc,
    usage_pb2_grpc,
)

TUNING = "tenants/default/tunings/t1"
EDIT = "tenants/default/edits/e1"

# A unary answer is a message, an error or a function of the request. A stream's is a list of events, or a function of
# the request that returns one; among the events an error ends the stream, and an asyncio-free `Hold` holds it.
Answer = Any


class Hold:
    """Stands in a stream's events: waits until the client goes away. `reached` and `left` are set on the way."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.left = threading.Event()

    async def wait(self) -> None:
        """Wait for the end of the call."""
        self.reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()


class ScriptedServer:
    """Answers each method with the answers scripted for it, in order, and remembers the requests."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        self._unexpected: list[str] = []

    def script(self, method: str, *answers: Answer) -> None:
        """Add answers for a method, such as `GetTuning`."""
        self._answers[method].extend(answers)

    def check(self) -> None:
        """Raises AssertionError for scripted answers that nobody asked for, and for calls that no script expected."""
        unused = {method: len(answers) for method, answers in self._answers.items() if answers}
        assert not unused, f"scripted answers that were never used: {unused}"
        assert not self._unexpected, f"calls without a script: {self._unexpected}"

    def next_answer(self, method: str, request: Any) -> Answer:
        """The next answer of a method. Raises Internal for a call without a script."""
        self.requests[method].append(request)
        if not self._answers[method]:
            self._unexpected.append(method)
            raise Internal(f"the script has no answer for {method}", reason="UNSCRIPTED")
        answer = self._answers[method].pop(0)
        return answer(request) if callable(answer) else answer

    async def unary(self, method: str, request: Any) -> Any:
        """Answer one call with one message."""
        answer = self.next_answer(method, request)
        if isinstance(answer, UniTuneError):
            raise answer
        return answer

    async def stream(self, method: str, request: Any) -> AsyncIterator[Any]:
        """Answer one call with events."""
        answer = self.next_answer(method, request)
        for event in [answer] if isinstance(answer, UniTuneError) else answer:
            if isinstance(event, UniTuneError):
                raise event
            if isinstance(event, Hold):
                await event.wait()
            else:
                yield event

    def check_edit(self, request: Any) -> list[Any]:
        """Answer a request that is to be validated only: as scripted, or accepted without warnings."""
        if self._answers["CheckEdit"]:
            answer = self.next_answer("CheckEdit", request)
            if isinstance(answer, UniTuneError):
                raise answer
            return answer
        self.requests["CheckEdit"].append(request)
        events = [event for event in edit_events([]) if event.WhichOneof("event") in ("accepted", "done")]
        method = Flat(request.config).method or "unitune"
        if tuned_by(method, Flat(request.config).inversion):
            config = events[0].accepted.tuning_config
            config.CopyFrom(request.tuning_config)
            if method != "unitune":
                put_words(config, tuning_words(method, request))
        return events

    def check_compare(self, request: Any) -> list[Any]:
        """Answer a comparison that is to be validated only: as scripted, or accepted for the methods that are named."""
        if self._answers["CheckCompare"]:
            answer = self.next_answer("CheckCompare", request)
            if isinstance(answer, UniTuneError):
                raise answer
            return answer
        self.requests["CheckCompare"].append(request)
        log = compare_events({Flat(entry).method: [b""] for entry in request.methods})
        return [event for event in log if event.WhichOneof("event") in ("accepted", "done")]

    def register(self, server: grpc.aio.Server) -> list[str]:
        """Add the servicers; their full names."""
        image_pb2_grpc.add_ImageServiceServicer_to_server(_Images(self), server)
        tuning_pb2_grpc.add_TuningServiceServicer_to_server(_Tunings(self), server)
        edit_pb2_grpc.add_EditServiceServicer_to_server(_Edits(self), server)
        server_pb2_grpc.add_ServerServiceServicer_to_server(_Server(self), server)
        key_pb2_grpc.add_KeyServiceServicer_to_server(_Keys(self), server)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(_Usage(self), server)
        return [f"unitune.v1.{name}Service" for name in ("Image", "Tuning", "Edit", "Server", "Key", "Usage")]


class _Images(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    async def UploadImage(self, parts: AsyncIterator[Any], context: Any) -> Any:
        return await self._script.unary("UploadImage", [part async for part in parts])

    async def ListImages(self, request: Any, context: Any) -> Any:
        return await self._script.unary("ListImages", request)

    async def GetImage(self, request: Any, context: Any) -> Any:
        return await self._script.unary("GetImage", request)

    async def DeleteImage(self, request: Any, context: Any) -> Any:
        return await self._script.unary("DeleteImage", request)


class _Tunings(tuning_pb2_grpc.TuningServiceServicer):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    async def CreateTuning(self, request: Any, context: Any) -> Any:
        if request.validate_only:  # needs no script
            self._script.requests["CheckTuning"].append(request)
            return tuning("QUEUED")
        return await self._script.unary("CreateTuning", request)

    async def GetTuning(self, request: Any, context: Any) -> Any:
        return await self._script.unary("GetTuning", request)

    async def ListTunings(self, request: Any, context: Any) -> Any:
        return await self._script.unary("ListTunings", request)

    async def CancelTuning(self, request: Any, context: Any) -> Any:
        return await self._script.unary("CancelTuning", request)

    async def DeleteTuning(self, request: Any, context: Any) -> Any:
        return await self._script.unary("DeleteTuning", request)

    async def WatchTuning(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for event in self._script.stream("WatchTuning", request):
            yield event


class _Edits(edit_pb2_grpc.EditServiceServicer):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    async def Edit(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.validate_only:  # needs no script, and may have one as `CheckEdit`
            for event in self._script.check_edit(request):
                yield event
            return
        async for event in self._script.stream("Edit", request):
            yield event

    async def Compare(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.validate_only:  # needs no script, and may have one as `CheckCompare`
            for event in self._script.check_compare(request):
                yield event
            return
        async for event in self._script.stream("Compare", request):
            yield event

    async def GetEdit(self, request: Any, context: Any) -> Any:
        return await self._script.unary("GetEdit", request)

    async def CancelEdit(self, request: Any, context: Any) -> Any:
        return await self._script.unary("CancelEdit", request)


class _Server(server_pb2_grpc.ServerServiceServicer):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        return await self._script.unary("GetServerInfo", request)


class _Usage(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    async def ListUsage(self, request: Any, context: Any) -> Any:
        return await self._script.unary("ListUsage", request)


class _Keys(key_pb2_grpc.KeyServiceServicer):
    """Remembers the credential of each call, too."""

    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    async def _answer(self, method: str, request: Any, context: Any) -> Any:
        sent = dict(context.invocation_metadata()).get("authorization", "")
        self._script.requests["credentials"].append(sent)
        return await self._script.unary(method, request)

    async def CreateKey(self, request: Any, context: Any) -> Any:
        return await self._answer("CreateKey", request, context)

    async def ListKeys(self, request: Any, context: Any) -> Any:
        return await self._answer("ListKeys", request, context)

    async def RotateKey(self, request: Any, context: Any) -> Any:
        return await self._answer("RotateKey", request, context)

    async def RevokeKey(self, request: Any, context: Any) -> Any:
        return await self._answer("RevokeKey", request, context)


@contextmanager
def running() -> Iterator[ScriptedServer]:
    """A scripted server that accepts calls; at the end its script must be used up."""
    script = ScriptedServer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait_for(call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, loop).result(timeout=30)

    server = wait_for(serving.start("127.0.0.1:0", script.register))
    script.address = server.address
    try:
        yield script
    finally:
        wait_for(server.stop(0))
        wait_for(_rest())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    script.check()


async def _rest() -> None:
    """Let what was cancelled come to its end: calls that are destroyed in their midst are told with a traceback."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)


class Wire:
    """Passes bytes between clients and a server, until it is cut: then every connection on it breaks at once."""

    def __init__(self, to: str) -> None:
        self._to = (to.rpartition(":")[0], int(to.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break the connections there are; new ones are accepted."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            _break(one)

    def close(self) -> None:
        """Break the connections there are and accept no more."""
        _break(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._to)
            self._sockets += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    _break(source)
    _break(target)


def _break(one: socket.socket) -> None:
    # close alone would leave a thread in recv, and the connection open under it.
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def uploaded(parts: list[image_pb2.UploadImageRequest]) -> image_pb2.Image:
    """Answers an upload as the real server does."""
    data = b"".join(part.chunk for part in parts[1:])
    digest = hashlib.sha256(data).hexdigest()
    return image_pb2.Image(
        name=f"{parts[0].header.parent}/images/{digest}",
        sha256=digest,
        size_bytes=len(data),
        width=64,
        height=48,
        media_type="image/png",
    )


def tuning(state: str, **fields: Any) -> tuning_pb2.Tuning:
    """A tuning in a state such as `READY`."""
    config = tuning_config(
        method="unitune", mode="full", updates=128, batch=4, learning_rate=1e-4, rare_tokens="beikkpic"
    )
    return tuning_pb2.Tuning(
        name=TUNING, image="tenants/default/images/i1", config=config, state=f"STATE_{state}", key="k1", **fields
    )


def tuning_events(*names: str) -> list[tuning_pb2.TuningEvent]:
    """Events of a tuning, numbered from 1: `queued`, `started`, `progress`, `ready`, `cancelled`."""
    kinds: dict[str, Callable[[int], Message]] = {
        "queued": lambda number: tuning_pb2.TuningEvent.Queued(position=1),
        "started": lambda number: tuning_pb2.TuningEvent.Started(attempt=1),
        "progress": lambda number: tuning_pb2.TuningProgress(
            update=number, total=128, loss=0.5, left_s=9, learning_rate=1e-4, stage="STAGE_UPDATING"
        ),
        "ready": lambda number: tuning("READY", weights=tuning_pb2.WeightsRef(key="k1", digest="d1", size_bytes=7)),
        "cancelled": lambda number: tuning("CANCELLED"),
    }
    numbered = enumerate(names, start=1)
    return [tuning_pb2.TuningEvent(sequence=number, **{name: kinds[name](number)}) for number, name in numbered]


def from_log(log: list[tuning_pb2.TuningEvent]) -> Callable[[Any], list[tuning_pb2.TuningEvent]]:
    """Answers a watch as the real server does: with the events after the one that the client has."""
    return lambda request: [event for event in log if event.sequence > request.after_sequence]


def edit_events(
    pngs: Iterable[bytes],
    *,
    steps: int = 2,
    seeds: Iterable[int] = (0,),
    warnings: Iterable[str] = (),
    mask: bytes = b"",
    tuning: tuning_pb2.TuningConfig | None = None,
) -> list[edit_pb2.EditEvent]:
    """Events of an edit that succeeds with these pictures; `tuning` is what it is told to need."""
    kinds = edit_pb2.EditEvent
    config = sampling_config(
        method="unitune", scheduler="ddim", num_inference_steps=20, guidance_scale=7.5, strength=0.8
    )
    accepted = kinds.Accepted(
        edit=EDIT, config=config, effective_strength=0.8, seeds=seeds, warnings=warnings, tuning_config=tuning
    )
    events = [kinds(accepted=accepted), kinds(loading=kinds.Loading(warm=False, refit_s=0.25, probe_ratio=0.01))]
    events += [kinds(step=kinds.Step(index=index, total=steps)) for index in range(steps)]
    for index, (seed, png) in enumerate(zip(seeds, pngs, strict=False)):
        events.append(kinds(image=kinds.EditedImage(index=index, seed=seed, png=png, mask=mask, blocked=not png)))
    timings = edit_pb2.Timings(refit_s=0.25, encode_s=0.05, denoise_s=1.5, decode_s=0.1, total_s=2.0)
    events.append(kinds(done=kinds.Done(timings=timings, tuning=TUNING)))
    for number, event in enumerate(events, start=1):
        event.sequence = number
    return events


def tuning_words(method: str, request: edit_pb2.EditRequest) -> dict[str, Any]:
    """The method of an edit's tuning, and what the edit itself binds in it."""
    match tuned_by(method, Flat(request.config).inversion):
        case "imagic":
            return {"method": "imagic", "prompt": request.prompt}
        case "null_text":
            return {"method": "null_text"} | {name: getattr(Flat(request.config), name) for name in BOUND_TO_NULL_TEXT}
        case other:
            return {"method": other}


def compare_events(
    turns: Mapping[str, list[bytes] | UniTuneError],
    *,
    seeds: Sequence[int] = (0,),
    mask: bytes = b"",
    scores: edit_pb2.Scores | None = None,
) -> list[edit_pb2.CompareEvent]:
    """Events of a comparison in which each method gives these pictures or fails; `sdedit` tunes nothing."""
    kinds = edit_pb2.CompareEvent
    events = [kinds(accepted=kinds.Accepted(methods=map(SAMPLING["method"].number, turns)))]
    for method, outcome in turns.items():
        edit = edit_events([], seeds=seeds)[:4]
        if method != "sdedit":
            edit[1:1] = [edit_pb2.EditEvent(sequence=2, tuning=one) for one in tuning_events("queued", "progress")]
        events += [kinds(method=SAMPLING["method"].number(method), edit=event) for event in edit]
        if isinstance(outcome, UniTuneError):
            result = kinds.Result(prompt="a cat", error=to_status(outcome))
        else:
            tuned = {"tuning_s": 12.5, "size_bytes": 3456, "tuning": TUNING} if method != "sdedit" else {}
            images = [
                edit_pb2.EditEvent.EditedImage(index=index, seed=seed, png=png, mask=mask, scores=scores)
                for index, (seed, png) in enumerate(zip(seeds, outcome, strict=True))
            ]
            timings = edit_pb2.Timings(denoise_s=1.5, total_s=2.0)
            result = kinds.Result(images=images, prompt="a cat", edit_s=2.0, timings=timings, **tuned)
        events.append(kinds(method=SAMPLING["method"].number(method), result=result))
    events.append(kinds(done=kinds.Done(total_s=17.0)))
    for number, event in enumerate(events, start=1):
        event.sequence = number
    return events


def failed(error: UniTuneError, sequence: int = 1) -> edit_pb2.EditEvent:
    """The event that ends an edit which failed."""
    return edit_pb2.EditEvent(sequence=sequence, failed=to_status(error))


def server_info(vocabulary: Iterable[str] = ()) -> server_pb2.ServerInfo:
    """What the server says of itself."""
    return server_pb2.ServerInfo(
        version="0.1.0",
        base_model=server_pb2.BaseModel(name="stickerbook", digest="b1", width=64, height=64, vocabulary=vocabulary),
        tuning_defaults=tuning("READY").config,
        sampling_defaults=sampling_config(
            method="unitune", scheduler="ddim", num_inference_steps=20, guidance_scale=7.5, strength=0.8
        ),
        limits=server_pb2.Limits(
            upload_bytes=16 << 20, upload_pixels=64_000_000, chunk_bytes=256 << 10, prompt_characters=2000, seeds=8
        ),
        methods=edit_pb2.SamplingConfig.Method.values()[1:],
        schedulers=edit_pb2.SamplingConfig.Scheduler.values()[1:],
        method_tuning_defaults=[
            tuning("READY").config,
            tuning_config(method="imagic", updates=1000, embedding_updates=500),
            tuning_config(method="dreambooth", updates=800, rare_tokens="beikkpic", num_class_images=200),
            tuning_config(method="textual_inversion", updates=5000, rare_tokens="beikkpic", num_vectors=1),
        ],
        method_sampling_defaults=[sampling_config(method="imagic", strength=1, eta=0.7)],
    )


def png(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> bytes:
    """A PNG file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()
