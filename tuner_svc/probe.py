"""The proof that travels with tuned weights: what the denoiser answers to a fixed input, before and after tuning.

An engine that was refitted must give the second answer and not the first (unitune.weights).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tuner_svc.base_model import BaseModel
from tuner_svc.methods import METHODS, Tuned
from tuner_svc.tuning_config import TuningConfig
from unitune.codecs import decode, encode
from unitune.weights import Manifest, pack, probe_input

PROBE_SEED = 0


def pack_tuned(
    model: BaseModel, tuned: Tuned, config: TuningConfig, key: str, codec: str = "none"
) -> tuple[bytes, Manifest]:
    """The weights file of a tuning, and its manifest. A LoRA tuning's factors are stored, unless the codec is none.

    The probe's answer is that of the tensors as a sampler decodes them; where no tensor of the denoiser changes there
    is no probe. Extras are no deltas, and stored as they are. Raises ValueError as `encode` does.
    """
    if tuned.factors and codec != "none":
        codec = "lora"
    if not tuned.tensors:
        codec = "none"
    tensors = {name: tensor.cpu().numpy() for name, tensor in tuned.tensors.items()}
    factors = {name: (up.cpu().numpy(), down.cpu().numpy()) for name, (up, down) in tuned.factors.items()}
    base = {name: tensor.cpu().numpy() for name, tensor in model.tensors().items() if name in tensors}
    stored = encode(tensors, base, codec, factors)
    answer = of_base = np.empty(0, dtype=np.float32)
    if tuned.tensors:
        answer, of_base = (probe_answer(model, changed, PROBE_SEED) for changed in (tuned.tensors, {}))
    decoded = {name: torch.from_numpy(tensor) for name, tensor in decode(stored, base, codec).items()}
    of_decoded = answer if codec == "none" else probe_answer(model, decoded, PROBE_SEED)
    return pack(
        stored,
        probe_tuned=of_decoded,
        probe_base=of_base,
        codec=codec,
        codec_error=_error(of_decoded, answer, of_base),
        key=key,
        base_model=model.digest,
        method=config.method,
        rare_tokens=config.rare_tokens,
        updates=config.updates,
        probe_seed=PROBE_SEED,
        stopped_after=len(tuned.losses) if len(tuned.losses) < METHODS[config.method].total(config) else 0,
        extras={name: tensor.cpu().numpy() for name, tensor in tuned.extras.items()},
        bound_to=tuned.bound_to,
    )


def _error(of_codec: np.ndarray, of_tuned: np.ndarray, of_base: np.ndarray) -> float:
    """What a codec loses, as a share of the tuning's effect; 0 for a tuning without any."""
    effect = float(np.linalg.norm(of_tuned - of_base))
    return float(np.linalg.norm(of_codec - of_tuned)) / effect if effect else 0.0


@torch.no_grad()
def probe_answer(model: BaseModel, tensors: Mapping[str, Tensor], seed: int) -> np.ndarray:
    """The denoiser's output, fp32 (2, channels, h, w), with `tensors` in place of its own of these names."""
    values = probe_input(seed, model.latent_channels, model.latent_side, (model.context_tokens, model.context_width))
    arguments = tuple(torch.from_numpy(value).to(model.device) for value in values.values())
    tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    # Convolutions on a GPU round to 10 bits of mantissa by default, which is as coarse as what the probe looks for.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        answer = functional_call(model.denoiser.unet, tensors, arguments).sample
    return answer.cpu().numpy()
