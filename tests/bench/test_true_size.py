"""Memory and disk of export, build, sampler and tuner, held against the weights of a model of 200 MB."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from bench.process_memory import MemoryWatch, memory_of
from bench.true_size import Built, Report, Stage, edit, export_and_build
from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import EngineSpec, Tensors
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.weights import base_weights
from unitune.base_model import BaseModelSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc"),
]


REFITS = 10


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The model, exported and built."""
    return export_and_build(tmp_path_factory.mktemp("true"), "small", "float32")


def stage(report: Report, name: str) -> Stage:
    """The stage of a name."""
    return next(stage for stage in report.stages if stage.name == name)


@pytest.mark.parametrize(
    ("name", "most"),
    [("export", 1.5), ("build", 1.5)],
)
def test_export_and_build_hold_few_copies_of_the_weights(built: Built, name: str, most: float) -> None:
    """Private memory above the libraries', in units of the weights (M32)."""
    assert stage(built.report(), name).private_w <= most, built.report().table()


def test_the_weights_are_on_the_disk_once(built: Built) -> None:
    """Graphs and engine together are the weights and the frozen parts, each inode counted once (M34)."""
    report = built.report()
    both = report.disk_bytes["graphs"] + report.disk_bytes["engine"]
    frozen = report.disk_bytes["model"] - report.weights_bytes

    assert both <= 1.05 * report.weights_bytes + frozen, report.table()


class Moved(Mapping[str, np.ndarray]):
    """Tensors a little off the base ones, made when they are asked for, as decoded ones are."""

    def __init__(self, base: Tensors, step: float) -> None:
        self._base, self._step = base, np.float32(step)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._base[name] + self._step

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def test_refits_of_all_tensors_take_one_tensor_at_a_time(built: Built) -> None:
    """During ten refits private memory is at most three of the largest tensor above one engine's, after them it is what
    it was after the first (M31)."""
    folder = built.engine
    spec = BaseModelSpec.load(folder)
    engine_spec, base = EngineSpec.from_model(spec), base_weights(folder, spec)
    engine = OrtEngine(folder, engine_spec, layout=GraphLayout(engine_spec, base.tensors))
    largest = max(tensor.nbytes for tensor in base.tensors.values())
    held = []
    for count in range(REFITS):
        with MemoryWatch(os.getpid()) as watch:
            engine._write(engine._checked(Moved(base.tensors, 1e-3 * (1 + count % 2))))
        held.append(memory_of(os.getpid()).private)
        assert watch.peak.private <= max(held) + 3 * largest, count
    engine.close()

    assert held[-1] <= held[0] + 0.05 * built.weights_bytes, [f"{size / 1e6:.0f} MB" for size in held]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_services_hold_few_copies_of_the_weights(built: Built) -> None:
    """Of an edit after two updates of all tensors, in units of the weights (M31, M33).

    After it the sampler has the memory of its activations, too, and the tuner in its updates weights, gradients and
    activations: those do not grow with the weights, and are much beside so few.
    """
    report = built.report(edit(built, mode="full", updates=2, steps=2))

    for name, most in (("sampler, idle", 1.3), ("sampler, after", 1.55), ("tuner, edit", 4.5)):
        assert stage(report, name).private_w <= most, report.table()
