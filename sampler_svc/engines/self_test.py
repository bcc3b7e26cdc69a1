"""The engine self-test: a built plan computes what PyTorch does, and a refit replaces every tensor.

It runs once per plan and GPU, at the build. The plan with base weights, then with two random sets in turn, must give
the answers that the exporter stored, up to three times the rounding of fp16. The probe after every refit (engine.py)
proves that the refit happened. The self-test proves that it reaches every tensor, which small tunings cannot show.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sampler_svc.engines.engine import Array, Engine
from unitune.errors import UniTuneError
from unitune.fp16_graph import SELF_TEST_FILE, SELF_TEST_PROBE_SEED, SELF_TEST_SEEDS, Fp16Spec, self_test_tensors
from unitune.weights import probe_input

REPORT_FILE = "self_test_report.json"
MAX_ERROR = 3.0  # times fp16's noise; a single stale tensor gives more (tests/tuner_svc/test_export_fp16.py)


class SelfTestFailed(Exception):
    """A plan computes or refits wrongly. The message says which weights, and by how much."""


@dataclass(frozen=True)
class SelfTestReport:
    """The results of the engine self-test."""

    errors: Mapping[str, float]  # set of weights to the largest error, as a share of PyTorch's fp32 answer
    noise: Mapping[str, float]  # the same for PyTorch in fp16
    backend: Mapping[str, str]  # the runtime and GPU that it ran on
    cuda_graph: bool  # a captured graph sees weights that were refitted after its capture
    in_place: bool  # weights were replaced without opening the engine again; always so for TensorRT
    seconds: Mapping[str, float]  # medians of runs and refits

    def save(self, folder: Path) -> None:
        """Write self_test_report.json."""
        (folder / REPORT_FILE).write_text(json.dumps(asdict(self), indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> "SelfTestReport":
        """Read self_test_report.json. Raises OSError if there is none, and ValueError for anything else."""
        try:
            return cls(**json.loads((folder / REPORT_FILE).read_text()))
        except TypeError as error:
            raise ValueError(f"{folder / REPORT_FILE} is no report of a self-test") from error


class SelfTest:
    """The self-test of one base model's engines, with PyTorch's answers."""

    def __init__(self, folder: Path) -> None:
        """From a folder with fp16.json and self_test.safetensors."""
        self.fp16 = Fp16Spec.load(folder)
        self.answers = load_file(folder / SELF_TEST_FILE)
        self.errors: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}

    def ask(self, engine: Engine, name: str) -> Array:
        """The engine's answer now. Raises SelfTestFailed unless it is the answer of the set `name`."""
        channels, *side = engine.spec.latent
        question = probe_input(SELF_TEST_PROBE_SEED, channels, (side[0], side[1]), engine.spec.context)
        began = time.perf_counter()
        answer = engine._compute(*question.values())
        self._took("run", began)
        expected = self.answers[name]
        error = float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        if not error < MAX_ERROR * self.fp16.noise[name]:  # also when it is not a number
            allowed = MAX_ERROR * self.fp16.noise[name]
            raise SelfTestFailed(f"with {name} weights its answer is {error:.1e} off; {allowed:.1e} is allowed")
        return answer

    def refit_and_ask(self, engine: Engine, name: str) -> Array:
        """The same, after a refit with a random set."""
        tensors = self_test_tensors(SELF_TEST_SEEDS[name], self.fp16.tensors)
        began = time.perf_counter()
        engine._write(tensors)
        self._took("refit", began)
        return self.ask(engine, name)

    def run(self, engine: Engine) -> None:
        """The complete self-test, on an engine that was not refitted yet. Raises SelfTestFailed."""
        self.ask(engine, "base")
        first = self.refit_and_ask(engine, "first")
        self.refit_and_ask(engine, "second")
        again = self.refit_and_ask(engine, "first")
        if not np.array_equal(first, again):
            raise SelfTestFailed("it does not come back to the same answer after a refit there and back")

    def sees_refits(self, engine: Engine) -> bool:
        """Whether an engine with a captured graph gives each set's answer without another capture.

        Use another SelfTest for this than for the report: a failure here only means that no captured graph is used.
        """
        try:
            for name in ("first", "second", "first"):
                self.refit_and_ask(engine, name)
        except (SelfTestFailed, UniTuneError):
            return False
        return True

    def found(self, backend: Mapping[str, str], *, cuda_graph: bool, in_place: bool = True) -> SelfTestReport:
        """The report of all runs so far."""
        seconds = {what: round(float(np.median(times)), 6) for what, times in self.seconds.items()}
        return SelfTestReport(dict(self.errors), dict(self.fp16.noise), dict(backend), cuda_graph, in_place, seconds)

    def _took(self, what: str, began: float) -> None:
        self.seconds.setdefault(what, []).append(time.perf_counter() - began)
