"""Build a TensorRT plan from the half graph: once per base model, TensorRT version and kind of GPU.

The graph is typed, so the builder is told to keep to its types and given no other precision. Only the specification's
tensors are marked for refits: what else looks like a weight may be folded. One profile, of one batch size.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from safetensors.numpy import load_file, save_file

from sampler_svc.build import EXPORT_AGAIN, BuildError, Recipe, copy_others
from sampler_svc.cuda_device import Device
from sampler_svc.engine import EngineSpec
from sampler_svc.engine_folder import PROBE_FILE, UnusableEngine
from sampler_svc.half_weights import BATCH
from sampler_svc.onnx_file import initializers
from sampler_svc.qualification import Canary, Unqualified
from sampler_svc.refit_weights import base_weights
from sampler_svc.trt_api import IBuilderConfig, INetworkDefinition, TensorRT
from sampler_svc.trt_engine import PLAN_FILE, TrtEngine, open_tensorrt
from unitune.base_model import SPEC_FILE, BaseModelSpec, file_digest
from unitune.errors import UniTuneError
from unitune.half_graph import CANARY_FILE, HALF_FILE, HALF_FOLDER, HalfSpec

DENOISER = f"{HALF_FOLDER}/denoiser.onnx"
WORKSPACE_BYTES = 4 << 30  # at most, for a kernel's scratch memory; TensorRT takes what it needs
OPTIMISATION_LEVEL = 3  # TensorRT's own default; said so that the key tells it
AGAIN_WITH_HALF = f"{EXPORT_AGAIN} with --half"

OpenRuntime = Callable[[], tuple[TensorRT, Device]]


def facts(trt: TensorRT, device: Device) -> dict[str, str]:
    """What a plan depends on beside its graph. A plan is never tried where one of these differs."""
    return {
        "runtime": "tensorrt",
        "version": trt.__version__,
        **device.facts(),
        "precision": "fp16, strongly typed",
        "flags": "REFIT_INDIVIDUAL",
        "tf32": "off",
        "optimisation": f"level {OPTIMISATION_LEVEL}",
        "tactics": "default",
        "workspace": str(WORKSPACE_BYTES),
        "profile": f"batch {BATCH}",
        "compatibility": "this version and GPU only",
    }


def tensorrt_facts(open_runtime: OpenRuntime = open_tensorrt) -> dict[str, str]:
    """The facts of this machine. Raises BackendMissing."""
    trt, device = open_runtime()
    try:
        return facts(trt, device)
    finally:
        device.close()


def tensorrt_recipe(open_runtime: OpenRuntime = open_tensorrt) -> Recipe:
    """TensorRT on this GPU. Raises BackendMissing."""
    here = tensorrt_facts(open_runtime)
    return Recipe(
        facts=here,
        denoiser=DENOISER,
        specifications=(SPEC_FILE, f"{HALF_FOLDER}/{HALF_FILE}"),
        check=check_half_graph,
        fill=partial(_fill, open_runtime=open_runtime, here=here),
        verify=partial(verify, open_runtime=open_runtime, here=here),
    )


def check_half_graph(graphs: Path, spec: BaseModelSpec) -> None:
    """Raises BuildError unless the half graph is whole, of this base model, and has the model's tensors by name."""
    try:
        half = HalfSpec.load(graphs / HALF_FOLDER)
        found = initializers((graphs / DENOISER).read_bytes())
    except (OSError, ValueError) as error:
        raise BuildError(f"{graphs} holds no half graph ({error}); {AGAIN_WITH_HALF}") from error
    for name, digest in half.files.items():
        path = graphs / HALF_FOLDER / name
        if not path.is_file() or file_digest(path) != digest:
            raise BuildError(f"{path} is missing or damaged; {AGAIN_WITH_HALF}")
    if half.base_model != spec.digest:
        raise BuildError(f"the half graph in {graphs} is another base model's; {AGAIN_WITH_HALF}")
    lost = (half.tensors.keys() ^ spec.tensors.keys()) | (spec.tensors.keys() - found.keys())
    if lost:
        raise BuildError(f"the half graph has not the model's tensors, such as {min(lost)}; {AGAIN_WITH_HALF}")


def build_plan(trt: TensorRT, graph: Path, spec: BaseModelSpec, timing_cache: Path) -> bytes:
    """The plan of a graph. Raises BuildError with what the parser says, or with where TensorRT's log says more."""
    log = trt.Logger(trt.ILogger.Severity.WARNING)
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise BuildError(f"TensorRT cannot read the half graph: {errors or 'it does not say why'}")
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
    """Ask the canary, plainly and through a CUDA graph, and write qualification.json. Raises BuildError if it dies.

    The base model's probe is PyTorch's own answer.
    """
    engine_spec = EngineSpec.of(spec)
    save_file({"base": load_file(engine_folder / CANARY_FILE)["base"]}, engine_folder / PROBE_FILE)
    try:
        canary = Canary(engine_folder)
        engine = TrtEngine(engine_folder, engine_spec, *open_runtime())
        try:
            canary.qualify(engine)
        finally:
            engine.close()
        captured = TrtEngine(engine_folder, engine_spec, *open_runtime(), use_cuda_graph=True)
        try:
            cuda_graph = Canary(engine_folder).sees_refits(captured)
        finally:
            captured.close()
        canary.found(here, cuda_graph=cuda_graph).save(engine_folder)
        proven = TrtEngine.open_qualified(engine_folder, engine_spec, open_runtime)
        try:
            proven.refit(base_weights(engine_folder, spec))
        finally:
            proven.close()
    except Unqualified as error:
        raise BuildError(f"the plan does not compute what PyTorch does: {error}") from error
    except (UnusableEngine, UniTuneError) as error:
        raise BuildError(f"the plan cannot be used: {error}") from error


def _fill(
    folder: Path, graphs: Path, spec: BaseModelSpec, *, open_runtime: OpenRuntime, here: Mapping[str, str]
) -> None:
    """Plan, half specification and canary, and all files that are not the denoiser."""
    trt, device = open_runtime()
    print("build: building the plan, which takes minutes for a large model ...", file=sys.stderr, flush=True)
    try:
        plan = build_plan(trt, graphs / DENOISER, spec, _timing_cache(folder.parent, here))
    except TypeError as error:  # the bindings' constructors, when a library of TensorRT cannot start
        raise BuildError(f"TensorRT cannot start its builder ({error})") from error
    finally:
        device.close()
    (folder / PLAN_FILE).write_bytes(plan)
    for name in (HALF_FILE, CANARY_FILE):
        shutil.copyfile(graphs / HALF_FOLDER / name, folder / name)
    copy_others(folder, graphs, spec)


def _shapes(network: INetworkDefinition, spec: BaseModelSpec) -> dict[str, tuple[int, ...]]:
    """The one shape of each input."""
    rest = {
        "sample": (spec.latent_channels, *spec.latent_side),
        "timestep": (),
        "encoder_hidden_states": (spec.context_tokens, spec.context_width),
    }
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if inputs != rest.keys():
        raise BuildError(f"the half graph takes {sorted(inputs)} and not {sorted(rest)}; {AGAIN_WITH_HALF}")
    return {name: (BATCH, *shape) for name, shape in rest.items()}


def _timing_cache(engines: Path, here: Mapping[str, str]) -> Path:
    """The cache for this GPU, version and flags, beside the engines: a cache of others does not help."""
    facts_digest = hashlib.sha256(json.dumps(dict(here), sort_keys=True).encode()).hexdigest()
    return engines / f".timing-{facts_digest[:16]}.cache"


def _use_timing_cache(config: IBuilderConfig, path: Path) -> None:
    """Give the builder the times of an earlier build, or an empty cache to fill. Without any it only takes longer."""
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
