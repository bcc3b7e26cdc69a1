"""Writes every measurement to a file at once. A measurement that fails, or is skipped, has the reason in its place.

The program may be ended at any moment, so the file is complete after every measurement.
"""

import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.measure import spread

FILE = "gpu.json"
ROUNDS_ON_A_PROCESSOR = 2  # there it is only shown that a measurement runs
PACKAGES = ("torch", "diffusers", "transformers", "onnxruntime-gpu", "triton", "nvidia-cudnn-cu13", "nvidia-cublas")

Found = dict[str, Any]


class Skipped(Exception):
    """A measurement cannot be made here. The message gives the reason."""


class Report:
    """The results so far, in `folder`/gpu.json."""

    def __init__(self, folder: Path, device: torch.device, budget_s: float, command: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._device = device
        self._began, self._budget_s = time.perf_counter(), budget_s
        self._found: dict[str, Found] = {"machine": machine(device) | {"command": " ".join(command)}}

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._budget_s - (time.perf_counter() - self._began)

    def measure(self, name: str, expected_s: float, work: Callable[[], Found]) -> None:
        """Make one measurement, if this many seconds are left, and write the file. Raises nothing."""
        began = time.perf_counter()
        free_memory(self._device)
        try:
            if self.left_s < expected_s:
                raise Skipped(f"{self.left_s:.0f} s were left, and it takes about {expected_s:.0f} s")
            found = work()
            if self._device.type == "cuda":
                found["peak_torch_gb"] = torch.cuda.max_memory_allocated() / 1e9
        except Skipped as reason:
            found = {"skipped": str(reason)}
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:2000], "traceback": traceback.format_exc()[-4000:]}
        self._found[name] = found | {"took_s": time.perf_counter() - began}
        partial = self._path.with_suffix(".new")
        partial.write_text(json.dumps(self._found, indent=1) + "\n")
        os.replace(partial, self._path)
        shown = {key: value for key, value in self._found[name].items() if key != "traceback"}
        print(f"[{time.perf_counter() - self._began:6.1f} s] {name}: {json.dumps(shown)}", flush=True)


def machine(device: torch.device) -> Found:
    """The card, the versions, the processor's cores."""
    found: Found = {
        "device": "cpu",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {},
        "environment": {
            key: os.environ[key] for key in ("CUDA_MODULE_LOADING", "OMP_NUM_THREADS") if key in os.environ
        },
    }
    for name in PACKAGES:
        try:
            found["packages"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def timed(work: Callable[[], object], device: torch.device, rounds: int, warm: int = 3) -> Found:
    """Seconds of one call: the median of all rounds, the smallest and the largest.

    On a GPU a round is the time between two events around it there, so waits for its launches count; `wall` is the time
    of all rounds by this process's clock, up to the GPU's end, shared by the rounds.
    """
    if device.type != "cuda":
        return clocked(work, device, rounds, warm)
    for _ in range(warm):
        work()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    torch.cuda.synchronize()
    began = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - began) / rounds
    return spread([first.elapsed_time(second) / 1e3 for first, second in pairwise(events)]) | {"wall": wall}


def clocked(work: Callable[[], object], device: torch.device, rounds: int = 1, warm: int = 0) -> Found:
    """The same by this process's clock, each round from an idle GPU to an idle GPU, so with the processor's work."""
    if device.type != "cuda":
        rounds, warm = min(rounds, ROUNDS_ON_A_PROCESSOR), min(warm, 1)
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return spread(seconds)


def wait(device: torch.device) -> None:
    """Until the GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def need_cuda(device: torch.device, what: str) -> None:
    """Raises Skipped on a processor."""
    if device.type != "cuda":
        raise Skipped(f"{what} needs a CUDA device")


def free_memory(device: torch.device) -> None:
    """Free the memory of the last measurement, and reset the peaks."""
    sys.last_value = sys.last_traceback = None  # a traceback holds the frames that hold tensors
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def used_gb() -> float:
    """Memory of the whole GPU in use, by whichever library."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9
