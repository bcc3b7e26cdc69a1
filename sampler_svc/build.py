"""Build an engine from exported graphs: once per base model, runtime version and kind of CPU.

    python -m sampler_svc.build --graphs GRAPHS --out ENGINE
    python -m sampler_svc.build --graphs GRAPHS --engines ROOT     # ROOT/{key}, found again if it is there
    ... --backend tensorrt                                         # for a GPU, from graphs exported with --half

On the CPU the denoiser is optimised offline as far as stays true for any weights of any CPU; the rest is done when it
is loaded. A second graph of it, for refits in place, has this CPU's layout of convolutions (cpu_layout.py).
The last line of stdout is the engine's folder, ready only when it bears that name.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from sampler_svc.config import BACKENDS
from sampler_svc.cpu_layout import lay_out
from sampler_svc.engine import BackendMissing, Engine, EngineSpec, Probe, Tensors, Weights
from sampler_svc.engine_folder import (
    BASE_PROBE_SEED,
    MANIFEST_FILE,
    PROBE_FILE,
    SUPER_RESOLUTION_PROBE_FILE,
    EngineKey,
    Manifest,
    is_complete,
    key_of,
)
from sampler_svc.graph_layout import GraphLayout
from sampler_svc.in_place_engine import IN_PLACE, InPlaceEngine
from sampler_svc.onnx_file import SMALL_BYTES, initializers, put_outside, structure_digest
from sampler_svc.ort_engine import (
    DENOISER,
    NEW_SESSION,
    OFFLINE_OPTIMISATION,
    OrtEngine,
    backend,
    open_refitted,
    open_session,
    session_options,
)
from sampler_svc.refit_modes import is_small
from sampler_svc.super_resolution_engine import SuperResolutionEngine
from unitune.base_model import SPEC_FILE, SUPER_RESOLUTION_GRAPH, BaseModelSpec, file_digest
from unitune.errors import DataLoss
from unitune.system_errors import disk_sentence

DENOISER_DATA = f"{DENOISER}.data"
MAX_REFIT_RATIO = 1e-3  # of the effect of random weights; fp32 gives about 1e-5, one stale tensor 3e-3 and more
EXPORT_AGAIN = "export the base model again"


class BuildError(Exception):
    """The graphs do not give an engine. The message says why."""


@dataclass(frozen=True)
class Recipe:
    """What is particular to building for one backend. Its steps raise BuildError."""

    facts: Mapping[str, str]  # the runtime, its device and how it builds, for the key
    denoiser: str  # the exported denoiser, within the graphs folder
    specifications: tuple[str, ...]  # files that have the digests of all that is used
    check: Callable[[Path, BaseModelSpec], None]  # of the graphs
    fill: Callable[[Path, Path, BaseModelSpec], None]  # an engine folder, from the graphs
    # Of graphs and engine folder; writes the base model's probe. Answers with the proven refit modes if it has several.
    verify: Callable[[Path, Path, BaseModelSpec], tuple[str, ...] | None]


def onnxruntime_recipe() -> Recipe:
    """ONNX Runtime on this CPU."""
    return Recipe(backend(), DENOISER, (SPEC_FILE,), check_graph, _fill, verify)


def build(graphs: Path, folder: Path, recipe: Recipe | None = None) -> Path:
    """Build an engine into a folder; at once if a complete one with the same key is there. Answers with the folder.

    Without a recipe it is for ONNX Runtime on this CPU. An engine of another key is replaced by the new one. Raises
    BuildError when the graphs are incomplete, or a built engine would not answer or refit like them.
    """
    began = time.monotonic()
    recipe = recipe or onnxruntime_recipe()
    spec, key = read_graphs(graphs, recipe)
    if is_complete(folder, key):
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).exists():
        raise BuildError(f"{folder} is a folder with other files: give an empty or a new one")
    check_files(graphs, spec)
    recipe.check(graphs, spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        recipe.fill(partial, graphs, spec)
        modes = recipe.verify(graphs, partial, spec) or ()
        if spec.super_resolution is not None:
            verify_super_resolution(partial, spec)
        files = {path.name: (file_digest(path), path.stat().st_size) for path in sorted(partial.iterdir())}
        Manifest(key, files, round(time.monotonic() - began, 3), modes).save(partial)
        if not is_complete(folder, key):  # another build may have come first
            _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_graphs(graphs: Path, recipe: Recipe | None = None) -> tuple[BaseModelSpec, EngineKey]:
    """The specification of exported graphs, and the key of the engine built from them here. Raises BuildError."""
    recipe = recipe or onnxruntime_recipe()
    try:
        spec = BaseModelSpec.load(graphs)
        structure = structure_digest((graphs / recipe.denoiser).read_bytes())
        specification = " ".join(file_digest(graphs / name) for name in recipe.specifications)
    except (OSError, ValueError, TypeError, KeyError) as error:
        with_half = " with --half" if len(recipe.specifications) > 1 else ""
        raise BuildError(f"{graphs} holds no exported graphs ({error}); {EXPORT_AGAIN}{with_half}") from error
    return spec, key_of(spec, structure, specification, recipe.facts)


def check_files(graphs: Path, spec: BaseModelSpec) -> None:
    """Raises BuildError unless every file of the graphs folder is the one that the specification was written for."""
    for name, digest in spec.files.items():
        if not (graphs / name).is_file() or file_digest(graphs / name) != digest:
            raise BuildError(f"{graphs / name} is missing or damaged; {EXPORT_AGAIN}")


def check_graph(graphs: Path, spec: BaseModelSpec) -> None:
    """Raises BuildError unless every tensor of the specification is a weight of the denoiser within a refit's reach."""
    found = initializers((graphs / DENOISER).read_bytes())
    for name, tensor in spec.tensors.items():
        if name not in found:
            raise BuildError(f"the denoiser has no weight called {name}; {EXPORT_AGAIN}")
        if found[name].outside is None:
            raise BuildError(f"{name} is stored inside the denoiser's graph, out of a refit's reach; {EXPORT_AGAIN}")
        if found[name].shape != tensor.shape_in_graph:
            shapes = f"{found[name].shape} in the graph and must be {tensor.shape_in_graph}"
            raise BuildError(f"{name} is {shapes}; {EXPORT_AGAIN}")


def verify(graphs: Path, engine_folder: Path, spec: BaseModelSpec) -> tuple[str, ...]:
    """The ways in which the engine may be refitted: each answers like the exported graph, run without optimisation.

    Raises BuildError when not even a new session does.
    """
    engine_spec = EngineSpec.of(spec)
    weights, probe = engine_folder / spec.base_weights, engine_folder / PROBE_FILE
    base, other = _canary(graphs / DENOISER, engine_spec, weights, probe)
    layout = GraphLayout(engine_spec, base.tensors)
    check_refits(OrtEngine(engine_folder, engine_spec, layout=layout), base, other)
    try:
        check_refits(InPlaceEngine(engine_folder, engine_spec, layout=layout), base, other)
    except BuildError as error:
        print(f"build: {error}; every refit will open a new session", file=sys.stderr)
        return (NEW_SESSION,)
    return (NEW_SESSION, IN_PLACE)


def verify_super_resolution(engine_folder: Path, spec: BaseModelSpec) -> None:
    """As `verify`, for the second stage of a cascade, which every backend has as it was exported. Raises BuildError."""
    engine_spec, stage = SuperResolutionEngine.spec_of(spec), spec.super_resolution
    assert stage is not None
    weights, probe = engine_folder / stage.weights, engine_folder / SUPER_RESOLUTION_PROBE_FILE
    base, other = _canary(engine_folder / SUPER_RESOLUTION_GRAPH, engine_spec, weights, probe)
    check_refits(SuperResolutionEngine(engine_folder, engine_spec), base, other)


def _canary(graph: Path, spec: EngineSpec, weights: Path, probe: Path) -> tuple[Weights, Weights]:
    """The base weights, read-only, and random ones, each with the exported graph's answer; the base's is written to
    `probe`."""
    tensors = load_file(weights)
    drawn = random_weights(tensors)
    of_base, of_drawn = (reference_answer(graph, spec, each) for each in (tensors, drawn))
    save_file({"base": of_base}, probe)
    for tensor in tensors.values():
        tensor.flags.writeable = False
    base = Weights("base", tensors, Probe(BASE_PROBE_SEED, of_base, of_base))
    return base, Weights("other", drawn, Probe(BASE_PROBE_SEED, of_drawn, of_base))


def check_refits(engine: Engine, base: Weights, other: Weights) -> None:
    """Raises BuildError unless the engine is refitted there, back and there again, and answers with the same bits.

    `other` differs from `base` in every tensor, by so much that a single one left behind shows. Closes the engine.
    """
    answers = []
    try:
        for weights in (base, other, base, other):
            ratio = engine.refit(weights).probe_ratio
            answers.append(engine.run(*engine.spec.question(BASE_PROBE_SEED)))
            if weights is other and not 0 <= ratio < MAX_REFIT_RATIO:
                raise BuildError(f"the built engine is not refitted well enough: its probe ratio is {ratio:.3g}")
    except DataLoss as error:
        raise BuildError(f"the built engine does not answer like the exported graph: {error.message}") from error
    finally:
        engine.close()
    if not (np.array_equal(answers[0], answers[2]) and np.array_equal(answers[1], answers[3])):
        raise BuildError("the built engine does not come back to the same answers after a refit")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser("python -m sampler_svc.build", description="Build an engine from exported graphs.")
    parser.add_argument("--graphs", type=Path, required=True, help="folder written by tuner_svc.export")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="the engine's folder")
    where.add_argument("--engines", type=Path, help="folder of engines, each in a folder named by its key")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="what is to run it (%(default)s)")
    options = parser.parse_args(arguments)
    from sampler_svc.backends import recipe_of  # which knows all builds, this one too

    try:
        recipe = recipe_of(options.backend)
        folder = options.out or options.engines / read_graphs(options.graphs, recipe)[1].digest[:16]
        print(build(options.graphs, folder, recipe))
    except (BuildError, BackendMissing) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        told = disk_sentence(error, options.out or options.engines)
        if told is None:
            raise
        print(f"build: {told}", file=sys.stderr)
        return 1
    return 0


def _fill(folder: Path, graphs: Path, spec: BaseModelSpec) -> None:
    """Everything but manifest and probe: the denoiser optimised, all else copied."""
    options = session_options(0, OFFLINE_OPTIMISATION)
    options.optimized_model_filepath = str(folder / DENOISER)
    for setting, value in (("file_name", DENOISER_DATA), ("min_size_in_bytes", str(SMALL_BYTES))):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{setting}", value)
    try:
        open_session(graphs / DENOISER, options)
    except Exception as error:  # ONNX Runtime does not say that a disk is full
        told = disk_sentence(error, folder)
        if told is None:
            raise
        raise BuildError(told) from error
    try:
        put_outside(folder, DENOISER, spec.tensors.keys())
    except ValueError as error:
        raise BuildError(f"the optimised denoiser cannot be refitted: {error}") from error
    copy_others(folder, graphs, spec)
    tensors = load_file(folder / spec.base_weights)
    if is_small(tensors):  # a larger model is not refitted in place unless it is told to, and has no room to give away
        lay_out(folder, spec, tensors)


def copy_others(folder: Path, graphs: Path, spec: BaseModelSpec) -> None:
    """All files of the graphs but the denoiser's into an engine folder."""
    for name in {SPEC_FILE, *spec.files} - {DENOISER, DENOISER_DATA}:
        shutil.copyfile(graphs / name, folder / name)


def random_weights(base: Tensors) -> dict[str, np.ndarray]:
    """Weights unlike the base in every tensor, so much that a single one which is not refitted shows in the answer.

    Matrices are drawn anew, which keeps a signal's size; norms and biases are shifted by about one.
    """
    rng = np.random.default_rng(0)
    drawn = {}
    for name, tensor in base.items():
        noise = rng.standard_normal(tensor.shape)
        value = np.add(tensor, noise) if tensor.ndim == 1 else noise / np.sqrt(np.prod(tensor.shape[1:]))
        drawn[name] = value.astype(tensor.dtype)
    return drawn


def reference_answer(graph: Path, spec: EngineSpec, tensors: Tensors) -> np.ndarray:
    """An exported graph's answer to the probe of BASE_PROBE_SEED with these tensors, without any optimisation."""
    arrays = {name: np.ascontiguousarray(tensor.to_graph(tensors[name])) for name, tensor in spec.tensors.items()}
    session = open_refitted(graph, session_options(0, "ORT_DISABLE_ALL"), arrays)
    latents, timesteps, contexts = spec.question(BASE_PROBE_SEED)
    (answer,) = session.run(["out"], {"sample": latents, "timestep": timesteps, "encoder_hidden_states": contexts})
    return answer


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished folder its name; one that is there already moves out of the way first."""
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    partial.chmod(0o755)
    old = partial.with_name(f"{partial.name}-old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
