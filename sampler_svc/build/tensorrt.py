"""Build a plan of TensorRT or TensorRT-RTX from the fp16 graph: once per base model, version and kind of GPU.

The graph is typed, and the builder must keep its types. Only the specification's tensors are marked for refits; other
constants may be folded. There is one profile, of one batch size.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

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
    tensorrt_facts,
    type_in_plan,
)
from sampler_svc.engines.trt_api import IBuilderConfig, ITensor, ParserError, TensorRT
from sampler_svc.engines.trt_library import TENSORRT, TrtLibrary, logger_of, open_library
from sampler_svc.engines.weights import base_weights
from unitune.base_model import BaseModelSpec
from unitune.errors import UniTuneError


def tensorrt_builder(open_runtime: OpenRuntime = open_library) -> BackendBuilder:
    """One of the two libraries on this GPU. Raises BackendMissing."""
    here = tensorrt_facts(open_runtime)
    fill, check = (partial(step, open_runtime=open_runtime, here=here) for step in (_fill, verify))
    return fp16_builder(here, fill, check)


class ParsedGraph:
    """A graph as the library's parser reads it. The network uses the parser's memory, so this keeps both."""

    def __init__(self, trt: TensorRT, graph: Path, library: TrtLibrary = TENSORRT) -> None:
        """Raises BuildError with the parser's errors, in one line."""
        self._trt, self._library = trt, library
        self._log = logger_of(trt)
        self.builder = trt.Builder(self._log)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(typed)
        self._parser = trt.OnnxParser(self.network, self._log)
        # It warns that timesteps are of 64 bits, which `shapes` checks.
        before, self._log.min_severity = self._log.min_severity, trt.ILogger.Severity.ERROR
        is_read = self._parser.parse_from_file(str(graph))
        self._log.min_severity = before
        if not is_read:
            told = "; ".join(map(_in_words, map(self._parser.get_error, range(self._parser.num_errors))))
            raise BuildError(f"{library.title} cannot read the fp16 graph: {told or 'it does not say why'}")

    def mark_refittable(self, names: Iterable[str]) -> None:
        """Mark these weights and no others. Raises BuildError for one that the parser has not kept by its name."""
        for name in names:
            if not (self.network.mark_weights_refittable(name) and self.network.are_weights_marked_refittable(name)):
                raise BuildError(f"{self._library.title} finds no weights called {name}: they could not be refitted")

    def shapes(self, spec: EngineSpec) -> dict[str, tuple[int, ...]]:
        """The one shape of each input. Raises BuildError unless the graph has what the engine binds, as it binds it."""
        network = self.network
        inputs, outputs = spec.blank_inputs(BATCH), {"out": spec.blank_output(BATCH)}
        self._check("takes", inputs, [network.get_input(index) for index in range(network.num_inputs)])
        self._check("gives", outputs, [network.get_output(index) for index in range(network.num_outputs)])
        return {name: array.shape for name, array in inputs.items()}

    def _check(self, verb: str, wanted: Mapping[str, NDArray[Any]], values: Sequence[ITensor]) -> None:
        found = {value.name: value for value in values}
        if found.keys() != wanted.keys():
            raise BuildError(f"the fp16 graph {verb} {sorted(found)} and not {sorted(wanted)}; {AGAIN_WITH_FP16}")
        for name, array in wanted.items():
            value, dtype = found[name], type_in_plan(self._trt, array)
            if value.dtype != dtype:
                raise BuildError(f"{name} of the fp16 graph is {value.dtype} and not {dtype}; {AGAIN_WITH_FP16}")
            sides = tuple(value.shape)  # -1 where any size goes
            if len(sides) != array.ndim or any(a not in (-1, b) for a, b in zip(sides, array.shape, strict=True)):
                raise BuildError(
                    f"{name} of the fp16 graph has shape {list(sides)}, which is not {list(array.shape)}; "
                    f"{AGAIN_WITH_FP16}"
                )


def _in_words(error: ParserError) -> str:
    """A parser's error in one line."""
    return " ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}".split())


def build_plan(
    trt: TensorRT, graph: Path, spec: BaseModelSpec, timing_cache: Path, library: TrtLibrary = TENSORRT
) -> bytes:
    """The plan of a graph. Raises BuildError with the parser's errors, or with a hint to the library's log."""
    parsed = ParsedGraph(trt, graph, library)
    parsed.mark_refittable(spec.tensors)
    config = parsed.builder.create_builder_config()
    for flag in library.flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = OPTIMISATION_LEVEL
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if library.is_compiled_on_opening:  # for this GPU alone: by default some kinds are left out
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
            raise BuildError(f"{library.title} does not build for this GPU")
    profile = parsed.builder.create_optimization_profile()
    for name, shape in parsed.shapes(EngineSpec.from_model(spec)).items():
        profile.set_shape(name, shape, shape, shape)
    if config.add_optimization_profile(profile) != 0:
        raise BuildError(f"{library.title} does not accept the shapes of the base model")
    if library.has_timing_cache:
        _use_timing_cache(config, timing_cache)
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        raise BuildError(f"{library.title} cannot build a plan; its log on stderr says why")
    if library.has_timing_cache:
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
            engine.keep_kernels(engine_folder)
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
    trt, device, library = open_runtime()
    print("build: building the plan ...", file=sys.stderr, flush=True)
    try:
        plan = build_plan(trt, graphs / FP16_DENOISER, spec, _timing_cache(folder.parent, here), library)
    except TypeError as error:  # the bindings' constructors, when a library of TensorRT cannot start
        raise BuildError(f"{library.title} cannot start its builder ({error})") from error
    finally:
        device.close()
    (folder / PLAN_FILE).write_bytes(plan)
    copy_all_but_the_denoiser(folder, graphs, spec)


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
