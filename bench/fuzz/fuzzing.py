"""Sends changed requests, broken pictures and garbage to services that run, and collects what is wrong with answers."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.fuzz.answers import NO_END, Answer, answer_of
from bench.fuzz.broken_pictures import broken_pictures
from bench.fuzz.garbage import garbage, throw
from bench.fuzz.mutations import Mutations
from bench.fuzz.valid import UNITUNE, ValidCall, public_calls, sampler_calls, tuner_pool_calls
from bench.inputs import PICTURE
from bench.process_memory import memory_of
from bench.soak.services import NAMES, Services
from unitune import serving
from unitune.errors import UniTuneError
from unitune.v1 import edit_pb2, edit_pb2_grpc, image_pb2, image_pb2_grpc, sampler_pb2, sampler_pb2_grpc
from unitune_client import AsyncClient

# What one request may cost is small, so that a changed one that is taken does not compute for minutes.
SETTINGS = {
    "UNITUNE_EDIT_STEPS": "8",
    "UNITUNE_TUNING_PIXELS": "200000",
    "UNITUNE_TENANT_REQUESTS_PER_S": "0",
    "UNITUNE_THREADS": "1",
    "UNITUNE_LEASE_S": "5",
}
AT_ONCE = 12  # calls
LONGEST_S = 30.0  # that a caller waits for the end of a call
LONGEST_INTERNAL_S = 3.0  # a tuner's question may ask to wait for long
SHARES = {"public": 0.55, "sampler": 0.2, "internal": 0.2, "tuner": 0.05}  # of all requests
PARTS = 10  # after each memory is looked at
# The first parts warm the services up. After them private memory may grow by this, in MB or as a share.
WARM_PARTS, GROWTH_MB, GROWTH_SHARE = 4, 64.0, 0.2
GARBAGE_SHARE = 0.05
TOLD_AGAIN_S = 90.0
CALL = "/unitune.v1.EditService/GetEdit"
Say = Callable[[str], object]
Change = tuple[str, str, Any]  # of which port, what was done in words, and what begins the call


@dataclass
class Report:
    """What came back."""

    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    memory_mb: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)

    def note(self, port: str, what: str, answer: Answer) -> None:
        """One answer."""
        self.answers[port][answer.code] += 1
        if answer.fault:
            self.faults.append(f"{port}: {what}: {answer.fault}")


def fuzz(services: Services, requests: int, seed: int, say: Say, *, pictures: int | None = None) -> Report:
    """Send so many changed requests, and so many broken pictures, or all."""
    return asyncio.run(_fuzz(services, requests, Random(seed), say, pictures))


async def _fuzz(services: Services, requests: int, draws: Random, say: Say, pictures: int | None) -> Report:
    report, ports = Report(), services.ports
    logged = {name: services.log(name).stat().st_size for name in NAMES}
    async with _channels(ports) as channels:
        changes = {
            port: _changes(channels[port], calls, draws, LONGEST_INTERNAL_S if port == "internal" else LONGEST_S)
            for port, calls in (await _valid(services)).items()
        }
        for part in range(PARTS):
            began = time.monotonic()
            for port, share in SHARES.items():
                number = round(share * requests / PARTS)
                await _in_parallel(report, port, islice(changes[port], number))
                for _ in range(round(GARBAGE_SHARE * number)):
                    what, data = garbage(draws, CALL)
                    report.answers[port][f"{what}: {'answered' if await throw(ports[port], data) else 'closed'}"] += 1
            for name in NAMES:
                report.memory_mb[name].append(memory_of(services.process(name).pid).private / 1e6)
            say(f"part {part + 1} of {PARTS}: {time.monotonic() - began:.0f} s, {len(report.faults)} faults")
        corpus = list(broken_pictures(draws))
        chosen = corpus if pictures is None else draws.sample(corpus, pictures)
        await _in_parallel(report, "pictures", _of_pictures(channels["public"], chosen))
        say(f"{len(chosen)} broken pictures: {len(report.faults)} faults")
        for port, channel in channels.items():
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=LONGEST_S)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                report.faults.append(f"{port}: its health is {answer.status}")
    report.faults += await asyncio.to_thread(_afterwards, services, report, logged)
    return report


@asynccontextmanager
async def _channels(ports: dict[str, str]) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """A channel to each port, without repeated calls."""
    channels = {port: serving.channel(address) for port, address in ports.items()}
    try:
        yield channels
    finally:
        for channel in channels.values():
            await channel.close(None)


async def _valid(services: Services) -> dict[str, list[ValidCall]]:
    """What each port takes."""
    picture = PICTURE.read_bytes()
    async with AsyncClient(services.address) as client:
        image = (await client.upload_image(picture)).name
        tuning = await client.tune(image, updates=1, batch=1)
        edit = await client.edit_to_end(image, "a dog", method="sdedit", num_inference_steps=1)
    async with serving.channel(services.ports["sampler"]) as channel:
        info = await sampler_pb2_grpc.SamplerServiceStub(channel).GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
    sdedit = edit_pb2.SamplingConfig()
    sdedit.CopyFrom(info.sampling_defaults)
    sdedit.method, sdedit.num_inference_steps = edit_pb2.SamplingConfig.METHOD_SDEDIT, 2
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Check"]
    probe = ValidCall(health, health_pb2.HealthCheckRequest())
    return {
        "public": [*public_calls(picture, image, tuning.name, edit.edit), probe],
        "internal": [*tuner_pool_calls("0" * 64, tuning.name), probe],
        "sampler": [*sampler_calls(picture, _no_weights(), sdedit), probe],
        "tuner": [probe],
    }


def _no_weights() -> Any:
    return sampler_pb2.LoadRequest(weights={"path": "tunings/default/t-none/1", "digest": "0" * 64}).weights


def _changes(
    channel: grpc.aio.Channel, valid: Sequence[ValidCall], draws: Random, longest_s: float
) -> Iterator[Change]:
    """Endless changed calls."""
    changed = [(call, iter(Mutations(call.request, draws))) for call in valid]
    while True:
        call, mutations = draws.choice(changed)
        what, data = next(mutations)
        yield call.method.name, what, _begin(channel, call, data, draws.randbytes(40), longest_s)


def _begin(
    channel: grpc.aio.Channel, call: ValidCall, data: bytes, chunk: bytes, longest_s: float
) -> Callable[[], Any]:
    """What begins a call with these bytes as its request."""
    method = call.method
    path, read = f"/{method.containing_service.full_name}/{method.name}", GetMessageClass(method.output_type).FromString

    def begin() -> Any:
        if method.client_streaming:
            further = type(call.request)(chunk=chunk).SerializeToString()
            return channel.stream_unary(path, None, read)(iter([data, further]), timeout=longest_s)
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        return kind(path, None, read)(data, timeout=longest_s)

    return begin


def _of_pictures(channel: grpc.aio.Channel, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Change]:
    """Each file in each place where a caller sends one."""
    images, edits = image_pb2_grpc.ImageServiceStub(channel), edit_pb2_grpc.EditServiceStub(channel)
    whole = PICTURE.read_bytes()
    for what, data in pictures:
        yield "UploadImage", what, lambda data=data: images.UploadImage(_upload(data), timeout=LONGEST_S)
        for place in ("image_data", "mask"):
            request = edit_pb2.EditRequest(prompt="a dog", tuning_config=UNITUNE, image_data=whole, validate_only=True)
            setattr(request, place, data)
            if request.ByteSize() < serving.PUBLIC_REQUEST_BYTES:
                yield f"Edit's {place}", what, lambda request=request: edits.Edit(request, timeout=LONGEST_S)


def _upload(data: bytes) -> Iterator[image_pb2.UploadImageRequest]:
    yield image_pb2.UploadImageRequest(header=image_pb2.UploadImageRequest.Header(size_bytes=len(data)))
    for start in range(0, len(data), 1 << 18):
        yield image_pb2.UploadImageRequest(chunk=data[start : start + (1 << 18)])


async def _in_parallel(report: Report, port: str, changes: Iterator[Change]) -> None:
    async def work() -> None:
        for method, what, begin in changes:
            events = 1 if method == "WatchReplica" else 1000  # its stream has no end
            answer = await answer_of(begin(), events)
            if method == "Check" and answer.code == "NOT_FOUND":  # so its protocol says, without details
                answer = Answer(answer.code)
            report.note(port, f"{method} {what[:200]}", answer)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def _afterwards(services: Services, report: Report, logged: Mapping[str, int]) -> list[str]:
    """What is wrong with the services when all is over; `logged` is how long their logs were before."""
    faults = []
    for name in NAMES:
        status = services.process(name).poll()
        if status is not None:
            faults.append(f"the {name} ended with status {status}")
        faults += [f"the {name} logged: {line[:400]}" for line in tracebacks(services.log(name), logged[name])]
        warm, *_, last = report.memory_mb[name][WARM_PARTS - 1 :]
        if last > warm + max(GROWTH_MB, GROWTH_SHARE * warm):
            faults.append(f"the {name}'s memory grew from {warm:.0f} to {last:.0f} MB")
    unended = {port: codes[NO_END] for port, codes in report.answers.items() if codes[NO_END]}
    if unended.keys() - {"public", "internal", "sampler"}:  # a changed request may be for a long run, or a long wait
        faults.append(f"calls without an end: {unended}")
    faults += asyncio.run(_edit(services))
    return faults


async def _edit(services: Services) -> list[str]:
    """A whole edit. Changed requests told the gateway that its tuner is another; it soon tells again what it is."""
    gives_up_at = time.monotonic() + TOLD_AGAIN_S
    async with AsyncClient(services.address, tenant="afterwards") as client:
        while True:
            try:
                result = await client.edit_to_end(PICTURE, "a dog", updates=1, batch=1, num_inference_steps=2)
            except UniTuneError as error:
                if time.monotonic() > gives_up_at:
                    return [f"an edit afterwards fails: {error}"]
                await asyncio.sleep(1)
            else:
                return [] if len(result.images) == 1 else ["an edit afterwards has no picture"]


def tracebacks(log: Path, after_bytes: int) -> list[str]:
    """The lines of a log, after its first bytes, that tell of a mistake."""
    lines = log.read_bytes()[after_bytes:].decode(errors="replace").splitlines()
    return [line for line in lines if "raceback" in line]
