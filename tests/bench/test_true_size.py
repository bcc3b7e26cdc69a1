"""Memory and disk of export, build, sampler and tuner, held against the weights of a model of 200 MB."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.process_memory import memory_of
from bench.true_size import Built, Report, Stage, edit, export_and_build
from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import EngineSpec
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.weights import base_weights
from unitune.base_model import BaseModelSpec
from unitune_client import TuningProgress

pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,  # what these stages do, other tests show of small models
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc"),
]


REFITS = 10


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The model, exported and built."""
    return export_and_build(tmp_path_factory.mktemp("true"), "shallow", "float32")


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


def test_refits_of_all_tensors_take_one_tensor_at_a_time(built: Built) -> None:
    """During ten refits private memory is at most three of the largest tensor above one engine's, after them it is what
    it was after the first (M31). Their process is a sampler's: in another one, freed blocks stay in glibc's heap."""
    folder = built.engine
    largest = max(tensor.size_bytes for tensor in BaseModelSpec.load(folder).tensors.values())
    command = [sys.executable, "-m", "tests.bench.refit_memory", str(folder), str(REFITS)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout
    peaks, held = zip(*(map(int, line.split()) for line in told.splitlines()), strict=True)

    assert len(held) == REFITS
    for count, peak in enumerate(peaks):
        assert peak <= max(held[: count + 1]) + 3 * largest, count
    assert held[-1] <= held[0] + 0.05 * built.weights_bytes, [f"{size / 1e6:.0f} MB" for size in held]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_an_engine_that_rests_gives_the_memory_of_its_runs_back(built: Built) -> None:
    """Of latents of 48x48: it holds its weights alone then, and answers with the same bits after it."""
    folder = built.engine
    spec = BaseModelSpec.load(folder)
    engine_spec, base = EngineSpec.from_model(spec), base_weights(folder, spec)
    before = memory_of(os.getpid()).private
    engine = OrtEngine(folder, engine_spec, threads=2, layout=GraphLayout(engine_spec, base.tensors))
    engine.refit(base)
    generator = np.random.default_rng(0)
    latents, contexts = (
        generator.standard_normal((2, *shape), dtype=np.float32) for shape in ((4, 48, 48), engine_spec.context)
    )
    answers, held = [], []
    for _ in range(2):
        answers.append(engine.run(latents, np.array([500, 500]), contexts))
        held.append(memory_of(os.getpid()).private - before)
        engine.rest()
        held.append(memory_of(os.getpid()).private - before)
    engine.close()

    in_weights = [round(size / built.weights_bytes, 2) for size in held]
    assert max(in_weights[1::2]) <= 1.2 and min(in_weights[::2]) >= max(in_weights[1::2]) + 0.2, in_weights
    assert np.array_equal(*answers)


@pytest.mark.parametrize(("memory_gb", "updates", "tuner_most"), [("0", 2, 3.7), ("0.4", 1, 2.7)])
def test_services_hold_few_copies_of_the_weights(
    built: Built, memory_gb: str, updates: int, tuner_most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an edit after two updates of all tensors, in units of the weights (M31, M33).

    The tuner has weights and activations in its updates, and 0.6 of that what its libraries take at their first use:
    those do not grow with the weights, and are much beside so few. With little memory to tune in, activations are few,
    the edit succeeds all the same, and its progress says that it is slower.
    """
    monkeypatch.setenv("UNITUNE_TUNING_MEMORY_GB", memory_gb)
    told: list[object] = []
    report = built.report(edit(built, mode="full", updates=updates, steps=2, on_event=told.append))

    for name, most in (("sampler, idle", 1.3), ("sampler, after", 1.45), ("tuner, edit", tuner_most)):
        assert stage(report, name).private_w <= most, report.table()
    warnings = {event.progress.warning for event in told if isinstance(event, TuningProgress)}
    assert (memory_gb == "0") == (warnings == {""}), warnings
