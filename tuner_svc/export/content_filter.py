"""Export a content filter: a classifier in the format of Stable Diffusion's safety checker.

    python -m tuner_svc.export.content_filter --safety-checker FOLDER --out GRAPHS

FOLDER is the `safety_checker` of a diffusers folder. The sampler takes GRAPHS as its setting UNITUNE_CONTENT_FILTER.
The last line of stdout is its path.

content_filter.onnx   image float32 (n, 3, side, side) in [0, 1] -> excess float32 (n,): how far the picture is beyond
                      the nearest threshold; the sampler refuses a picture above 0.0005, as the checker rounds to 0.001
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor, nn
from torch.nn.functional import normalize

from tuner_svc.export.check import check_batches, check_graph
from tuner_svc.export.clip import OPENAI_MEAN, OPENAI_STD
from tuner_svc.export.exported_folder import ExportError
from tuner_svc.export.graph import EXAMPLES, save, to_graph, weights_size
from tuner_svc.model_folder import UnusableBaseModel, check_safetensors, read_object
from unitune.graph_files import CONTENT_FILTER, CONTENT_FILTER_ROUNDS_TO_ZERO
from unitune.program_end import exit_code

PROCESSOR_FILE = "preprocessor_config.json"
SPECIAL_CARE = 0.01  # lower thresholds for a picture that is near one of the special concepts


class ContentFilterModule(nn.Module):
    """Pictures in [0, 1] to their excess, normalisation and thresholds included."""

    def __init__(self, checker: StableDiffusionSafetyChecker, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.checker = checker
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(std)[None, :, None, None])

    def forward(self, image: Tensor) -> Tensor:
        checker = self.checker
        pooled = checker.vision_model((image - self.mean) / self.std).pooler_output
        embedding = normalize(checker.visual_projection(pooled))
        special = embedding @ normalize(checker.special_care_embeds).T - checker.special_care_embeds_weights
        concepts = embedding @ normalize(checker.concept_embeds).T - checker.concept_embeds_weights
        is_special = (special > CONTENT_FILTER_ROUNDS_TO_ZERO).any(dim=1)
        return concepts.amax(dim=1) + SPECIAL_CARE * is_special


def export_content_filter(source: Path, folder: Path) -> Path:
    """Write and check the graph. Returns the folder.

    Raises UnusableBaseModel for a folder that holds no safety checker, and ExportError when the graph does not answer
    like PyTorch.
    """
    check_safetensors(source)
    try:
        checker = StableDiffusionSafetyChecker.from_pretrained(
            source, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError) as error:
        raise UnusableBaseModel(f"{source} holds no safety checker of diffusers: {error}") from error
    processor = _processor(source)
    module = ContentFilterModule(
        checker, processor.get("image_mean", OPENAI_MEAN), processor.get("image_std", OPENAI_STD)
    ).eval()
    side, generator = checker.config.vision_config.image_size, torch.Generator().manual_seed(0)

    def question(batch: int) -> dict[str, Tensor]:
        return {"image": torch.rand((batch, 3, side, side), generator=generator)}

    folder.mkdir(parents=True, exist_ok=True)
    graph = to_graph(module, question(EXAMPLES), "excess")
    save(graph, folder / CONTENT_FILTER)
    for batch in check_batches(weights_size(graph)):
        check_graph(folder / CONTENT_FILTER, module, question(batch))
    return folder


def _processor(source: Path) -> dict[str, Sequence[float]]:
    """How pictures are normalised: beside the weights, or in the folder that diffusers has for it."""
    for folder in (source, source.parent / "feature_extractor"):
        if (folder / PROCESSOR_FILE).is_file():
            return dict(read_object(folder / PROCESSOR_FILE))
    return {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(
        "python -m tuner_svc.export.content_filter", description="Export a content filter."
    )
    parser.add_argument(
        "--safety-checker", type=Path, required=True, help="a folder as diffusers saves a safety checker"
    )
    parser.add_argument("--out", type=Path, required=True, help="the graph's folder, for UNITUNE_CONTENT_FILTER")
    options = parser.parse_args(arguments)
    write = partial(export_content_filter, options.safety_checker, options.out)
    return exit_code("export", write, options.out, UnusableBaseModel, ExportError)


if __name__ == "__main__":
    sys.exit(main())
