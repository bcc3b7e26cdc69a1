"""Which thread of a tuner's process computes with PyTorch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import torch

from tests.configs import tuning_config
from tuner_svc.torch_thread import TorchThread
from unitune.v1 import tuner_pb2, tuner_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]

# The tuner, as `python -m tuner_svc` runs it, under PyTorch's profiler; its last line counts operators by thread.
PROFILED_TUNER = """
import collections, json
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile
from tuner_svc.__main__ import main

all_threads = _ExperimentalConfig(profile_all_threads=True)
with profile(activities=[ProfilerActivity.CPU], experimental_config=all_threads) as profiler:
    main()
operators = [event for event in profiler.events() if event.name.startswith("aten::")]
print(json.dumps(collections.Counter(event.thread for event in operators)))
"""


def test_a_tuner_computes_in_one_thread(tiny_model: Path, tmp_path: Path, picture: bytes) -> None:
    """Loading the model, and two tunings with their probes, run all of PyTorch's operators in one thread (P1)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    environment = kept | {
        "UNITUNE_TUNER_ADDRESS": "127.0.0.1:0",
        "UNITUNE_BASE_MODEL": str(tiny_model),
        "UNITUNE_STORE": str(tmp_path / "store"),
        "UNITUNE_THREADS": "1",  # an operator may run parts of itself in its team's other threads
    }
    config = {"method": "unitune", "mode": "attn_out", "updates": 2, "batch": 1, "learning_rate": 1e-3}
    with subprocess.Popen(
        [sys.executable, "-c", PROFILED_TUNER], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[1]
            with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
                stub = tuner_pb2_grpc.TunerServiceStub(channel)
                for number in range(2):
                    request = tuner_pb2.RunTuningRequest(
                        name=f"t{number}",
                        key=f"k{number}",
                        path=f"tunings/t/t-00{number}/1",
                        image=picture,
                        config=tuning_config(**config, rare_tokens="r"),
                    )
                    stub.CheckTuning(tuner_pb2.CheckTuningRequest(config=request.config))
                    *_, last = stub.RunTuning(request)
                    assert "done" == last.WhichOneof("event")
            process.send_signal(signal.SIGTERM)
            told, _ = process.communicate(timeout=120)
        finally:
            process.kill()

    operators = json.loads(told.splitlines()[-1])
    assert 1 == len(operators), operators
    assert sum(operators.values()) > 1000


def test_the_thread_has_as_many_threads_as_it_was_told() -> None:
    """The number is in force in the thread that computes; it is its own there."""
    with TorchThread(3) as thread:
        assert 3 == thread.submit(torch.get_num_threads).result()
