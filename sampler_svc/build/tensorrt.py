"""Build a TensorRT plan from the fp16 graph: once per base model, TensorRT version and kind of GPU.

The graph is typed, and the builder must keep its types. Only the specification's tensors are marked for refits; other
constants may be folded. There is one profile, of one batch size.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from sampler_svc.build.builder import BackendBuilder, BuildError
from sampler_svc.build.fp16 import AGAIN_WITH_FP16, FP16_DENOISER, copy_all_but_the_denoiser, fp16_builder
from sampler_svc.engines.engine import EngineSpec
from sampler_svc.engines.folder import UnusableEngine
from sampler_svc.engines.fp16_weights import BATCH
from sampler_svc.engines.self_test import SelfTest, SelfTestFailed
from sampler_svc.engines.tensorrt import (
    OPTIMISATION_LEVEL,
    PLAN_FILE,
    WORKSPACE_BYTES,
    OpenRuntime,
    TrtEngine,
    open_tensorrt,
    tensorrt_facts,
)
from sampler_svc.engines.trt_api import IBuilderConfig, INetworkDefinition, TensorRT
from sampler_svc.engines.weights import base_weights
from unitune.base_model import BaseModelSpec
from unitune.errors import UniTuneError


def tensorrt_builder(open_runtime: OpenRuntime = open_tensorrt) -> BackendBuilder:
    """TensorRT on this GPU. Raises BackendMissing."""
    here = tensorrt_facts(open_runtime)
    fill, check = (partial(step, open_runtime=open_runtime, here=here) for step in (_fill, verify))
    return fp16_builder(here, fill, check)


def build_plan(trt: TensorRT, graph: Path, spec: BaseModelSpec, timing_cache: Path) -> bytes:
    """The plan of a graph. Raises BuildError with the parser's errors, or with a hint to TensorRT's log."""
    log = trt.Logger(trt.ILogger.Severity.WARNING)
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise BuildError(f"TensorRT cannot read the fp16 graph: {errors or 'it does not say why'}")
    for name in spec.tensors:
        if not (network.mark_weights_refittable(name) and network.are_weights_marked_refittable(name)):
            raise BuildError(f"TensorRT finds no weights called {name}: they could not be refitted")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = OPTIMISATION_LEVEL
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    for name, shape in _shapes(network, spec).items():
        profile.set_shape(name, shape, shape, shape)
    if config.add_optimization_profile(profile) != 0:
        raise BuildError("TensorRT does not accept the shapes of the base model")
    _use_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("TensorRT cannot build a plan; its log on stderr says why")
    _keep_timing_cache(config, timing_cache)
    return bytes(memoryview(plan))


def verify(
    graphs: Path, engine_folder: Path, spec: BaseModelSpec, *, open_runtime: OpenRuntime, here: Mapping[str, str]
) -> None:
    """Run the self-test with and without a CUDA graph, and write its report. Raises BuildError if it fails."""
    engine_spec = EngineSpec.from_model(spec)
    try:
        self_test = SelfTest(engine_folder)
        engine = TrtEngine(engine_folder, engine_spec, *open_runtime())
        try:
            self_test.run(engine)
        finally:
            engine.close()
        captured = TrtEngine(engine_folder, engine_spec, *open_runtime(), use_cuda_graph=True)
        try:
            cuda_graph = SelfTest(engine_folder).sees_refits(captured)
        finally:
            captured.close()
        self_test.found(here, cuda_graph=cuda_graph).save(engine_folder)
        proven = TrtEngine.open_tested(engine_folder, engine_spec, open_runtime)
        try:
            proven.refit(base_weights(engine_folder, spec))
        finally:
            proven.close()
    except SelfTestFailed as error:
        raise BuildError(f"the plan does not compute what PyTorch does: {error}") from error
    except (UnusableEngine, UniTuneError) as error:
        raise BuildError(f"the plan cannot be used: {error}") from error


def _fill(
    folder: Path, graphs: Path, spec: BaseModelSpec, *, open_runtime: OpenRuntime, here: Mapping[str, str]
) -> None:
    """Write plan, fp16 specification, the self-test's answers, and all files except the denoiser's."""
    trt, device = open_runtime()
    print("build: building the plan ...", file=sys.stderr, flush=True)
    try:
        plan = build_plan(trt, graphs / FP16_DENOISER, spec, _timing_cache(folder.parent, here))
    except TypeError as error:  # the bindings' constructors, when a library of TensorRT cannot start
        raise BuildError(f"TensorRT cannot start its builder ({error})") from error
    finally:
        device.close()
    (folder / PLAN_FILE).write_bytes(plan)
    copy_all_but_the_denoiser(folder, graphs, spec)


def _shapes(network: INetworkDefinition, spec: BaseModelSpec) -> dict[str, tuple[int, ...]]:
    """The one shape of each input."""
    wanted = EngineSpec.from_model(spec).blank_inputs(BATCH)
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if inputs != wanted.keys():
        raise BuildError(f"the fp16 graph takes {sorted(inputs)} and not {sorted(wanted)}; {AGAIN_WITH_FP16}")
    return {name: array.shape for name, array in wanted.items()}


def _timing_cache(engines: Path, here: Mapping[str, str]) -> Path:
    """The timing cache for this GPU, version and flags, beside the engines. A cache of others does not help."""
    facts_digest = hashlib.sha256(json.dumps(dict(here), sort_keys=True).encode()).hexdigest()
    return engines / f".timing-{facts_digest[:16]}.cache"


def _use_timing_cache(config: IBuilderConfig, path: Path) -> None:
    """Give the builder the times of an earlier build, or an empty cache. Without a cache it only takes longer."""
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _keep_timing_cache(config: IBuilderConfig, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        new = path.with_suffix(".new")
        new.write_bytes(bytes(memoryview(cache.serialize())))
        new.replace(path)
