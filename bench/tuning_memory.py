"""The memory that a tuning by UniTune takes beside the base model, by family, mode and arrangement, in GB.

    python -m bench.tuning_memory

Computed from the published shapes at each family's own size, with batch 4, on tensors without memory: nothing is
measured but what autograd would keep. It is what a tuner on a CPU expects (tuner_svc/arrangement.py), and the copies of
the tensors that change. After its updates `lora` has dense tensors for the weights file, too, whose size is in its last
line.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tuner_svc.adafactor import Adafactor
from tuner_svc.arrangement import GB, Update, arrangements
from tuner_svc.base_model import DenoiserModule
from tuner_svc.single_file.family import SD_1, SD_2, SDXL, Family
from tuner_svc.trainable import trainable
from unitune.choices import MODES

BATCH, TOKENS, POOLED_WIDTH, PIXELS = 4, 77, 1280, 8


def main() -> None:
    with FakeTensorMode():
        for family in (SD_1, SD_2, SDXL):
            for mode in MODES:
                for line in lines(family, mode):
                    print(line, flush=True)


def lines(family: Family, mode: str) -> list[str]:
    """What each arrangement takes, in a line."""
    config = family.unet
    unet = UNet2DConditionModel.from_config(config).requires_grad_(False).eval()
    chosen = trainable(unet, mode, torch.Generator())
    has_pooled = config.get("addition_embed_type") is not None
    denoiser = DenoiserModule(unet, POOLED_WIDTH if has_pooled else 0, PIXELS)
    context = torch.zeros(1, TOKENS + has_pooled, config["cross_attention_dim"])

    def loss(timesteps: Tensor, noise: Tensor) -> Tensor:
        context_of_all = context.expand(len(noise), -1, -1)
        return denoiser.predicted(noise, timesteps, context_of_all, chosen.replacements()).square().mean()

    # All that an update reads of a base model for its footprint.
    model: Any = SimpleNamespace(
        digest=family.name, device=torch.device("cpu"), denoiser=denoiser, text_encoder=torch.nn.Module()
    )
    update = Update(model, loss, Adafactor(chosen.parameters(), 1e-4), chosen.parameters(), mode)
    noise = torch.zeros(BATCH, config["in_channels"], config["sample_size"], config["sample_size"])
    footprint = update._footprint((torch.zeros(BATCH, dtype=torch.int64), noise))
    copies = sum(parameter.nbytes for parameter in chosen.parameters())
    weights = sum(tensor.nbytes for tensor in unet.parameters())
    needs = {one: (copies + footprint.need(BATCH, one)) / GB for one in arrangements(BATCH)}
    start = f"{family.name:20} weights {weights / GB:5.2f} GB  {mode:8}"
    found = [f"{start}  {need:5.1f} GB  {one.words(BATCH)}" for one, need in needs.items()]
    dense = sum(tensor.nbytes for tensor in chosen.weights().values())
    return [*found, *([f"{start}  {dense / GB:5.1f} GB  dense tensors after the updates"] if mode == "lora" else [])]


if __name__ == "__main__":
    main()
