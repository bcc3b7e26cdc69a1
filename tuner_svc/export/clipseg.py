"""Export a CLIPSeg, saved by transformers. It finds in a picture what a text names.

    python -m tuner_svc.export.clipseg --clipseg FOLDER --out GRAPHS

The sampler takes GRAPHS as its setting UNITUNE_CLIPSEG. The last line of stdout is its path.

clipseg.onnx             image float32 (n, 3, side, side) in [0, 1], input_ids int64 (n, tokens)
                         -> logits float32 (n, height, width): above 0 where the picture shows it
clipseg_tokenizer.json   of the `tokenizers` library, padding and cutting to the model's number of tokens
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer

from tuner_svc.export.check import check_batches, check_graph
from tuner_svc.export.exported_folder import ExportError
from tuner_svc.export.frozen import save_tokenizer
from tuner_svc.export.graph import EXAMPLES, save, to_graph, weights_size
from tuner_svc.model_folder import UnusableBaseModel, check_safetensors, read_object
from unitune.graph_files import CLIPSEG, CLIPSEG_TOKENIZER
from unitune.program_end import exit_code

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the published model's preprocessor


class Segmenter(nn.Module):
    """Pictures in [0, 1] and token ids to logits, the preprocessor's normalisation included."""

    def __init__(self, clipseg: CLIPSegForImageSegmentation, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.clipseg = clipseg
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(std)[None, :, None, None])

    def forward(self, image: Tensor, input_ids: Tensor) -> Tensor:
        # CLIPSeg's own forward compares the two batch sizes as plain numbers, which would fix the batch size.
        named = self.clipseg.clip.get_text_features(input_ids).pooler_output
        return self.clipseg(pixel_values=(image - self.mean) / self.std, conditional_embeddings=named).logits


def export_clipseg(source: Path, folder: Path) -> Path:
    """Write and check the graph and the tokenizer. Returns the folder.

    Raises UnusableBaseModel for a folder that holds no CLIPSeg, and ExportError when the graph does not answer like
    PyTorch.
    """
    check_safetensors(source)
    try:
        clipseg = CLIPSegForImageSegmentation.from_pretrained(
            source, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UnusableBaseModel(f"{source} holds no CLIPSeg model of transformers: {error}") from error
    processor = read_object(source / "preprocessor_config.json")
    side, tokens = _side(processor), clipseg.config.text_config.max_position_embeddings
    module = Segmenter(
        clipseg, processor.get("image_mean", IMAGENET_MEAN), processor.get("image_std", IMAGENET_STD)
    ).eval()
    generator = torch.Generator().manual_seed(0)

    def question(batch: int) -> dict[str, Tensor]:
        ids = torch.randint(0, len(tokenizer), (batch, tokens), generator=generator)
        ids[:, -1] = tokenizer.eos_token_id  # pooling looks for it
        return {"image": torch.rand((batch, 3, side, side), generator=generator), "input_ids": ids}

    folder.mkdir(parents=True, exist_ok=True)
    graph = to_graph(module, question(EXAMPLES), "logits")
    save(graph, folder / CLIPSEG)
    for batch in check_batches(weights_size(graph)):
        check_graph(folder / CLIPSEG, module, question(batch))
    save_tokenizer(tokenizer, tokens, folder / CLIPSEG_TOKENIZER)
    return folder


def _side(processor: dict[str, object]) -> int:
    """The square that the preprocessor resizes every picture to; 352 as published."""
    size = processor.get("size", 352)
    side = size.get("height") if isinstance(size, dict) else size
    if not isinstance(side, int):
        raise UnusableBaseModel(f"preprocessor_config.json has a size of {size}: give it height and width")
    return side


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser("python -m tuner_svc.export.clipseg", description="Export a CLIPSeg.")
    parser.add_argument("--clipseg", type=Path, required=True, help="a folder as transformers saves a CLIPSeg")
    parser.add_argument("--out", type=Path, required=True, help="the graphs' folder, for UNITUNE_CLIPSEG")
    options = parser.parse_args(arguments)
    write = partial(export_clipseg, options.clipseg, options.out)
    return exit_code("export", write, options.out, UnusableBaseModel, ExportError)


if __name__ == "__main__":
    sys.exit(main())
