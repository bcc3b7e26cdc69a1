"""A random fast LoRA for a base model's folder, under kohya's names, and the same model with the LoRA merged."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
RANK, ALPHA, WEIGHT = 3, 2.0, 0.8
CHANGED = ("attn", "conv1", "proj_in", ".ff.")  # in the names of the modules that it changes


def lora_tensors(model: Path, *, seed: int = 3, size: float = 0.1) -> dict[str, Tensor]:
    """Its factors: linear modules and convolutions."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, weight in load_file(model / WEIGHTS).items():
        if name.endswith(".weight") and weight.dim() > 1 and any(part in name for part in CHANGED):
            module = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
            ones = (1,) * (weight.dim() - 2)
            found[f"{module}.lora_down.weight"] = size * torch.randn(RANK, *weight.shape[1:], generator=generator)
            found[f"{module}.lora_up.weight"] = size * torch.randn(weight.shape[0], RANK, *ones, generator=generator)
            found[f"{module}.alpha"] = torch.tensor(ALPHA)
    return found


def add_fast_lora(model: Path, *, kind: str = "lcm", steps: int = 4, weight: float = WEIGHT) -> Path:
    """Write it into a base model's folder. Returns the folder."""
    folder = model / "fast_lora"
    folder.mkdir()
    save_file(lora_tensors(model), folder / "lora.safetensors")
    (folder / "config.json").write_text(json.dumps({"distilled": kind, "steps": steps, "weight": weight}))
    return model


def merged_tensors(model: Path, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The denoiser's tensors, or `tensors` in their place, with the LoRA of `lora_tensors` added in float64."""
    merged = {**load_file(model / WEIGHTS), **(tensors or {})}
    factors = lora_tensors(model)
    for name in list(merged):
        module = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{module}.alpha" in factors:
            up, down = (factors[f"{module}.lora_{way}.weight"].double().flatten(1) for way in ("up", "down"))
            change = WEIGHT * ALPHA / RANK * (up @ down)
            merged[name] = (merged[name].double() + change.reshape(merged[name].shape)).float()
    return merged


def save_merged(model: Path, out: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """The base model's folder with these weights, and without the LoRA beside them."""
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("fast_lora"))
    save_file(merged_tensors(model, tensors), out / WEIGHTS, metadata={"format": "pt"})
    return out
