"""What the builds for a GPU share: they start from the fp16 graph, and end with the engine self-test."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.numpy import load_file, save_file

from sampler_svc.build.builder import EXPORT_AGAIN, BackendBuilder, BuildError, link_others
from sampler_svc.engines.folder import PROBE_FILE
from sampler_svc.engines.onnx_file import FLOAT16, initializers
from unitune.base_model import SPEC_FILE, BaseModelSpec, file_digest
from unitune.fp16_graph import FP16_FILE, FP16_FOLDER, SELF_TEST_FILE, Fp16Spec
from unitune.hard_link import link_or_copy

FP16_DENOISER = f"{FP16_FOLDER}/denoiser.onnx"
AGAIN_WITH_FP16 = f"{EXPORT_AGAIN} with --fp16"

BuildStep = Callable[[Path, Path, BaseModelSpec], None]


def fp16_builder(facts: Mapping[str, str], fill: BuildStep, verify: BuildStep) -> BackendBuilder:
    """A builder that starts from the fp16 graph."""
    return BackendBuilder(
        facts, FP16_DENOISER, (SPEC_FILE, f"{FP16_FOLDER}/{FP16_FILE}"), check_fp16_graph, fill, verify
    )


def check_fp16_graph(graphs: Path, spec: BaseModelSpec) -> None:
    """Raises BuildError unless the fp16 graph is complete, of this base model, and has the model's tensors by name."""
    try:
        fp16 = Fp16Spec.load(graphs / FP16_FOLDER)
        found = initializers((graphs / FP16_DENOISER).read_bytes())
    except (OSError, ValueError) as error:
        raise BuildError(f"{graphs} holds no fp16 graph ({error}); {AGAIN_WITH_FP16}") from error
    for name, digest in fp16.files.items():
        path = graphs / FP16_FOLDER / name
        if not path.is_file() or file_digest(path) != digest:
            raise BuildError(f"{path} is missing or damaged; {AGAIN_WITH_FP16}")
    if fp16.base_model != spec.digest:
        raise BuildError(f"the fp16 graph in {graphs} is another base model's; {AGAIN_WITH_FP16}")
    lost = (fp16.tensors.keys() ^ spec.tensors.keys()) | (spec.tensors.keys() - found.keys())
    if lost:
        raise BuildError(f"the fp16 graph has not the model's tensors, such as {min(lost)}; {AGAIN_WITH_FP16}")
    for name, tensor in fp16.tensors.items():
        if (found[name].data_type, found[name].shape) != (FLOAT16, tensor.shape_in_graph):
            raise BuildError(
                f"{name} of the fp16 graph is not of fp16 and shape {list(tensor.shape_in_graph)}; {AGAIN_WITH_FP16}"
            )


def copy_all_but_the_denoiser(folder: Path, graphs: Path, spec: BaseModelSpec) -> None:
    """Everything else: specifications, self-test answers, the other graphs, and PyTorch's answer as the base probe."""
    for name in (FP16_FILE, SELF_TEST_FILE):
        link_or_copy(graphs / FP16_FOLDER / name, folder / name)
    link_others(folder, graphs, spec)
    save_file({"base": load_file(folder / SELF_TEST_FILE)["base"]}, folder / PROBE_FILE)
