"""TensorRT's ways of failing, on a fake GPU: what each leaves behind, and what is refused when a plan is opened."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.build.folder import build
from sampler_svc.build.tensorrt import tensorrt_builder
from sampler_svc.engines.cuda_device import CudaError, Device
from sampler_svc.engines.engine import BackendMissing, EngineSpec, WeightSet
from sampler_svc.engines.folder import UnusableEngine
from sampler_svc.engines.tensorrt import PLAN_FILE, RUNTIME_CACHE_FILE, TrtEngine
from sampler_svc.engines.trt_library import LIBRARIES, TENSORRT_RTX, TrtLibrary, check_version, open_library
from sampler_svc.engines.weights import base_weights
from tests.sampler_svc.fake_gpu import ILLEGAL_ADDRESS, RTX_VERSION, FakeCuda, FakeTensorRT, Faults, fake_runtime
from tests.sampler_svc.rtx import real_rtx
from tests.sampler_svc.tunings import Tunings, answers
from unitune.base_model import BaseModelSpec
from unitune.errors import DataLoss, Internal

Open = Callable[..., TrtEngine]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan_folder(tiny_fp16_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder with a tested plan. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("plans") / "tiny"
    return build(tiny_fp16_graphs, folder, tensorrt_builder(fake_runtime(Faults())))


@pytest.fixture(scope="module")
def plan_base(plan_folder: Path, spec: BaseModelSpec) -> WeightSet:
    """The base weights with this folder's probe."""
    return base_weights(plan_folder, spec)


@pytest.fixture(scope="module")
def tuned(tunings: Tunings) -> tuple[WeightSet, WeightSet]:
    """Two tunings."""
    return tunings.weights(1), tunings.weights(2)


@pytest.fixture
def faults() -> Faults:
    """What is to go wrong."""
    return Faults()


@pytest.fixture
def cuda(faults: Faults) -> FakeCuda:
    """The fake device's runtime."""
    return FakeCuda(faults)


@pytest.fixture
def open_engine(plan_folder: Path, spec: BaseModelSpec, cuda: FakeCuda) -> Iterator[Open]:
    """Opens an engine on the fake device, and closes it in the end."""
    opened = []

    def open_one(**options: bool) -> TrtEngine:
        engine = TrtEngine(plan_folder, EngineSpec.from_model(spec), FakeTensorRT(cuda), Device(cuda), **options)
        opened.append(engine)
        return engine

    yield open_one
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("version", ["11.3.0.14", "11.3", "10.13.3.9", "8.6.1", "9.9.9"])
def test_versions_that_cannot_be_trusted_are_refused(version: str) -> None:
    """The reason names the version found and the ones that would do."""
    with pytest.raises(BackendMissing, match=rf"TensorRT is {version}.*11\.4"):
        check_version(version)


@pytest.mark.parametrize("version", ["10.14.1.48", "10.16.0", "11.0.0", "11.2.1", "11.4.0.106", "11.10.0", "12.0.0"])
def test_other_versions_are_left_to_the_self_test(version: str) -> None:
    """Old enough to have the API and not known to be wrong: the self-test of the plan decides."""
    check_version(version)


@pytest.mark.parametrize("version", ["", "unknown", "11"])
def test_a_version_that_is_no_number_is_refused(version: str) -> None:
    """An error, and no guess."""
    with pytest.raises(BackendMissing, match="version"):
        check_version(version)


def test_without_a_gpu_nothing_of_tensorrt_is_touched() -> None:
    """No device is an error before TensorRT's runtime is opened, which would end the process."""
    with pytest.raises(CudaError, match="no CUDA-capable device"):
        Device(FakeCuda(devices=0))


def test_weights_are_bound_once_and_refitted_many_times(
    open_engine: Open, plan_base: WeightSet, tuned: tuple[WeightSet, WeightSet], cuda: FakeCuda
) -> None:
    """No refit allocates anything: the same staging memory serves all, every tensor at an aligned place of its own."""
    engine = open_engine()
    named = engine._refitter.named
    spans = sorted((weights.ptr, weights.ptr + 2 * weights.size) for weights in named.values())
    before, allocated = dict(named), set(cuda.memory)

    for weights in (plan_base, *tuned, plan_base):
        engine.refit(weights)

    assert named == before and set(cuda.memory) == allocated
    assert named.keys() == plan_base.tensors.keys()
    assert all(start % 256 == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_closing_frees_all_memory(open_engine: Open, plan_base: WeightSet, cuda: FakeCuda) -> None:
    """Device memory, pinned memory, the stream and the captured graph."""
    engine = open_engine(use_cuda_graph=True)
    engine.refit(plan_base)
    assert cuda.memory and cuda.graphs == 1

    engine.close()

    assert not cuda.memory and not cuda.streams and cuda.graphs == 0


@pytest.mark.parametrize("fault", ["refit", "missing", "execute", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_refit_that_fails_poisons_the_engine(
    open_engine: Open, plan_base: WeightSet, tuned: tuple[WeightSet, WeightSet], faults: Faults, fault: str
) -> None:
    """False, a missing weight or an error of the device: the weights are unknown, and no run uses them."""
    engine = open_engine()
    engine.refit(plan_base)
    if fault.startswith("cuda"):
        faults.cuda[fault] = ILLEGAL_ADDRESS
    elif fault == "missing":
        faults.missing = ("tmp_weight_0",)
    else:
        setattr(faults, fault, True)

    with pytest.raises(Internal) as failure:
        engine.refit(tuned[0])

    assert failure.value.reason == "ENGINE_FAILED"
    assert engine.weights is None
    with pytest.raises(Internal, match="unknown weights"):
        answers(engine)


def test_a_partial_refit_is_made_good_by_a_whole_one(
    open_engine: Open, plan_base: WeightSet, tuned: tuple[WeightSet, WeightSet], faults: Faults
) -> None:
    """Half of the weights were written before TensorRT said False; the next refit carries all of them."""
    engine = open_engine()
    engine.refit(tuned[1])
    expected = answers(engine)
    faults.refit = True
    with pytest.raises(Internal):
        engine.refit(tuned[0])
    faults.refit = False

    engine.refit(tuned[1])

    np.testing.assert_array_equal(answers(engine), expected)


def test_a_run_that_fails_poisons_the_engine(open_engine: Open, plan_base: WeightSet, faults: Faults) -> None:
    """After an error of the device nobody knows what its memory holds, so the engine is not used again."""
    engine = open_engine()
    engine.refit(plan_base)
    faults.cuda["cudaStreamSynchronize"] = ILLEGAL_ADDRESS

    with pytest.raises(Internal) as failure:
        answers(engine)

    assert failure.value.reason == "ENGINE_FAILED" and "memory" not in failure.value.message
    assert engine.weights is None


def test_weights_that_tensorrt_silently_left_behind_fail_the_probe(
    open_engine: Open, plan_base: WeightSet, tuned: tuple[WeightSet, WeightSet], faults: Faults
) -> None:
    """True was the answer, and the old weights are still there."""
    engine = open_engine()
    engine.refit(plan_base)
    faults.stale = tuple(plan_base.tensors)

    with pytest.raises(DataLoss, match="probe"):
        engine.refit(tuned[0])

    assert engine.weights is None


def test_a_graph_is_captured_once_and_sees_refits(
    open_engine: Open, plan_base: WeightSet, tuned: tuple[WeightSet, WeightSet], cuda: FakeCuda
) -> None:
    """Through a graph the answers are those without one, for every set of weights, after one capture."""
    through, plain = open_engine(use_cuda_graph=True), open_engine()

    for weights in (plan_base, *tuned, plan_base):
        for engine in (through, plain):
            engine.refit(weights)
        np.testing.assert_array_equal(answers(through), answers(plain))

    assert cuda.captures == 1


def test_a_graph_that_keeps_old_weights_is_captured_again(
    open_engine: Open, plan_base: WeightSet, tuned: tuple[WeightSet, WeightSet], faults: Faults, cuda: FakeCuda
) -> None:
    """The probe goes through the graph and finds them; a new capture gives the new answers."""
    faults.graph_keeps_weights = True
    engine, plain = open_engine(use_cuda_graph=True), open_engine()
    engine.refit(plan_base)

    for weights in tuned:
        assert 0 < engine.refit(weights).probe_ratio < 0.02
        plain.refit(weights)
        np.testing.assert_array_equal(answers(engine), answers(plain))

    assert cuda.captures == 3 and cuda.graphs == 1


@pytest.mark.parametrize("step", ["cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"])
def test_a_capture_that_fails_is_the_engines_failure(
    open_engine: Open, plan_base: WeightSet, faults: Faults, cuda: FakeCuda, step: str
) -> None:
    """An error in capturing or launching poisons the engine; closing it still frees everything."""
    faults.cuda[step] = ILLEGAL_ADDRESS
    engine = open_engine(use_cuda_graph=True)

    with pytest.raises(Internal) as failure:
        engine.refit(plan_base)
    cuda.captured = None
    engine.close()

    assert failure.value.reason == "ENGINE_FAILED" and not cuda.memory


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("deserialise", "does not take the plan"),
        ("context", "no memory"),
        ("missing", "wants 1 more weights"),
        ("cudaMalloc", "memory access"),
    ],
)
def test_a_plan_that_cannot_be_opened_says_why(
    open_engine: Open, faults: Faults, cuda: FakeCuda, fault: str, reason: str
) -> None:
    """None where an engine or a context should be, or weights that nobody knows: an error, and no memory kept."""
    if fault == "cudaMalloc":
        faults.cuda[fault] = ILLEGAL_ADDRESS
    elif fault == "missing":
        faults.missing = ("tmp_weight_0",)
    else:
        setattr(faults, fault, True)

    with pytest.raises(UnusableEngine, match=reason):
        open_engine()

    assert not cuda.memory


@pytest.fixture
def altered(plan_folder: Path, spec: BaseModelSpec, tmp_path: Path, cuda: FakeCuda) -> Callable[..., TrtEngine]:
    """Opens the plan after a change of it."""

    def open_altered(**changes: object) -> TrtEngine:
        folder = Path(shutil.copytree(plan_folder, tmp_path / "altered"))
        plan = json.loads((folder / PLAN_FILE).read_text())
        (folder / PLAN_FILE).write_text(json.dumps(plan | changes))
        return TrtEngine(folder, EngineSpec.from_model(spec), FakeTensorRT(cuda), Device(cuda))

    return open_altered


def test_a_plan_of_another_version_is_refused(altered: Callable[..., TrtEngine]) -> None:
    """TensorRT gives None for it."""
    with pytest.raises(UnusableEngine, match="does not take the plan"):
        altered(version="11.2.0")


def test_a_plan_built_without_refit_is_refused(altered: Callable[..., TrtEngine]) -> None:
    """It could only ever be the base model."""
    with pytest.raises(UnusableEngine, match="cannot be refitted"):
        altered(marked=[])


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_a_plan_with_other_weights_than_the_models_is_refused(
    altered: Callable[..., TrtEngine], plan_base: WeightSet, change: str
) -> None:
    """The names are compared by us, for there were releases whose own list of missing weights was not complete."""
    names = sorted(plan_base.tensors)

    with pytest.raises(UnusableEngine, match="are not the model's tensors"):
        altered(marked=names[1:] if change == "fewer" else [*names, "another.weight"])


def test_a_plan_for_other_shapes_is_refused(altered: Callable[..., TrtEngine]) -> None:
    """A context that refuses the shape of an input is not run."""
    with pytest.raises(UnusableEngine, match="was not made for sample of shape"):
        altered(shapes={"sample": [4, 4, 12, 12], "timestep": [4], "encoder_hidden_states": [4, 16, 32]})


def test_a_damaged_plan_is_refused(plan_folder: Path, spec: BaseModelSpec, tmp_path: Path, cuda: FakeCuda) -> None:
    """Bytes that are no plan give None, and None an error."""
    folder = Path(shutil.copytree(plan_folder, tmp_path / "damaged"))
    (folder / PLAN_FILE).write_bytes(b"\x00" * 64)

    with pytest.raises(UnusableEngine, match="does not take the plan"):
        TrtEngine(folder, EngineSpec.from_model(spec), FakeTensorRT(cuda), Device(cuda))


def test_a_plan_that_was_never_tested_is_refused(plan_folder: Path, spec: BaseModelSpec, tmp_path: Path) -> None:
    """No report of a self-test, no engine, even if everything else is there."""
    folder = Path(shutil.copytree(plan_folder, tmp_path / "untested"))
    (folder / "self_test_report.json").unlink()

    with pytest.raises(UnusableEngine, match="never passed the engine self-test"):
        TrtEngine.open_tested(folder, EngineSpec.from_model(spec), fake_runtime(Faults()))


def test_the_engines_rounding_is_what_its_plan_was_found_to_have(
    plan_folder: Path, spec: BaseModelSpec, tmp_path: Path
) -> None:
    """A plan that rounds more than PyTorch does is not held to PyTorch's rounding in every probe."""
    folder = Path(shutil.copytree(plan_folder, tmp_path / "coarse"))
    found = json.loads((folder / "self_test_report.json").read_text())
    noise = found["noise"]["base"]
    (folder / "self_test_report.json").write_text(
        json.dumps(found | {"errors": {**found["errors"], "base": 2 * noise}})
    )

    coarse, fine = (
        TrtEngine.open_tested(each, EngineSpec.from_model(spec), fake_runtime(Faults()))
        for each in (folder, plan_folder)
    )

    assert coarse.rounding == pytest.approx(2 * noise) and fine.rounding == pytest.approx(noise)
    coarse.close()
    fine.close()


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=str)
def test_all_that_is_missing_is_named_at_once(library: TrtLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cuda-bindings and without the library the error says so of both, and how to install them."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, library.module, None)

    with pytest.raises(BackendMissing) as missing:
        open_library(library)

    told = str(missing.value)
    assert "cuda-bindings cannot be imported" in told and f"{library.module} is not installed" in told
    assert told.count(f"pip install 'unitune[{library.extra}]'") == 2


def test_a_library_that_the_loader_does_not_find_is_named() -> None:
    """The bindings of TensorRT-RTX without the package of its libraries: the error names file and remedies."""
    real_rtx()  # is here
    ask = "from sampler_svc.engines.backends import verdict; print(verdict('tensorrt-rtx'))"
    hide = "import sys; sys.modules['tensorrt_rtx_libs'] = None; "

    told = subprocess.run(
        [sys.executable, "-c", hide + ask], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout

    assert told.startswith("no: ")
    assert re.search(r"cannot be loaded \(libtensorrt\w*_rtx\.so\.1: cannot open shared object", told), told
    assert (
        "pip install 'unitune[sampler-rtx]', or put the folder of TensorRT-RTX's libraries on LD_LIBRARY_PATH" in told
    )


def test_compiled_kernels_are_kept_and_used(spec: BaseModelSpec, tiny_fp16_graphs: Path, tmp_path: Path) -> None:
    """The build's first context compiles all kernels; later ones have them, unless they are of another machine."""
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, RTX_VERSION)

    def open_again() -> tuple[FakeTensorRT, Device, TrtLibrary]:
        return trt, Device(cuda), TENSORRT_RTX

    folder = build(tiny_fp16_graphs, tmp_path / "engine", tensorrt_builder(open_again))
    assert trt.compiled[0] == b"" and set(trt.compiled[1:]) == {b"kernels"}
    (folder / RUNTIME_CACHE_FILE).write_bytes(b"of another GPU")
    TrtEngine.open_tested(folder, EngineSpec.from_model(spec), open_again).close()

    assert trt.compiled[-1] == b""
