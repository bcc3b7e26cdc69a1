"""The parts of a base model that no tuning changes: text encoder, image encoder, image decoder, tokenizer."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTokenizer

from tuner_svc.base_model import BaseModel
from tuner_svc.export.check import check_batches, check_graph
from tuner_svc.export.exported_folder import ExportError
from tuner_svc.export.graph import EXAMPLES, save, to_graph, weights_size
from unitune.base_model import check_side
from unitune.graph_files import IMAGE_DECODER, IMAGE_ENCODER, SECOND_TOKENIZER, TEXT_ENCODER, TOKENIZER


def export_frozen(folder: Path, model: BaseModel) -> None:
    """Write and check the three graphs. Raises ExportError if one does not answer like PyTorch."""
    generator = torch.Generator().manual_seed(0)

    shape_of_ids = model.input_ids([""]).shape[1:]

    def ids(batch: int) -> Tensor:
        return torch.randint(0, len(model.tokenizer), (batch, *shape_of_ids), generator=generator)

    pixels = model.image_side[0] // model.latent_side[0]

    def images(batch: int, side: tuple[int, int]) -> dict[str, Tensor]:
        height, width = side
        return {"image": 2 * torch.rand((batch, 3, pixels * height, pixels * width), generator=generator) - 1}

    def latents(batch: int, side: tuple[int, int]) -> dict[str, Tensor]:
        return {"latent": torch.randn((batch, model.latent_channels, *side), generator=generator)}

    def prompts(batch: int, side: tuple[int, int]) -> dict[str, Tensor]:
        vectors = torch.randn((batch + 1, model.context_width), generator=generator)
        found = ids(batch)
        found[..., 1 : 1 + len(vectors)] = -1 - torch.arange(len(vectors))
        return {"input_ids": found, "vectors": vectors}

    step, latent_step = model.spec.size_step or None, model.spec.latent_step or None
    for module, draw, output_name, file_name, free in (
        (model.text_encoder, prompts, "hidden_states", TEXT_ENCODER, None),
        (model.image_encoder, images, "latent", IMAGE_ENCODER, step),
        (model.image_decoder, latents, "image", IMAGE_DECODER, latent_step),
    ):
        graph = to_graph(module, draw(EXAMPLES, model.latent_side), output_name, step=free)
        save(graph, folder / file_name)
        size_bytes = weights_size(graph)
        side = check_side(model.latent_side, model.spec.latent_step, size_bytes)
        for batch in check_batches(size_bytes):
            check_graph(folder / file_name, module, draw(batch, side))


def save_tokenizer(tokenizer: CLIPTokenizer, num_tokens: int, path: Path) -> None:
    """Write a tokenizer for the `tokenizers` library that pads and cuts to a number of tokens."""
    saved = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    saved.enable_truncation(num_tokens)
    saved.enable_padding(length=num_tokens, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    saved.save(str(path))


def export_tokenizer(folder: Path, model: BaseModel) -> None:
    """Write tokenizer.json, which gives a prompt's ids padded and cut, and tokenizer_2.json where there are two.
    Raises ExportError if they are other ids."""
    rare = model.preset.rare_tokens
    prompts = ["", rare, f"{rare} a dog", "A  Dog,\n1984!", "an é in a naïve café, 日本", "a cat on a beach " * 40]
    wanted = model.input_ids(prompts).reshape(len(prompts), -1, model.context_tokens)
    for index, tokenizer in enumerate(model.tokenizers):
        name = (TOKENIZER, SECOND_TOKENIZER)[index]
        save_tokenizer(tokenizer, model.context_tokens, folder / name)
        saved = Tokenizer.from_file(str(folder / name))
        for prompt, ids in zip(prompts, wanted[:, index].tolist(), strict=True):
            if saved.encode(prompt).ids != ids:
                raise ExportError(f"{name} gives other ids than the tokenizer does for {json.dumps(prompt[:40])}")
