"""The proof that travels with tuned weights: what the denoiser answers to a fixed input, before and after tuning.

An engine that was refitted must give the second answer and not the first (unitune.weights).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tuner_svc.base_model import BaseModel
from tuner_svc.methods import Tuned
from tuner_svc.tuning_config import TuningConfig
from unitune.weights import Manifest, pack, probe_input

PROBE_SEED = 0


def pack_tuned(model: BaseModel, tuned: Tuned, config: TuningConfig, key: str) -> tuple[bytes, Manifest]:
    """The weights file of a tuning, and its manifest. Where no tensor of the denoiser changed there is no probe."""
    nothing = np.empty(0, dtype=np.float32)
    return pack(
        {name: tensor.cpu().numpy() for name, tensor in tuned.tensors.items()},
        probe_tuned=probe_answer(model, tuned.tensors, PROBE_SEED) if tuned.tensors else nothing,
        probe_base=probe_answer(model, {}, PROBE_SEED) if tuned.tensors else nothing,
        key=key,
        base_model=model.digest,
        method=config.method,
        rare_tokens=config.rare_tokens,
        updates=config.updates,
        probe_seed=PROBE_SEED,
        extras={name: tensor.cpu().numpy() for name, tensor in tuned.extras.items()},
    )


@torch.no_grad()
def probe_answer(model: BaseModel, tensors: Mapping[str, Tensor], seed: int) -> np.ndarray:
    """The denoiser's output, fp32 (2, channels, h, w), with `tensors` in place of its own of these names."""
    values = probe_input(seed, model.latent_channels, model.latent_side, (model.context_tokens, model.context_width))
    arguments = tuple(torch.from_numpy(value).to(model.device) for value in values.values())
    # Convolutions on a GPU round to 10 bits of mantissa by default, which is as coarse as what the probe looks for.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        answer = functional_call(model.denoiser.unet, dict(tensors), arguments).sample
    return answer.cpu().numpy()
