"""Refitting in place: each way in which the runtime would keep old weights without a word is found by the build."""

import mmap
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from sampler_svc.build import cpu as cpu_build
from sampler_svc.build.builder import BuildError
from sampler_svc.build.folder import build
from sampler_svc.build.refit_check import MAX_REFIT_RATIO, References, check_refits, random_weights, reference_answer
from sampler_svc.config import SamplerConfig
from sampler_svc.engines import refit_modes
from sampler_svc.engines.cpu import NEW_SESSION, OrtEngine, session_options
from sampler_svc.engines.cpu_in_place import IN_PLACE, InPlaceEngine
from sampler_svc.engines.engine import BASE, Engine, EngineSpec, Probe, Tensors, WeightSet
from sampler_svc.engines.folder import EngineManifest, UnusableEngine
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.model import Model
from tests.sampler_svc.tunings import Tunings, answers, question
from unitune.base_model import BaseModelSpec, file_digest
from unitune.errors import DataLoss
from unitune.graph_files import DENOISER


class Plain(InPlaceEngine):
    """Over the graph that new sessions open, as where the build found no layout of the CPU's own."""

    def __init__(self, folder: Path, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None) -> None:
        super().__init__(folder, spec, threads, layout)
        self._path, self._blocked = folder / DENOISER, {}


class Optimised(Plain):
    """Without the guard against folding and the CPU's own layouts."""

    def _options(self) -> onnxruntime.SessionOptions:
        options = session_options(self._threads, "ORT_ENABLE_ALL")
        options.add_session_config_entry("session.disable_prepacking", "1")
        return options


class Swapped(InPlaceEngine):
    """Writes square kernels into the CPU's own layout with their inputs where their outputs belong."""

    def _view(self, name: str, tensor: np.ndarray) -> np.ndarray:
        is_square = name in self._blocked and tensor.ndim == 4 and tensor.shape[0] == tensor.shape[1]
        return super()._view(name, tensor.swapaxes(0, 1) if is_square else tensor)


class Prepacked(InPlaceEngine):
    """Without the guard against packed matrices."""

    def _options(self) -> onnxruntime.SessionOptions:
        return session_options(self._threads, "ORT_DISABLE_ALL")


class Copying(InPlaceEngine):
    """As if an OrtValue copied its array instead of being a view of it."""

    def _write(self, tensors: Tensors) -> None:
        super()._write(tensors)
        self._buffers = {name: buffer.copy() for name, buffer in (self._buffers or {}).items()}


class Forgetful(InPlaceEngine):
    """Leaves one tensor behind at every refit after the first."""

    forgotten = ""

    def _write(self, tensors: Tensors) -> None:
        kept = None if self._buffers is None else self._buffers[self.forgotten].copy()
        super()._write(tensors)
        if kept is not None:
            self._buffers[self.forgotten][...] = kept  # type: ignore[index]


@pytest.fixture(scope="module")
def expected(tiny_graphs: Path, spec: BaseModelSpec, base: WeightSet) -> References:
    """The two sets of weights that a build tries, and what an engine must answer."""
    drawn = random_weights(base.tensors)
    of_base, of_drawn = (
        reference_answer(tiny_graphs / DENOISER, EngineSpec.from_model(spec), tensors)
        for tensors in (base.tensors, drawn)
    )
    return References(
        WeightSet("base", base.tensors, Probe(0, of_base, of_base, spec.latent_side)),
        WeightSet("other", drawn, Probe(0, of_drawn, of_base, spec.latent_side)),
        of_base,
    )


def open_engine(kind: type[OrtEngine], engine_folder: Path, spec: BaseModelSpec, base: WeightSet) -> OrtEngine:
    """An engine that was never refitted."""
    engine_spec = EngineSpec.from_model(spec)
    return kind(engine_folder, engine_spec, 1, GraphLayout(engine_spec, base.tensors))


@pytest.mark.parametrize("kind", [Optimised, Prepacked, Swapped, Copying, Forgetful])
def test_the_build_finds_weights_that_silently_did_not_take(
    kind: type[InPlaceEngine],
    engine_folder: Path,
    spec: BaseModelSpec,
    base: WeightSet,
    expected: References,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Optimisation, prepacking, another layout, copied buffers and a forgotten tensor each fail; the real engine, on
    either graph, passes."""
    monkeypatch.setattr(Forgetful, "forgotten", min(base.tensors))

    for right in (InPlaceEngine, Plain):
        check_refits(open_engine(right, engine_folder, spec, base), expected)
    with pytest.raises(BuildError):
        check_refits(open_engine(kind, engine_folder, spec, base), expected)


def test_the_build_would_find_any_single_tensor_left_behind(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, expected: References
) -> None:
    """With its random weights every tensor alone moves the answer by more than the bound, and rounding by far less."""
    engine, drawn = open_engine(InPlaceEngine, engine_folder, spec, base), expected.other
    engine.refit(drawn)
    of_drawn = engine.run(*question(engine.spec, seed=0))
    effect = np.linalg.norm(drawn.probe.expected - drawn.probe.base)

    moved = {}
    for name in base.tensors:
        engine._write({**drawn.tensors, name: base.tensors[name]})
        moved[name] = float(np.linalg.norm(engine.run(*question(engine.spec, seed=0)) - of_drawn) / effect)
    engine._write(drawn.tensors)

    assert {name: ratio for name, ratio in moved.items() if ratio < MAX_REFIT_RATIO} == {}
    assert engine.refit(drawn).probe_ratio < MAX_REFIT_RATIO / 20


def test_a_build_where_writes_are_not_seen_offers_new_sessions_alone(
    tiny_graphs: Path,
    engine_folder: Path,
    spec: BaseModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The engine is built all the same, says why, and its manifest does not list the mode."""
    assert EngineManifest.load(engine_folder).refit_modes == (NEW_SESSION, IN_PLACE)
    monkeypatch.setattr(cpu_build, "InPlaceEngine", Prepacked)

    folder = build(tiny_graphs, tmp_path / "engine")

    assert EngineManifest.load(folder).refit_modes == (NEW_SESSION,)
    assert "every refit will open a new session" in capsys.readouterr().err
    with pytest.raises(UnusableEngine, match="not proven: use new_session"):
        Model.open(folder, threads=1, refit_mode=IN_PLACE)
    model = Model.open(folder, threads=1)
    with model.pool.lease(BASE, lambda: model.base) as lease:
        assert type(lease.engine) is OrtEngine


@pytest.mark.parametrize(
    ("mode", "kind"), [("auto", InPlaceEngine), (IN_PLACE, InPlaceEngine), (NEW_SESSION, OrtEngine)]
)
def test_the_mode_asked_for_is_the_mode_of_the_engine(
    engine_folder: Path, mode: str, kind: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model is refitted in place by default, a large one is not."""
    model = Model.open(engine_folder, threads=1, refit_mode=mode)
    with model.pool.lease(BASE, lambda: model.base) as lease:
        assert type(lease.engine) is kind
    monkeypatch.setattr(refit_modes, "IN_PLACE_BYTES", 1000)
    large = Model.open(engine_folder, threads=1)
    with large.pool.lease(BASE, lambda: large.base) as lease:
        assert type(lease.engine) is OrtEngine


def test_a_refit_that_broke_off_leaves_no_old_tensor_behind(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers that a broken refit has written are written again, though the next tensors are the base model's own."""
    engine, weights = open_engine(InPlaceEngine, engine_folder, spec, base), tunings.weights(1)
    engine.refit(base)
    before, copyto, copies = answers(engine), np.copyto, []

    def breaking(*arguments: object, **options: object) -> None:
        copies.append(1)
        if len(copies) > len(base.tensors) // 2:
            raise MemoryError("in the middle")
        copyto(*arguments, **options)

    monkeypatch.setattr("sampler_svc.engines.cpu_in_place.np.copyto", breaking)
    with pytest.raises(MemoryError):
        engine.refit(weights)
    assert engine.weights is None
    monkeypatch.undo()
    engine.refit(base)

    np.testing.assert_array_equal(answers(engine), before)


def test_a_refit_copies_only_what_is_not_there_already(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a tuning of two tensors to one of another: the base's two come back, the other's one goes in."""
    names = sorted(base.tensors)[:3]
    engine = open_engine(InPlaceEngine, engine_folder, spec, base)
    engine.refit(base)
    engine.refit(tunings.weights(1, names=names[:2]))
    copyto, copies = np.copyto, []

    def counting(*arguments: object, **options: object) -> None:
        copies.append(1)
        copyto(*arguments, **options)

    monkeypatch.setattr("sampler_svc.engines.cpu_in_place.np.copyto", counting)
    engine.refit(tunings.weights(2, names=names[2:]))

    assert len(copies) == 3


class Mapped(Plain):
    """As of a large model: over a map of the base weights' file."""

    def __init__(self, folder: Path, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None) -> None:
        super().__init__(folder, spec, threads, layout)
        self._is_large = True


def own_bytes(path: Path) -> int:
    """Memory of this process's maps of a file that is no longer the file's."""
    found, is_of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *others = line.split()
        if not first.endswith(":"):
            is_of_file = bool(others) and others[-1] == str(path)
        elif first == "Anonymous:" and is_of_file:
            found += int(others[0]) << 10
    return found


def test_a_map_of_the_weights_is_refitted_and_the_base_weights_come_back_without_its_pages(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, expected: References, tunings: Tunings
) -> None:
    """A, B, A and the base model answer as over buffers; what a tuning had of its own is given back, but for the pages
    at the ends of its tensors; the file never changes (M37)."""
    file = engine_folder / spec.base_weights
    before, digest = own_bytes(file), file_digest(file)
    mapped, plain = (open_engine(kind, engine_folder, spec, base) for kind in (Mapped, Plain))
    check_refits(open_engine(Mapped, engine_folder, spec, base), expected)

    for weights in (base, tunings.weights(1), tunings.weights(2), tunings.weights(1), base):
        mapped.refit(weights)
        plain.refit(weights)
        np.testing.assert_array_equal(answers(mapped), answers(plain))
        held = own_bytes(file) - before
        if weights is not base:
            tuned = [name for name, tensor in weights.tensors.items() if tensor is not base.tensors[name]]
            assert held >= sum(base.tensors[name].nbytes for name in tuned)

    of_ends = 2 * mmap.PAGESIZE * len(base.tensors)
    assert held <= of_ends < sum(tensor.nbytes for tensor in base.tensors.values())
    mapped.refit(expected.other)
    assert own_bytes(file) - before > of_ends
    mapped.refit(base)
    assert own_bytes(file) - before <= of_ends
    np.testing.assert_array_equal(answers(mapped), answers(plain))
    assert file_digest(file) == digest


def test_a_broken_refit_of_a_map_leaves_no_weights_and_no_old_tensor(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings
) -> None:
    """A tensor that cannot be decoded when it is written stops the refit half way; the next one writes all of it (M37).
    One that fails its check leaves the engine as it was."""
    engine, weights = open_engine(Mapped, engine_folder, spec, base), tunings.weights(1)
    engine.refit(base)
    before = answers(engine)
    tensors = {**weights.tensors, max(weights.tensors): np.full_like(weights.tensors[max(weights.tensors)], np.nan)}
    with pytest.raises(DataLoss, match="not finite"):
        engine.refit(WeightSet("broken", tensors, weights.probe))
    assert engine.weights == base.id

    class Breaking(dict[str, np.ndarray]):
        """Gives each tensor once for its check; then the last one is lost."""

        def __getitem__(self, name: str) -> np.ndarray:
            if name == max(self) and name in seen:
                raise MemoryError("in the middle")
            seen.add(name)
            return super().__getitem__(name)

    seen: set[str] = set()
    with pytest.raises(MemoryError):
        engine.refit(WeightSet("breaking", Breaking(weights.tensors), weights.probe))
    assert engine.weights is None
    engine.refit(base)

    np.testing.assert_array_equal(answers(engine), before)


@pytest.mark.parametrize(("kind", "refusal"), [("writeable", ValueError), ("nan", DataLoss), ("missing", DataLoss)])
def test_only_read_only_and_checked_arrays_are_trusted_later(
    spec: BaseModelSpec, base: WeightSet, kind: str, refusal: type[Exception]
) -> None:
    """What a refit does not look through again has been looked through once, and cannot change."""
    tensors = dict(base.tensors)
    name = min(tensors)
    tensor = tensors.pop(name).copy()
    if kind == "nan":
        tensor.flat[0] = np.nan
        tensor.flags.writeable = False
    if kind != "missing":
        tensors[name] = tensor

    with pytest.raises(refusal):
        GraphLayout(EngineSpec.from_model(spec), tensors)


def test_an_unknown_refit_mode_is_refused_at_the_start(tmp_path: Path) -> None:
    """The error names the setting, its value and what would be right."""
    with pytest.raises(ValueError, match=r"UNITUNE_REFIT_MODE is 'quick': .*new_session, in_place"):
        SamplerConfig(engine=tmp_path, store="store", refit_mode="quick")
