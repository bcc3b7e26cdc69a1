"""A tiny random CLIP as a folder of transformers, and its exported graphs."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from tests.tiny_model import CONTEXT_TOKENS, tiny_tokenizer

SIDE = 32


def save_tiny_clip(folder: Path) -> CLIPModel:
    """A random CLIP of 32x32 pictures with the tiny model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**shape, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT_TOKENS}
    vision = {**shape, "image_size": SIDE, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    clip.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return clip
