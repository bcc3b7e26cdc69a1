"""What builds for a GPU share: they begin at the half graph, and end at the engine self-test."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.numpy import load_file, save_file

from sampler_svc.build.builder import EXPORT_AGAIN, Builder, BuildError, copy_others
from sampler_svc.build.onnx_file import initializers
from sampler_svc.engines.folder import PROBE_FILE
from unitune.base_model import SPEC_FILE, BaseModelSpec, file_digest
from unitune.half_graph import HALF_FILE, HALF_FOLDER, SELF_TEST_FILE, HalfSpec

HALF_DENOISER = f"{HALF_FOLDER}/denoiser.onnx"
AGAIN_WITH_HALF = f"{EXPORT_AGAIN} with --half"

Step = Callable[[Path, Path, BaseModelSpec], None]


def half_builder(facts: Mapping[str, str], fill: Step, verify: Step) -> Builder:
    """A builder that begins at the half graph."""
    return Builder(facts, HALF_DENOISER, (SPEC_FILE, f"{HALF_FOLDER}/{HALF_FILE}"), check_half_graph, fill, verify)


def check_half_graph(graphs: Path, spec: BaseModelSpec) -> None:
    """Raises BuildError unless the half graph is whole, of this base model, and has the model's tensors by name."""
    try:
        half = HalfSpec.load(graphs / HALF_FOLDER)
        found = initializers((graphs / HALF_DENOISER).read_bytes())
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


def copy_all_but_the_denoiser(folder: Path, graphs: Path, spec: BaseModelSpec) -> None:
    """Half specification, self-test answers, the other graphs, and PyTorch's answer with base weights as the probe."""
    for name in (HALF_FILE, SELF_TEST_FILE):
        shutil.copyfile(graphs / HALF_FOLDER / name, folder / name)
    copy_others(folder, graphs, spec)
    save_file({"base": load_file(folder / SELF_TEST_FILE)["base"]}, folder / PROBE_FILE)
