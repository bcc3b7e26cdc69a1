"""The engines on a real NVIDIA GPU: build, self-test, contract and times of each backend. `make test-gpu` runs them.

They skip, with the reason, where a backend cannot run. What they find is written to out/gpu/{backend}.json, or into the
folder UNITUNE_GPU_OUT, so that a number in a page has a file to come from. UNITUNE_GRAPHS may name a graphs folder
exported with --fp16; without it the tiny model is used, which says nothing about speed.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.build.__main__ import builder_of
from sampler_svc.build.folder import build
from sampler_svc.config import AUTO, BACKENDS
from sampler_svc.engines.backends import Backend, backend_of
from sampler_svc.engines.engine import BASE, BackendMissing, Engine, EngineSpec, Probe, WeightSet
from sampler_svc.engines.fp16_weights import BATCH
from sampler_svc.engines.self_test import MAX_ERROR, SelfTest, SelfTestReport
from sampler_svc.engines.weights import base_weights
from sampler_svc.model import Model
from sampler_svc.sampling.request import Request
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import picture
from unitune.base_model import BaseModelSpec
from unitune.fp16_graph import SELF_TEST_PROBE_SEED, SELF_TEST_SEEDS, self_test_tensors

pytestmark = pytest.mark.gpu

OUT = Path(os.environ.get("UNITUNE_GPU_OUT") or Path(__file__).resolve().parents[2] / "out" / "gpu")
REFITS = 20
RUNS = 50


@pytest.fixture(scope="module")
def graphs(request: pytest.FixtureRequest) -> Path:
    """Graphs with the fp16 graph."""
    given = os.environ.get("UNITUNE_GRAPHS")
    return Path(given) if given else request.getfixturevalue("tiny_fp16_graphs")


@pytest.fixture(scope="module", params=BACKENDS[1:])
def name(request: pytest.FixtureRequest) -> str:
    """A backend."""
    return request.param


@pytest.fixture(scope="module")
def backend(name: str) -> Backend:
    """The backend, if this machine has it."""
    try:
        return backend_of(name)
    except BackendMissing as error:
        pytest.skip(f"NOT RUN on a GPU: {name} cannot run here: {error}")


@pytest.fixture(scope="module")
def folder(name: str, backend: Backend, graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backend's engine folder, built now."""
    return build(graphs, tmp_path_factory.mktemp("gpu") / name, builder_of(name))


@pytest.fixture(scope="module")
def spec(folder: Path) -> BaseModelSpec:
    """The base model."""
    return BaseModelSpec.load(folder)


@pytest.fixture(scope="module")
def sets(folder: Path, spec: BaseModelSpec) -> dict[str, WeightSet]:
    """The base weights and the self-test's random ones, each with PyTorch's answer as its probe."""
    self_test, base = SelfTest(folder), base_weights(folder, spec)
    return {BASE: base} | {
        name: WeightSet(
            name,
            self_test_tensors(seed, spec.tensors),
            Probe(SELF_TEST_PROBE_SEED, self_test.answers[name], self_test.answers["base"]),
        )
        for name, seed in SELF_TEST_SEEDS.items()
    }


@pytest.fixture
def engine(backend: Backend, folder: Path, spec: BaseModelSpec) -> Iterator[Engine]:
    """An engine."""
    engine = backend.opener(folder, EngineSpec.from_model(spec), base_weights(folder, spec), 0, AUTO)()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def record(name: str) -> Iterator[Callable[..., None]]:
    """Keeps numbers, and writes them to the backend's file in the end."""
    found: dict[str, object] = {}
    yield lambda **numbers: found.update(numbers)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True))


def ask(engine: Engine) -> np.ndarray:
    """The engine's answer to a fixed question of one batch."""
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((BATCH, *engine.spec.latent), dtype=np.float32)
    contexts = rng.standard_normal((BATCH, *engine.spec.context), dtype=np.float32)
    return engine.run(latents, np.array([200, 800], dtype=np.int64), contexts)


def test_the_plan_passes(folder: Path, graphs: Path, record: Callable[..., None]) -> None:
    """The engine self-test passed at the build, for all sets of weights; its errors and times are kept."""
    found = SelfTestReport.load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())

    record(self_test=asdict(found), build_s=manifest["build_s"], graphs=graphs.name)
    assert all(error < MAX_ERROR * found.noise[each] for each, error in found.errors.items())


def test_a_b_a_is_a(engine: Engine, sets: dict[str, WeightSet]) -> None:
    """Refitting A, B and A again gives A's bits, and the base comes back after both."""
    said = {}
    for name in (BASE, "first", "second", "first", BASE):
        engine.refit(sets[name])
        answer = ask(engine)
        np.testing.assert_array_equal(said.setdefault(name, answer), answer)

    assert np.abs(said["first"] - said[BASE]).max() > 0.01


def test_many_refits_stay_right(engine: Engine, sets: dict[str, WeightSet], record: Callable[..., None]) -> None:
    """Refits in turn are all proven, and the last takes no longer than the first by much; their seconds are kept."""
    reports = [engine.refit(sets[("first", "second")[index % 2]]) for index in range(REFITS)]

    written = [report.write_s for report in reports]
    record(refit_s=statistics.median(written), probe_s=statistics.median(report.probe_s for report in reports))
    assert max(report.probe_ratio for report in reports) < 0.02
    assert statistics.median(written[-5:]) < 3 * statistics.median(written[1:6])


def test_a_run_is_timed(engine: Engine, sets: dict[str, WeightSet], record: Callable[..., None]) -> None:
    """Runs of one batch give the same bits each time; their median is kept."""
    engine.refit(sets[BASE])
    expected, seconds = ask(engine), []
    for _ in range(RUNS):
        began = time.perf_counter()
        answer = ask(engine)
        seconds.append(time.perf_counter() - began)
        np.testing.assert_array_equal(answer, expected)

    record(run_s=statistics.median(seconds), batch=BATCH)


def test_an_edit_comes_out(name: str, backend: Backend, folder: Path, record: Callable[..., None]) -> None:
    """The whole way from a picture to a picture, on the backend; its seconds are kept."""
    model = Model.open(folder, backend=name)
    request = Request(picture(), "a cat", "ddim", 20, 4.0, 0.8, (0, 1))
    try:
        with model.pool.lease(BASE, lambda: model.base) as lease:
            first = edit_events(request, model.tools(lease.engine.run))
            began = time.perf_counter()
            again = edit_events(request, model.tools(lease.engine.run))
    finally:
        model.pool.close()

    record(edit_s=time.perf_counter() - began, engine=model.engine)
    pngs = [[event.png for event in events if hasattr(event, "png")] for events in (first, again)]
    assert len(pngs[0]) == 2 and pngs[0] == pngs[1]
