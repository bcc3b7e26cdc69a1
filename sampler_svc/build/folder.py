"""Makes an engine's folder from a folder of exported graphs: checks, builds, proves, and only then names it."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from sampler_svc.build.builder import EXPORT_AGAIN, BackendBuilder, BuildError
from sampler_svc.build.cpu import onnxruntime_builder
from sampler_svc.build.refit_check import check_refits, references
from sampler_svc.engines.cpu_super_resolution import SuperResolutionEngine
from sampler_svc.engines.engine import BackendMissing
from sampler_svc.engines.folder import (
    MANIFEST_FILE,
    EngineKey,
    EngineManifest,
    is_complete,
    key_of,
    stage_probe_file,
)
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.onnx_file import structure_digest
from unitune.base_model import BaseModelSpec, SuperResolutionSpec, file_digest
from unitune.system_errors import failure_sentence

Say = Callable[[str], None]


def build(graphs: Path, folder: Path, builder: BackendBuilder | None = None, say: Say = lambda stage: None) -> Path:
    """Build an engine into a folder, unless a complete one with the same key is there. Returns the folder.

    The default builder is for ONNX Runtime on this CPU. An engine with another key is replaced. `say` gets each stage
    when it starts. Raises BuildError when the graphs are incomplete, or when the built engine does not answer or refit
    like them.
    """
    began = time.monotonic()
    builder = builder or onnxruntime_builder()
    spec, key = read_graphs(graphs, builder)
    if is_complete(folder, key):
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).exists():
        raise BuildError(f"{folder} is a folder with other files: give an empty or a new one")
    say("checking the graphs")
    check_files(graphs, spec)
    builder.check(graphs, spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        say("building the engine")
        builder.fill(partial, graphs, spec)
        say("checking the engine with its own and with other weights")
        modes = builder.verify(graphs, partial, spec) or ()
        for stage in spec.super_resolution:
            say(f"checking {stage.name}")
            verify_super_resolution(partial, spec, stage)
        EngineManifest.from_folder(key, partial, round(time.monotonic() - began, 3), modes).save(partial)
        if not is_complete(folder, key):  # another build may have come first
            _publish(partial, folder)
    except (BuildError, BackendMissing, OSError):
        raise
    except Exception as error:  # ONNX Runtime does not name a full disk; it can be seen only while `partial` exists
        raise BuildError(failure_sentence(error, partial)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_graphs(graphs: Path, builder: BackendBuilder | None = None) -> tuple[BaseModelSpec, EngineKey]:
    """The specification of exported graphs, and the key of the engine built from them here. Raises BuildError."""
    builder = builder or onnxruntime_builder()
    try:
        spec = BaseModelSpec.load(graphs)
        structure = structure_digest((graphs / builder.denoiser).read_bytes())
        specification = " ".join(file_digest(graphs / name) for name in builder.specifications)
    except (OSError, ValueError, TypeError, KeyError) as error:
        with_fp16 = " with --fp16" if len(builder.specifications) > 1 else ""
        raise BuildError(f"{graphs} holds no exported graphs ({error}); {EXPORT_AGAIN}{with_fp16}") from error
    return spec, key_of(spec, structure, specification, builder.facts)


def check_files(graphs: Path, spec: BaseModelSpec) -> None:
    """Raises BuildError unless every file of the graphs folder has the digest in the specification."""
    for name, digest in spec.files.items():
        if not (graphs / name).is_file() or file_digest(graphs / name) != digest:
            raise BuildError(f"{graphs / name} is missing or damaged; {EXPORT_AGAIN}")


def verify_super_resolution(engine_folder: Path, spec: BaseModelSpec, stage: SuperResolutionSpec) -> None:
    """As `verify`, for a super-resolution stage, which all backends run as it was exported. Raises BuildError."""
    engine_spec = SuperResolutionEngine.spec_of(spec, stage)
    weights, probe = engine_folder / stage.weights, engine_folder / stage_probe_file(stage.name)
    graph = engine_folder / stage.graph
    with TemporaryDirectory(dir=engine_folder, prefix=".scratch-") as scratch:
        expected = references(graph, engine_spec, weights, probe, Path(scratch))
        layout = GraphLayout(engine_spec, expected.base.tensors)
        check_refits(SuperResolutionEngine(engine_folder, stage.graph, engine_spec, layout=layout), expected)


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished folder its name, in place of an older folder."""
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    partial.chmod(0o755)
    old = partial.with_name(f"{partial.name}-old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
