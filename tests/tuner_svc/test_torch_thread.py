"""Which thread of a tuner's process computes with PyTorch."""

import asyncio
import json
import signal
from pathlib import Path

import torch

from tests.tuner_svc.scripted_pool import Pool, serve_pool
from tests.tuner_svc.test_main import assignment, started
from tuner_svc.torch_thread import TorchThread
from unitune.object_store import ObjectStore

# The tuner, as `python -m tuner_svc` runs it, under PyTorch's profiler; its last line counts operators by thread.
PROFILED_TUNER = """
import collections, json
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile
import tuner_svc.process  # what it imports computes nothing of ours
from tuner_svc.__main__ import main

all_threads = _ExperimentalConfig(profile_all_threads=True)
with profile(activities=[ProfilerActivity.CPU], experimental_config=all_threads) as profiler:
    main()
# As they were recorded: `profiler.events()` takes longer to arrange them than the tunings do.
operators = [event for event in profiler.profiler.kineto_results.events() if event.name().startswith("aten::")]
print(json.dumps(collections.Counter(event.start_thread_id() for event in operators)))
"""


async def test_a_tuner_computes_in_one_thread(tiny_model: Path, tmp_path: Path, picture: bytes) -> None:
    """Loading the model, and two tunings with their probes, run all of PyTorch's operators in one thread (P1)."""
    pool = Pool()
    server = await serve_pool(pool)
    process = await started(
        "-c",
        PROFILED_TUNER,
        UNITUNE_BASE_MODEL=str(tiny_model),
        UNITUNE_STORE=str(tmp_path / "store"),
        UNITUNE_GATEWAY=server.address,
        UNITUNE_THREADS="1",  # an operator may run parts of itself in its team's other threads
    )
    try:
        async with asyncio.timeout(120):
            for _ in range(2):
                run = pool.assign(assignment(ObjectStore(str(tmp_path / "store")), picture, updates=2))
                *_, last = [report async for report in run]
                assert last.HasField("done")
            process.send_signal(signal.SIGTERM)
            told, _ = await process.communicate()
    finally:
        await server.stop()
        if process.returncode is None:
            process.kill()

    operators = json.loads(told.splitlines()[-1])
    assert 1 == len(operators), operators
    assert sum(operators.values()) > 1000


def test_the_thread_has_as_many_threads_as_it_was_told() -> None:
    """The number is in force in the thread that computes; it is its own there."""
    with TorchThread(3) as thread:
        assert 3 == thread.submit(torch.get_num_threads).result()
