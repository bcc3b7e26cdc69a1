"""Exports the CLIP filter's model, if a base model's folder has one in `clip/`: a CLIPModel saved by transformers.

clip_image.onnx        image float32 (n, 3, side, side) in [0, 1] -> projected float32 (n, d) of length 1
clip_text.onnx         input_ids int64 (n, tokens) -> projected float32 (n, d) of length 1
clip_tokenizer.json    of the `tokenizers` library, padding and cutting to the model's number of tokens
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer

from tuner_svc.export.check import check_batches, check_graph
from tuner_svc.export.frozen import save_tokenizer
from tuner_svc.export.graph import save, to_graph, weights_size
from tuner_svc.model_folder import CLIP_FOLDER, UnusableBaseModel, check_safetensors, read_object
from unitune.graph_files import CLIP_IMAGE, CLIP_TEXT, CLIP_TOKENIZER

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the published CLIP models' preprocessor
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageTower(nn.Module):
    """Pictures in [0, 1] to embeddings of length 1, the preprocessor's normalisation included."""

    def __init__(self, clip: CLIPModel, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(std)[None, :, None, None])

    def forward(self, image: Tensor) -> Tensor:
        pooled = self.clip.vision_model((image - self.mean) / self.std).pooler_output
        return normalize(self.clip.visual_projection(pooled), dim=-1)


class TextTower(nn.Module):
    """Token ids to embeddings of length 1."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor) -> Tensor:
        return normalize(self.clip.text_projection(self.clip.text_model(input_ids).pooler_output), dim=-1)


def has_clip(base_model: Path) -> bool:
    """Whether the base model has a CLIP filter."""
    return (base_model / CLIP_FOLDER / "config.json").is_file()


def export_clip(folder: Path, base_model: Path) -> None:
    """Write and check both graphs and the tokenizer. Raises UnusableBaseModel for a folder that holds no CLIP, and
    ExportError when a graph does not answer like PyTorch."""
    source = base_model / CLIP_FOLDER
    check_safetensors(source)
    try:
        clip = CLIPModel.from_pretrained(
            source, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UnusableBaseModel(f"{source} holds no CLIP model of transformers: {error}") from error
    side, tokens = clip.config.vision_config.image_size, clip.config.text_config.max_position_embeddings
    processor = read_object(source / "preprocessor_config.json")
    mean, std = processor.get("image_mean", OPENAI_MEAN), processor.get("image_std", OPENAI_STD)
    generator = torch.Generator().manual_seed(0)

    def image(batch: int) -> Tensor:
        return torch.rand((batch, 3, side, side), generator=generator)

    def ids(batch: int) -> Tensor:
        drawn = torch.randint(0, len(tokenizer), (batch, tokens), generator=generator)
        drawn[:, -1] = tokenizer.eos_token_id  # pooling looks for it
        return drawn

    for module, draw, input_name, file_name in (
        (ImageTower(clip, mean, std), image, "image", CLIP_IMAGE),
        (TextTower(clip), ids, "input_ids", CLIP_TEXT),
    ):
        graph = to_graph(module.eval(), {input_name: draw(2)}, "projected")
        save(graph, folder / file_name)
        for batch in check_batches(weights_size(graph)):
            check_graph(folder / file_name, module, {input_name: draw(batch)})
    save_tokenizer(tokenizer, tokens, folder / CLIP_TOKENIZER)
