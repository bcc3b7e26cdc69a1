"""Writes a base model's folder of graphs (unitune.base_model). The folder gets its name only when it is complete and
every graph was checked on ONNX Runtime against PyTorch.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tuner_svc.base_model import BaseModel, load, name_of
from tuner_svc.export.check import check_batches, check_refit
from tuner_svc.export.clip import export_clip, has_clip
from tuner_svc.export.denoiser import example, export_denoiser
from tuner_svc.export.exported_folder import DIGEST_CHARACTERS, ExportError, is_complete, is_export_of, remember
from tuner_svc.export.fast_lora import export_fast_lora
from tuner_svc.export.frozen import export_frozen, export_tokenizer
from tuner_svc.export.preview import latent_to_rgb
from tuner_svc.export.super_resolution import export_super_resolution
from tuner_svc.model_folder import digest, graphs_digest, read_preset
from unitune.attention import CONTROLLED_FILE
from unitune.base_model import BaseModelSpec, check_side, file_digest
from unitune.graph_files import DENOISER
from unitune.hard_link import link_or_copy
from unitune.known_pictures import KNOWN_PICTURES_FILE

Say = Callable[[str], None]


def export(base_model: Path, folder: Path, say: Say = lambda stage: None) -> Path:
    """Export a diffusers folder into a folder, unless that already holds the same model. Returns the folder.

    `say` gets each stage when it starts. Raises UnusableBaseModel, or ExportError when the folder holds something else
    or a graph would not answer like PyTorch.
    """
    return _export(base_model, folder, digest(base_model), say)


def export_under(base_model: Path, root: Path, say: Say = lambda stage: None) -> Path:
    """As `export`, into the folder below `root` that is named by the digest, in place of an older program's.

    Where another folder there has the same graphs, of a model that differs in its preset alone, its files are shared.
    """
    model_digest = digest(base_model)
    folder = root / model_digest[:DIGEST_CHARACTERS]
    if folder.is_dir() and not is_export_of(folder, base_model, model_digest):
        shutil.rmtree(folder)
    if not folder.is_dir() and (twin := _with_same_graphs(root, base_model)) is not None:
        say("taking the graphs over, since only the preset differs")
        return _with_own_preset(base_model, folder, twin, model_digest)
    return _export(base_model, folder, model_digest, say)


def _export(base_model: Path, folder: Path, model_digest: str, say: Say) -> Path:
    if is_export_of(folder, base_model, model_digest):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} holds something else: give an empty or a new folder")
    with _unfinished(folder) as partial:
        say("loading the base model")
        model = load(base_model)
        _fill(partial, base_model, model, say)
        _publish(partial, folder, model.digest)
    return folder


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder beside it, to be filled and published; what is left of it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _with_same_graphs(root: Path, base_model: Path) -> Path | None:
    """A complete export below `root` of a model that differs from this one in its preset at most, if there is one."""
    wanted = graphs_digest(base_model)
    for folder in sorted(root.glob("[0-9a-f]" * DIGEST_CHARACTERS)):
        with contextlib.suppress(OSError, ValueError):
            found = BaseModelSpec.load(folder)
            if found.graphs == wanted and is_export_of(folder, base_model, found.digest):
                return folder
    return None


def _with_own_preset(base_model: Path, folder: Path, twin: Path, model_digest: str) -> Path:
    """The files of another export under second names, with this model's specification."""
    spec = replace(
        BaseModelSpec.load(twin), name=name_of(base_model), digest=model_digest, preset=read_preset(base_model)
    )
    with _unfinished(folder) as partial:
        for name in spec.files:
            link_or_copy(twin / name, partial / name)
        spec.save(partial)
        _publish(partial, folder, model_digest)
    return folder


def _fill(folder: Path, base_model: Path, model: BaseModel, say: Say) -> None:
    """Write all files, the specification last."""
    say("exporting text encoder, image encoder and image decoder")
    export_frozen(folder, model)
    export_tokenizer(folder, model)
    if has_clip(base_model):
        say("exporting the CLIP filter's model")
        export_clip(folder, base_model)
    if (base_model / KNOWN_PICTURES_FILE).is_file():
        shutil.copyfile(base_model / KNOWN_PICTURES_FILE, folder / KNOWN_PICTURES_FILE)
    say("exporting the denoiser")
    weights = folder / BaseModelSpec.base_weights
    with TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        tensors = export_denoiser(model, folder, Path(scratch))
    if model.fast_lora is not None:
        say("writing the fast LoRA")
        export_fast_lora(model, model.fast_lora, folder)
    say("checking the denoiser with other weights")
    with TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        size_bytes = weights.stat().st_size
        side = check_side(model.latent_side, model.spec.latent_step, size_bytes)
        questions = [example(model, batch, seed=1, side=side) for batch in check_batches(size_bytes)]
        check_refit(folder / DENOISER, model.denoiser, weights, questions, Path(scratch), folder / CONTROLLED_FILE)
    stages = []
    for resolver in model.super_resolution:
        say(f"exporting and checking {resolver.spec.name}")
        stages.append(export_super_resolution(model, resolver, folder))
    say("writing the specification")
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    replace(
        model.spec,
        tensors=tensors,
        latent_to_rgb=latent_to_rgb(model),
        super_resolution=tuple(stages),
        graphs=graphs_digest(base_model),
        files=files,
    ).save(folder)


def _publish(partial: Path, folder: Path, model_digest: str) -> None:
    """Give the folder its name, and make it readable for all."""
    partial.chmod(0o755)
    for path in partial.iterdir():
        path.chmod(0o644)
    remember(partial, BaseModelSpec.load(partial))
    try:
        os.replace(partial, folder)  # replaces an empty folder
    except OSError:
        if not is_complete(folder, model_digest):  # another export was first, and wrote something else
            raise
