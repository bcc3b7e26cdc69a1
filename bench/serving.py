"""What serving costs: the gateway's overhead, a sampler's cold start and memory, and many users at once.

    python -m bench.serving

Real services on loopback, without a tuning: SDEdit's edits, so that only serving differs.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from bench.edits import results
from bench.inputs import GUIDANCE, MODEL, PICTURE, PROMPT
from bench.measure import Measured, Ratio, in_turns, percentile, seconds, spread
from bench.program import run, say
from sampler_svc.engines.engine import BASE
from sampler_svc.model import Model
from sampler_svc.sampling.request import Request
from unitune.v1 import edit_pb2, sampler_pb2, sampler_pb2_grpc
from unitune_client import Client
from unitune_client.channel import NO_PROXY
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

STEPS = 20
USERS = (1, 2, 4, 8, 16)
EDITS = 32  # of all users together, so that every row takes about as long
PEAK = "VmHWM:"  # of /proc/PID/status, in kB

DIFFUSERS = """
import sys
from pathlib import Path
import numpy as np
from bench.peers.diffusers_edit import DiffusersEdit
folder, prompt, steps, guidance = sys.argv[1:]
DiffusersEdit(Path(folder))(prompt, int(steps), float(guidance), np.zeros((1, 8, 16, 16), np.float32))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")][0])
"""


def serving(rounds: int, *, quick: bool = False) -> dict[str, object]:
    """All figures of this page, by their names in the report."""
    with tempfile.TemporaryDirectory() as scratch, LocalServices(home=Home(Path(scratch)), log=say) as services:
        (engine,) = (Path(scratch) / "engines").glob("*/")
        say("gateway overhead")
        found: dict[str, object] = {"gateway.overhead_ms": overhead_ms(services.address, engine, 3 * rounds)}  # short
        for users in USERS[:2] if quick else USERS:
            say(f"{users} users")
            found[f"users.{users}"] = together(services.address, users, EDITS if not quick else users)
        services.stop()
        say("cold start")
        found |= cold_start(engine, rounds if quick else max(rounds // 2, 2))
    return found


def overhead_ms(address: str, engine: Path, rounds: int) -> dict[str, float]:
    """The same edit through gateway and sampler, minus the sampling in process; milliseconds of each round."""
    model = Model.open(engine)
    request = Request(PICTURE.read_bytes(), PROMPT, "ddim", STEPS, GUIDANCE, strength=1.0, seeds=(0,))
    try:
        with Client(address) as client, model.pool.lease(BASE, lambda: model.base) as lease:
            works = {
                "served": lambda: edit(client),
                "in process": lambda: results(request, model.tools(lease.engine.run)),
            }
            taken = in_turns(works, rounds)
    finally:
        model.pool.close()
    pairs = zip(taken["served"].seconds, taken["in process"].seconds, strict=True)
    return spread([1e3 * (served - own) for served, own in pairs])


def edit(client: Client) -> None:
    """One edit of the base weights through the gateway; the picture is sent with it."""
    client.edit_to_end(
        PICTURE.read_bytes(), PROMPT, method="sdedit", scheduler="ddim", strength=1.0, guidance_scale=GUIDANCE,
        num_inference_steps=STEPS, interpolation=0.0, seeds=[0],
    )  # fmt: skip


def together(address: str, users: int, edits: int) -> dict[str, float]:
    """Users, each a tenant with its own connection, who send their next edit after each answer."""

    def one_user(user: int) -> list[float]:
        with Client(address, tenant=f"user{user}") as client:
            return [seconds(lambda: edit(client)) for _ in range(edits // users)]

    began = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        waits = [wait for waited in pool.map(one_user, range(users)) for wait in waited]
    wall_s = time.perf_counter() - began
    return {
        "edits_per_s": round(len(waits) / wall_s, 3),
        "p50_s": round(percentile(waits, 0.5), 3),
        "p95_s": round(percentile(waits, 0.95), 3),
    }


@dataclass(frozen=True)
class Start:
    """A process from its start to its first picture."""

    seconds: float
    peak_mb: float


def cold_start(engine: Path, rounds: int) -> dict[str, object]:
    """Process start to first edit, and the peak of memory then: the sampler's against a diffusers process's."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_sampler_start(engine))
        theirs.append(_diffusers_start())
    taken = [Measured(tuple(start.seconds for start in starts)) for starts in (ours, theirs)]
    return {
        "cold_start.s": {"ours": round(taken[0].median_s, 2), "diffusers": round(taken[1].median_s, 2)},
        "cold_start.ratio_to_diffusers": asdict(Ratio.divide(*taken)),
        "memory.peak_mb": {
            "sampler": spread([start.peak_mb for start in ours]),
            "diffusers": spread([start.peak_mb for start in theirs]),
        },
    }


def _sampler_start(engine: Path) -> Start:
    began = time.perf_counter()
    with _sampler(engine) as (process, address):
        kind = edit_pb2.SamplingConfig
        config = kind(
            method=kind.METHOD_SDEDIT, scheduler=kind.SCHEDULER_DDIM, num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, strength=1.0, interpolation=0.0,
        )  # fmt: skip
        request = sampler_pb2.SampleRequest(
            edit="cold", image=PICTURE.read_bytes(), prompt=PROMPT, config=config, seeds=[0]
        )
        with grpc.insecure_channel(address, options=[NO_PROXY]) as channel:
            kinds = [
                event.WhichOneof("event") for event in sampler_pb2_grpc.SamplerServiceStub(channel).Sample(request)
            ]
        if "done" not in kinds:
            raise RuntimeError(f"the sampler's first edit ended with {kinds[-1]}")
        return Start(time.perf_counter() - began, _peak_mb(process.pid))


@contextmanager
def _sampler(engine: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A sampler process and its address, as soon as it listens."""
    with tempfile.TemporaryDirectory() as store, (Path(store) / "log").open("w") as log:
        environment = os.environ | {
            "UNITUNE_ENGINE": str(engine), "UNITUNE_STORE": store, "UNITUNE_SAMPLER_ADDRESS": "127.0.0.1:0",
        }  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-m", "sampler_svc"], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process:
            try:
                assert process.stdout is not None
                yield process, process.stdout.readline().removeprefix("listening ").strip()
            finally:
                process.terminate()


def _diffusers_start() -> Start:
    began = time.perf_counter()
    command = [sys.executable, "-c", DIFFUSERS, str(MODEL), PROMPT, str(STEPS), str(GUIDANCE)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Start(time.perf_counter() - began, int(output.split()[-1]) / 1024)


def _peak_mb(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(PEAK)) / 1024


if __name__ == "__main__":
    run(serving, __doc__, rounds=7)
