"""Building for a GPU: what the builder is told, what the engine self-test lets through, and what is refused.

TensorRT is that of fake_gpu.py, real up to the plan; ONNX Runtime is real, on its CPU provider in place of CUDA.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sampler_svc.build.__main__ import main
from sampler_svc.build.builder import BackendBuilder, BuildError
from sampler_svc.build.cuda import cuda_builder
from sampler_svc.build.folder import build, read_graphs
from sampler_svc.build.tensorrt import build_plan, tensorrt_builder
from sampler_svc.config import BACKENDS
from sampler_svc.engines import backends, cuda
from sampler_svc.engines.cuda import CPU, OrtCudaEngine, check_cuda
from sampler_svc.engines.engine import BackendMissing, EngineSpec
from sampler_svc.engines.folder import EngineManifest, UnusableEngine, open_folder
from sampler_svc.engines.self_test import MAX_ERROR, SelfTestReport
from sampler_svc.engines.tensorrt import PLAN_FILE, RUNTIME_CACHE_FILE, WORKSPACE_BYTES
from sampler_svc.engines.trt_library import LIBRARIES, TENSORRT_RTX, TrtLibrary
from tests.sampler_svc.fake_gpu import NO_DEVICE, FakeCuda, FakeTensorRT, Faults, fake_runtime
from tests.sampler_svc.tunings import Tunings
from unitune.base_model import BaseModelSpec
from unitune.errors import DataLoss

FOLDER_FILES = {
    "fp16.json",
    "self_test.safetensors",
    "self_test_report.json",
    "probe.safetensors",
    "denoiser.safetensors",
}


@pytest.fixture
def graphs(tiny_fp16_graphs: Path, tmp_path: Path) -> Path:
    """A copy of the graphs, to be damaged."""
    return Path(shutil.copytree(tiny_fp16_graphs, tmp_path / "graphs"))


@pytest.fixture
def trt() -> FakeTensorRT:
    """A fake TensorRT."""
    return FakeTensorRT(FakeCuda())


def fake_builder(library: TrtLibrary) -> BackendBuilder:
    """The builder of one of the two libraries on a fake GPU."""
    return tensorrt_builder(fake_runtime(Faults(), library=library))


def plan_of(trt: FakeTensorRT, graphs: Path, spec: BaseModelSpec) -> bytes:
    """The plan of the fp16 graph."""
    return build_plan(trt, graphs / "fp16" / "denoiser.onnx", spec, graphs / "timing.cache")


def test_the_builder_is_told_what_the_design_asks(graphs: Path, spec: BaseModelSpec, trt: FakeTensorRT) -> None:
    """REFIT_INDIVIDUAL and no TF32, just the model's tensors marked, one profile of batch two, a limit of workspace."""
    plan = json.loads(plan_of(trt, graphs, spec))
    (config,) = trt.built

    assert config.get_flag(trt.BuilderFlag.REFIT_INDIVIDUAL) and not config.get_flag(trt.BuilderFlag.TF32)
    assert set(plan["marked"]) == set(spec.tensors)
    assert config.num_optimization_profiles == 1
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == WORKSPACE_BYTES
    latent, context = (spec.latent_channels, *spec.latent_side), (spec.context_tokens, spec.context_width)
    expected = {"sample": [2, *latent], "timestep": [2], "encoder_hidden_states": [2, *context]}
    assert plan["shapes"] == expected


def test_the_builder_of_rtx_is_told_what_differs(graphs: Path, spec: BaseModelSpec, trt: FakeTensorRT) -> None:
    """Memory is the engine's own, the plan is for this GPU alone, and nothing is timed."""
    build_plan(trt, graphs / "fp16" / "denoiser.onnx", spec, graphs / "timing.cache", TENSORRT_RTX)
    (config,) = trt.built

    for flag in (trt.BuilderFlag.REFIT_INDIVIDUAL, trt.BuilderFlag.REQUIRE_USER_ALLOCATION):
        assert config.get_flag(flag), flag
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.num_compute_capabilities == 1
    assert config.cache is None and not (graphs / "timing.cache").exists()


def test_a_timing_cache_is_kept_and_used(graphs: Path, spec: BaseModelSpec, trt: FakeTensorRT) -> None:
    """The first build fills an empty cache, the second one gets its times; one of another GPU is replaced."""
    cache = graphs / "timing.cache"
    contents = []
    for found in (None, b"times", b"of another GPU"):
        if found is not None:
            cache.write_bytes(found)
        plan_of(trt, graphs, spec)
        contents.append(trt.built[-1].cache.content)

    assert contents == [b"", b"times", b""]
    assert cache.read_bytes() == b"times"


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults(build=True), "cannot build a plan"),
        (Faults(deserialise=True), "does not take the plan"),
        (Faults(context=True), "no memory"),
        (Faults(refit=True), "cannot be used"),
        (Faults(execute=True), "cannot be used"),
        (Faults(missing=("tmp_weight_3",)), "wants 1 more weights"),
        (Faults(lost=("conv_in.bias",)), "are not the model's tensors"),
        (Faults(stale=("conv_in.bias",)), "with first weights its answer is"),
        (Faults(stale=("time_embedding.linear_1.bias",)), "with first weights its answer is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_goes_wrong_there_is_no_engine(graphs: Path, tmp_path: Path, faults: Faults, reason: str) -> None:
    """False or None from any call, and every wrong answer, is a BuildError with its reason; nothing is published."""
    with pytest.raises(BuildError, match=reason):
        build(graphs, tmp_path / "engine", tensorrt_builder(fake_runtime(faults)))

    assert not (tmp_path / "engine").exists()
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "graphs"]


def test_the_self_test_finds_a_plan_that_is_wrong_before_any_refit(graphs: Path, spec: BaseModelSpec) -> None:
    """A bias that counts as zero in the plan, as 11.3 may build it, shows in the base model's answer."""
    from sampler_svc.engines.self_test import SelfTest, SelfTestFailed
    from sampler_svc.engines.tensorrt import TrtEngine

    faults = Faults()
    engine_folder = build(graphs, graphs.parent / "engine", tensorrt_builder(fake_runtime(faults)))
    engine = TrtEngine(engine_folder, EngineSpec.from_model(spec), *fake_runtime(faults)())
    bias = engine._engine.weights["mid_block.resnets.0.conv1.bias"]
    engine._engine.weights["mid_block.resnets.0.conv1.bias"] = np.zeros_like(bias)

    with pytest.raises(SelfTestFailed, match="with base weights"):
        SelfTest(engine_folder).run(engine)
    engine.close()


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_an_engine_folder_is_whole_and_tested(
    tiny_fp16_graphs: Path, tmp_path: Path, spec: BaseModelSpec, name: str
) -> None:
    """Errors of all sets within bounds, the base model's probe from PyTorch, and every file with its digest."""
    builder = cuda_builder(CPU) if name == "onnxruntime-cuda" else fake_builder(LIBRARIES[name])
    folder = build(tiny_fp16_graphs, tmp_path / "engine", builder)
    found, manifest = SelfTestReport.load(folder), EngineManifest.load(folder)

    assert found.errors.keys() == found.noise.keys() == {"base", "first", "second"}
    assert all(0 < error < MAX_ERROR * found.noise[name] for name, error in found.errors.items())
    assert found.in_place and found.cuda_graph == (name in LIBRARIES)
    assert found.backend == builder.facts == manifest.key.backend and found.backend["runtime"] == name
    assert (folder / RUNTIME_CACHE_FILE).exists() == (name == "tensorrt-rtx")
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"manifest.json"} > FOLDER_FILES
    probe, self_test = load_file(folder / "probe.safetensors"), load_file(folder / "self_test.safetensors")
    np.testing.assert_array_equal(probe["base"], self_test["base"])
    assert open_folder(folder, builder.facts) == spec


def test_a_graph_that_keeps_old_weights_is_not_used(tiny_fp16_graphs: Path, tmp_path: Path) -> None:
    """The plan is good all the same: it passes without CUDA graphs, and engines open without."""
    builder = tensorrt_builder(fake_runtime(Faults(graph_keeps_weights=True)))

    found = SelfTestReport.load(build(tiny_fp16_graphs, tmp_path / "engine", builder))

    assert not found.cuda_graph and found.errors.keys() == {"base", "first", "second"}


def test_a_runtime_that_does_not_see_writes_in_place_gets_new_sessions(
    tiny_fp16_graphs: Path, tmp_path: Path, spec: BaseModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where values written into a session's weights do not show, the self-test finds out and the engine opens anew."""
    written = OrtCudaEngine._write

    def unseen(engine: OrtCudaEngine, tensors: dict[str, np.ndarray]) -> None:
        if engine._session is None or not engine._in_place:
            written(engine, tensors)

    monkeypatch.setattr(OrtCudaEngine, "_write", unseen)
    folder = build(tiny_fp16_graphs, tmp_path / "engine", cuda_builder(CPU))

    assert not SelfTestReport.load(folder).in_place
    assert not OrtCudaEngine.open_tested(folder, EngineSpec.from_model(spec), CPU)._in_place


def test_writes_that_stop_showing_are_found_by_the_probe(
    tiny_fp16_graphs: Path, tmp_path: Path, spec: BaseModelSpec, tunings: Tunings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that passed the self-test writing in place turns to new sessions at the first probe that fails."""
    folder = build(tiny_fp16_graphs, tmp_path / "engine", cuda_builder(CPU))
    engine = OrtCudaEngine.open_tested(folder, EngineSpec.from_model(spec), CPU)
    first, second = tunings.weights(1), tunings.weights(2)
    engine.refit(first)
    real = OrtCudaEngine._write

    def unseen(one: OrtCudaEngine, tensors: dict[str, np.ndarray]) -> None:
        if one._session is None or not one._in_place:
            real(one, tensors)

    monkeypatch.setattr(OrtCudaEngine, "_write", unseen)
    report = engine.refit(second)

    assert engine.weights == second.id and 0 < report.probe_ratio < 0.02
    assert not engine._in_place
    with pytest.raises(DataLoss):
        engine.refit(replace(second, tensors={**second.tensors, "conv_in.bias": first.tensors["conv_in.bias"] + 9}))


@pytest.mark.parametrize(
    ("fact", "value"),
    [("version", "11.5.0"), ("device", "Another GPU"), ("compute_capability", "8.0"), ("cuda_driver", "12080")],
)
def test_a_plan_of_another_machine_is_refused_and_built_again(
    tiny_fp16_graphs: Path, tmp_path: Path, fact: str, value: str
) -> None:
    """The key tells GPU, driver and version: a folder of another one is not opened, and a build replaces it."""
    builder = tensorrt_builder(fake_runtime(Faults()))
    folder = build(tiny_fp16_graphs, tmp_path / "engine", builder)
    elsewhere = {**builder.facts, fact: value}
    written = (folder / PLAN_FILE).stat().st_ino

    with pytest.raises(UnusableEngine, match=f"its {fact} was"):
        open_folder(folder, elsewhere)
    assert build(tiny_fp16_graphs, folder, builder) == folder
    assert (folder / PLAN_FILE).stat().st_ino == written
    build(tiny_fp16_graphs, folder, replace(builder, facts=elsewhere))

    assert open_folder(folder, elsewhere).files
    assert (folder / PLAN_FILE).stat().st_ino != written


def test_the_key_follows_the_fp16_graph(graphs: Path) -> None:
    """Another self-test or another fp16 graph is another engine, although the fp32 graphs are the same."""
    builder = tensorrt_builder(fake_runtime(Faults()))
    before = read_graphs(graphs, builder)[1].digest
    spec = json.loads((graphs / "fp16" / "fp16.json").read_text())
    spec["files"]["self_test.safetensors"] = "00" * 32
    (graphs / "fp16" / "fp16.json").write_text(json.dumps(spec))

    assert read_graphs(graphs, builder)[1].digest != before
    with pytest.raises(BuildError, match=r"self_test\.safetensors is missing or damaged.*--fp16"):
        build(graphs, graphs.parent / "engine", builder)


def test_graphs_without_an_fp16_graph_are_refused(tiny_graphs: Path, tmp_path: Path) -> None:
    """The error says how to export one."""
    with pytest.raises(BuildError, match="export the base model again with --fp16"):
        build(tiny_graphs, tmp_path / "engine", tensorrt_builder(fake_runtime(Faults())))


def test_an_fp16_graph_of_another_model_is_refused(graphs: Path, tmp_path: Path) -> None:
    """It is told by the base model's digest, whatever its tensors are called."""
    spec = json.loads((graphs / "fp16" / "fp16.json").read_text())
    (graphs / "fp16" / "fp16.json").write_text(json.dumps(spec | {"base_model": "00" * 32}))

    with pytest.raises(BuildError, match="another base model's"):
        build(graphs, tmp_path / "engine", tensorrt_builder(fake_runtime(Faults())))


def test_refused_versions_do_not_build() -> None:
    """11.3 ends with its reason before any graph is read."""
    with pytest.raises(BackendMissing, match="may lose the bias"):
        tensorrt_builder(fake_runtime(Faults(), version="11.3.0.14"))


def test_without_cuda_the_error_says_what_onnxruntime_has() -> None:
    """This runtime lists no CUDA provider, and the error says which it lists and what to install."""
    if "CUDAExecutionProvider" in cuda.onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built for CUDA")
    with pytest.raises(BackendMissing, match=r"has .*CPUExecutionProvider.* but not CUDA.*sampler-gpu"):
        check_cuda()


def test_without_a_gpu_cuda_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of onnxruntime for CUDA lists its provider without a GPU too, so the driver is asked as well."""
    monkeypatch.setattr(cuda, "check_cuda", lambda: None)

    def no_gpu() -> None:
        raise BackendMissing(f"there is no usable NVIDIA GPU and driver (error {NO_DEVICE})")

    monkeypatch.setattr(cuda, "open_device", no_gpu)
    with pytest.raises(BackendMissing, match="no usable NVIDIA GPU"):
        cuda_builder()


def test_backends_tell_whether_they_can_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each: the CPU always, the others with what they miss."""
    assert backends.main() == 0

    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == set(BACKENDS)
    assert lines["onnxruntime"].startswith("yes: version ")
    assert all(line.startswith(("yes: version ", "no: ")) for line in lines.values())


def test_building_for_a_backend_that_is_missing_ends_with_one_line(
    tiny_fp16_graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, the reason on stderr, nothing on stdout."""

    def missing(name: str) -> None:
        raise BackendMissing(f"{name} is not here")

    monkeypatch.setattr("sampler_svc.build.__main__.builder_of", missing)
    arguments = ["--graphs", str(tiny_fp16_graphs), "--out", str(tmp_path / "engine"), "--backend", "tensorrt"]

    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err == "build: tensorrt is not here\n"
