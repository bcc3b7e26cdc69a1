"""What must hold of real services that are killed, full, refused and without their store."""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.fuzz.answers import OF_THE_SENDER
from bench.fuzz.broken_pictures import png
from bench.fuzz.fuzzing import fuzz
from bench.process_memory import memory_of
from bench.soak.end import files
from bench.soak.services import NAMES, Services
from tests.configs import sampling_config, tuning_config
from tests.full_disk import read_only
from tests.gateway.conftest import eventually, picture, refused
from tests.guarantees.conftest import LEASE_S
from unitune import serving
from unitune.drain import KILLED_AFTER_S
from unitune.errors import from_status
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.edit_pb2_grpc import EditServiceStub
from unitune.v1.image_pb2 import Image, UploadImageRequest
from unitune.v1.image_pb2_grpc import ImageServiceStub
from unitune.v1.tuning_pb2 import (
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    Tuning,
    TuningProgress,
    WatchTuningRequest,
)
from unitune.v1.tuning_pb2_grpc import TuningServiceStub
from unitune.weights import MANIFEST_FILE, WEIGHTS_FILE

pytestmark = pytest.mark.slow  # real services

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0  # on a busy machine
SERVING = health_pb2.HealthCheckResponse.SERVING
FUZZED = 200  # requests; `make fuzz` sends more
AWAY_S = 21.0  # longer than a lease, and than what a store needs to start again
WORD = "quetzalcoatl"  # of prompts, and nowhere else
BASELINE_BYTES = 32 << 20
Header = UploadImageRequest.Header


@pytest.fixture
async def channel(own: Services) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to the gateway that repeats nothing by itself."""
    async with serving.channel(own.address) as channel:
        yield channel


def sdedit(steps: int, prompt: str = f"a cat by {WORD}", **fields: Any) -> EditRequest:
    """An edit that needs no tuning."""
    config = sampling_config(method="sdedit", num_inference_steps=steps, strength=1.0)
    return EditRequest(image_data=picture(), prompt=prompt, config=config, **fields)


async def begun(channel: grpc.aio.Channel, steps: int = 900) -> Any:
    """A long edit that is accepted."""
    call = EditServiceStub(channel).Edit(sdedit(steps))
    assert (await call.read()).HasField("accepted")
    return call


async def upload(channel: grpc.aio.Channel, data: bytes, **header: Any) -> Image:
    """Send a file in chunks; the header says what the test wants it to say."""

    async def requests() -> AsyncIterator[UploadImageRequest]:
        yield UploadImageRequest(header=Header(**header))
        for start in range(0, len(data), 1 << 18):
            yield UploadImageRequest(chunk=data[start : start + (1 << 18)])

    while True:
        try:
            return await ImageServiceStub(channel).UploadImage(requests(), timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            # A call that ends while it is sent may end so for its caller's grpc, which does not say why.
            if error.code() is not grpc.StatusCode.INTERNAL or error.details() != OF_THE_SENDER:
                raise


async def watched(channel: grpc.aio.Channel, name: str) -> list[Any]:
    """All events of a tuning, to its end."""
    call = TuningServiceStub(channel).WatchTuning(WatchTuningRequest(name=name), timeout=PATIENCE_S)
    return [event async for event in call if event.sequence]


def metric(own: Services, service: str, name: str, label: str = "") -> float:
    """The sum of a metric's values, of all labels or of those with this one in them, as Prometheus reads it."""
    text = urllib.request.urlopen(f"http://{own.metrics[service]}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if re.match(rf"{name}[ {{]", line) and label in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_a_killed_sampler_ends_its_edit_and_the_next_one_works(own: Services, channel: grpc.aio.Channel) -> None:
    """SIGKILL amid an edit: its stream ends with one event, UNAVAILABLE, which says when to try again (check 7)."""
    call = await begun(channel)
    while not (await call.read()).HasField("step"):
        pass
    own.process("sampler").kill()
    own.process("sampler").wait()
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    error = from_status(events[-1].failed)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN") and error.retry_after_s
    assert [event.WhichOneof("event") for event in events].count("failed") == 1

    own.restart("sampler")
    again = [event async for event in EditServiceStub(channel).Edit(sdedit(3), timeout=PATIENCE_S)]
    assert again[-1].HasField("done")


async def test_a_deadline_that_cannot_be_met_starts_nothing(own: Services, channel: grpc.aio.Channel) -> None:
    """Once the speed is known, an edit of many steps and little time is refused, and no sampler sees it (check 20)."""
    for _ in range(3):
        events = [event async for event in EditServiceStub(channel).Edit(sdedit(60), timeout=PATIENCE_S)]
        assert events[-1].HasField("done")
    asked = "unitune_rpc_seconds_count", 'SamplerService/Sample"'
    before = metric(own, "sampler", *asked)
    call = EditServiceStub(channel).Edit(sdedit(1000, seeds=range(8)), timeout=2)
    await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE")
    assert before >= 3 and metric(own, "sampler", *asked) == before


async def test_refused_uploads_leave_no_file_and_no_memory(own: Services, channel: grpc.aio.Channel) -> None:
    """A message, an upload and a picture that are too large, a wrong digest and an upload that is cut: each has its
    code, and store and memory are then as before (check 16)."""
    await upload(channel, picture("navy"))  # what a first upload loads
    gateway = own.process("gateway")
    stored, memory = files(own.store), memory_of(gateway.pid).private
    bomb = png(20_000, 20_000, zlib.compress(bytes(1 << 20)))
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    await refused(upload(channel, bytes(17 << 20)), invalid, "UPLOAD_TOO_LARGE")
    await refused(upload(channel, picture("red"), sha256="0" * 64), invalid, "DIGEST_MISMATCH")
    await refused(upload(channel, picture("red")[:-9], size_bytes=len(picture("red"))), invalid, "INVALID_FIELD")
    await refused(upload(channel, picture("red")[:-30]), invalid, "IMAGE_UNDECODABLE")
    await refused(upload(channel, bomb), invalid, "IMAGE_TOO_LARGE")
    large = EditRequest(image_data=bytes(5 << 20), prompt="a cat")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await EditServiceStub(channel).Edit(large).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def is_as_before() -> bool:
        return files(own.store) == stored and memory_of(gateway.pid).private < memory + BASELINE_BYTES

    await eventually(is_as_before, within_s=30)


async def test_health_is_answered_by_a_full_server_and_says_no_before_its_end(
    own: Services, channel: grpc.aio.Channel
) -> None:
    """With every place at the sampler taken, edits waiting and the tuner at work, each port answers SERVING. After
    SIGTERM the gateway says NOT_SERVING to those who watch its health, before it ends (check 14)."""
    image = (await upload(channel, picture("olive"))).name
    tunings = TuningServiceStub(channel)
    tuning = await tunings.CreateTuning(CreateTuningRequest(image=image, config=tuning_config(updates=5000)))
    calls = [await begun(channel) for _ in range(24)]
    while not (await calls[0].read()).HasField("step"):
        pass
    for address in own.ports.values():
        assert await health(address) == SERVING, address

    gateway = own.process("gateway")
    async with serving.channel(own.address) as other:
        watch = health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert (await watch.read()).status == SERVING
        gateway.terminate()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert gateway.poll() is None
        watch.cancel()
    for call in calls:
        call.cancel()
    assert await asyncio.to_thread(gateway.wait, KILLED_AFTER_S) == 0
    own.restart("gateway")
    async with serving.channel(own.address) as other:
        await TuningServiceStub(other).DeleteTuning(DeleteTuningRequest(name=tuning.name), timeout=PATIENCE_S)


async def health(address: str) -> int:
    """What a port answers."""
    async with serving.channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        return int(answer.status)


async def test_a_store_that_is_away_delays_ready_and_nothing_is_tuned_twice(
    own: Services, channel: grpc.aio.Channel
) -> None:
    """The store cannot be written from amid a tuning until its weights have waited for it: the tuning is RUNNING until
    then, and READY by its first attempt, with no update made twice (check 21, F25)."""
    name = await created(channel, "purple", updates=60)
    tunings = TuningServiceStub(channel)
    call = tunings.WatchTuning(WatchTuningRequest(name=name), timeout=PATIENCE_S)
    while (event := await call.read()).progress.update < 5:
        pass
    with read_only(own.store):
        while event.progress.stage != TuningProgress.STAGE_STORING:
            event = await call.read()
        await asyncio.sleep(AWAY_S)  # for what must not happen
        assert (await tunings.GetTuning(GetTuningRequest(name=name))).state == Tuning.STATE_RUNNING
        assert not [path for path in files(own.store) if name.rpartition("/")[2] in path]
    events = await watched(channel, name)
    assert events[-1].HasField("ready"), events[-1]
    assert [event.started.attempt for event in events if event.HasField("started")] == [1]
    updates = [event.progress.update for event in events if event.HasField("progress")]
    assert updates == sorted(updates)


async def created(channel: grpc.aio.Channel, colour: str, **config: Any) -> str:
    """The name of a tuning of a new picture."""
    image = (await upload(channel, picture(colour))).name
    request = CreateTuningRequest(image=image, config=tuning_config(batch=1, **config))
    return (await TuningServiceStub(channel).CreateTuning(request)).name


HELD_TUNER = """
import runpy, sys, time
from pathlib import Path
from tuner_svc.gateways import Gateways
from unitune.object_store import ObjectStore
from unitune.weights import MANIFEST_FILE, WEIGHTS_FILE

stage = Path(sys.argv.pop())  # the program itself takes no arguments
put, report = ObjectStore.put, Gateways.report

def hold(at):
    if not stage.exists() or stage.read_text() != at:
        return
    print("held", flush=True)
    while stage.exists():
        time.sleep(0.05)

def held(self, path, data):
    for name in (WEIGHTS_FILE, MANIFEST_FILE):
        if path.endswith(name):
            hold(f"before {name}")
    put(self, path, data)

async def reported(self, request, wait_s=0.0):
    if request.HasField("done"):
        hold("before done")
    return await report(self, request, wait_s)

ObjectStore.put, Gateways.report = held, reported
runpy.run_module("tuner_svc", run_name="__main__")
"""


@contextlib.contextmanager
def held_tuner(own: Services, stage: Path) -> Iterator[subprocess.Popen[str]]:
    """A tuner that waits at the stage which a file names, until the file is gone."""
    environ = {**os.environ, **own.by_name["tuner"].settings, "UNITUNE_METRICS_ADDRESS": "", "PYTHONPATH": str(ROOT)}
    command: Sequence[str] = [sys.executable, "-c", HELD_TUNER, str(stage)]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_tuner_that_stood_still_before_its_manifest_leaves_nothing(
    own: Services, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    """A tuner is stopped before its weights, between them and their manifest, and before it reports the end. It goes on
    when its lease is over and another one was faster: there is one READY, and the winner's files alone (check 1, F18).
    """
    other, stage = own.process("tuner"), tmp_path / "stage"
    with held_tuner(own, stage) as process:
        for colour, at in (
            ("maroon", f"before {WEIGHTS_FILE}"),
            ("brown", f"before {MANIFEST_FILE}"),
            ("khaki", "before done"),
        ):
            stage.write_text(at)
            assert process.stdout is not None
            other.send_signal(signal.SIGSTOP)  # it may have been given the tuning, and then finds it lost
            try:
                name = await created(channel, colour, updates=2)
                while (line := await asyncio.to_thread(process.stdout.readline)) != "held\n":
                    assert line, "the tuner has ended"
            finally:
                process.send_signal(signal.SIGSTOP)
                other.send_signal(signal.SIGCONT)
            events = await watched(channel, name)
            attempts = [event.started.attempt for event in events if event.HasField("started")]
            stage.unlink()
            process.send_signal(signal.SIGCONT)
            folder = f"tunings/default/{name.rpartition('/')[2]}"
            winners = [f"{folder}/{attempts[-1]}/{file}" for file in (MANIFEST_FILE, WEIGHTS_FILE)]

            async def has_only_the_winners(folder: str = folder, winners: Sequence[str] = winners) -> bool:
                return [path for path in files(own.store) if path.startswith(folder)] == winners

            await asyncio.sleep(LEASE_S)  # for what must not happen
            await eventually(has_only_the_winners, within_s=PATIENCE_S)
            assert len(attempts) > 1 and attempts == sorted(attempts), at
            assert events[-1].HasField("ready") and await watched(channel, name) == events, at
            digest = hashlib.sha256((own.store / winners[1]).read_bytes()).hexdigest()
            assert digest == events[-1].ready.weights.digest, at


async def test_no_prompt_is_in_a_log_or_in_metrics(own: Services, channel: grpc.aio.Channel) -> None:
    """What callers write is nobody's but theirs: no log and no metric has a word of it (check 17)."""
    events = [event async for event in EditServiceStub(channel).Edit(sdedit(2), timeout=PATIENCE_S)]
    assert events[-1].HasField("done")
    refusal = EditServiceStub(channel).Edit(sdedit(2, prompt=f"a cat by {WORD}\0"))
    await refused(refusal, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    for name in NAMES:
        told = urllib.request.urlopen(f"http://{own.metrics[name]}/metrics", timeout=10).read().decode()
        assert WORD not in told and WORD not in own.log(name).read_text(), name
        assert '"event"' in own.log(name).read_text()


def test_changed_requests_broken_pictures_and_garbage_are_refused(own: Services) -> None:
    """`make fuzz`, in short: nothing is INTERNAL or without details, no service ends, logs a traceback or grows, and an
    edit works afterwards (check 15). It is the last one here, since it tells the gateway much that is not true."""
    report = fuzz(own, FUZZED, seed=1, say=lambda line: None, pictures=25)
    assert report.faults == []
    codes = sum((report.answers[port] for port in ("public", "internal", "sampler", "pictures")), Counter[str]())
    assert codes["OK"] > 20 and codes["INVALID_ARGUMENT"] > 100 and codes["NOT_FOUND"] > 0
