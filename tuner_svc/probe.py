"""The probe in a weights file: the denoiser's answers to a fixed input, before and after tuning.

An engine that was refitted must give the second answer and not the first (unitune.weights).
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tuner_svc.arrangement import recomputing
from tuner_svc.base_model import BaseModel
from tuner_svc.methods import METHODS, Tuned
from tuner_svc.super_resolver import SuperResolver
from tuner_svc.tuning_config import TuningConfig
from unitune.base_model import is_large
from unitune.codecs import DecodedTensors, decode, encode
from unitune.weights import (
    FAST_LORA_TUNED,
    PROBE_SEED,
    Manifest,
    base_probe,
    pack,
    prefix,
    probe_input,
    tuned_probe,
)

SENSITIVITY_SEED = 1  # not the probe's, which measures the loss


def pack_tuned(
    model: BaseModel,
    tuned: Tuned,
    config: TuningConfig,
    key: str,
    codec: str = "none",
    before_each: Callable[[], None] = lambda: None,
    *,
    overwrites: bool = False,
) -> tuple[bytes, Manifest]:
    """The weights file of a tuning, and its manifest. A LoRA tuning's factors are stored, unless the codec is none.

    The probe's answer is for the tensors as a sampler decodes them. If no tensor of the denoiser changes, there is no
    probe. Extras are stored as they are. Where the base model has a fast LoRA, one more is the probe's answer with its
    changes, too, which takes memory for all tensors that it changes. `before_each` may raise before a tensor is encoded
    and before a pass of the denoiser. With `overwrites` the tuned tensors become the decoded ones, which needs no
    memory for a second set. Raises ValueError as `encode` does.
    """
    if tuned.factors and codec != "none":
        codec = "lora"
    if not tuned.tensors:
        codec = "none"
    tensors = _arrays(tuned.tensors)
    factors = {name: (up.cpu().numpy(), down.cpu().numpy()) for name, (up, down) in tuned.factors.items()}
    base = {name: tensor.cpu().numpy() for name, tensor in model.tensors().items() if name in tensors}
    before_each()
    # Of a large model the activations of two rows may be more than there is memory for.
    is_short = is_large(sum(tensor.nbytes for tensor in model.tensors().values()))
    with recomputing(model.denoiser.unet) if is_short else nullcontext():
        sensitivity = sensitivities(partial(_answer, model), tuned.tensors) if codec == "sign" else {}
    stored = encode(tensors, base, codec, factors, sensitivity, before_each)

    def answer_with(changed: Mapping[str, Tensor]) -> np.ndarray:
        before_each()
        return probe_answer(model, changed, PROBE_SEED)

    answer = of_base = np.empty(0, dtype=np.float32)
    if tuned.tensors:
        answer, of_base = answer_with(tuned.tensors), answer_with({})
    served: Mapping[str, Tensor] = tuned.tensors
    of_decoded = answer
    if codec != "none":
        decoded = DecodedTensors(stored, base, codec)
        served = _into(tuned.tensors, decoded) if overwrites else _tensors(decoded)
        of_decoded = answer_with(served)
    of_fast = {}
    if model.fast_lora is not None and tuned.tensors:
        of_fast[FAST_LORA_TUNED] = answer_with({**served, **model.fast_lora.added_to({**model.tensors(), **served})})
    large: dict[str, np.ndarray] = {}
    large_answers: dict[str, np.ndarray] = {}
    for resolver in model.super_resolution:
        if changed := tuned.super_resolution.get(resolver.spec.name):
            encoded, answers = _encoded_stage(model, resolver, changed, codec, before_each)
            large, large_answers = {**large, **encoded}, {**large_answers, **answers}
    return pack(
        {**stored, **large},
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
        extras={**_arrays(tuned.extras), **large_answers, **of_fast},
        bound_to=tuned.bound_to,
    )


def _into(tensors: Mapping[str, Tensor], decoded: Mapping[str, np.ndarray]) -> Mapping[str, Tensor]:
    """The tensors, overwritten by those that are decoded, one by one; the others are as the base model's."""
    for name in decoded:
        tensors[name].copy_(torch.from_numpy(decoded[name]))
    return tensors


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _encoded_stage(
    model: BaseModel,
    resolver: SuperResolver,
    tuned: Mapping[str, Tensor],
    codec: str,
    before_each: Callable[[], None],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A super-resolution stage's tuned tensors as the file holds them, and its probe's answers."""
    name = resolver.spec.name
    base = {key: tensor for key, tensor in _arrays(resolver.unet.state_dict()).items() if key in tuned}
    before_each()
    sensitivity = sensitivities(partial(_stage_answer, model, resolver), tuned) if codec == "sign" else {}
    stored = encode(_arrays(tuned), base, codec, sensitivity=sensitivity, before_each=before_each)
    decoded = {key: torch.from_numpy(tensor) for key, tensor in decode(stored, base, codec).items()}
    before_each()
    answers = {
        tuned_probe(name): stage_answer(model, resolver, decoded, PROBE_SEED),
        base_probe(name): stage_answer(model, resolver, {}, PROBE_SEED),
    }
    return {f"{prefix(name)}{key}": array for key, array in stored.items()}, answers


def sensitivities(
    answer: Callable[[Mapping[str, Tensor], int], Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, float]:
    """How much errors in each matrix change the answer: the expected squared change for an error of 1 in each value, if
    errors are independent.

    It is the mean of g^2 for one gradient g of a random projection of the answer: its expectation over projections.
    """
    matrices = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items() if tensor.dim() > 1}
    found = answer({**tensors, **matrices}, SENSITIVITY_SEED)
    projection = torch.randn(found.shape, generator=torch.Generator().manual_seed(SENSITIVITY_SEED)).to(found.device)
    squares: dict[str, float] = {}
    for name, matrix in matrices.items():
        matrix.register_post_accumulate_grad_hook(partial(_keep_mean_square, squares, name))
    (found * projection).sum().backward()
    return {name: squares[name] for name in matrices}


def _keep_mean_square(squares: dict[str, float], name: str, matrix: Tensor) -> None:
    """Keep only that of a gradient, as soon as it is there: all gradients together are as large as the model."""
    assert matrix.grad is not None
    squares[name] = float(matrix.grad.square().mean())
    matrix.grad = None


@torch.no_grad()
def stage_answer(model: BaseModel, resolver: SuperResolver, tensors: Mapping[str, Tensor], seed: int) -> np.ndarray:
    """As `probe_answer`, for a super-resolution stage; its output has the channels of one picture in blocks."""
    return _stage_answer(model, resolver, tensors, seed).cpu().numpy()


def _stage_answer(model: BaseModel, resolver: SuperResolver, tensors: Mapping[str, Tensor], seed: int) -> Tensor:
    stage, context = resolver.spec, (model.context_tokens, model.context_width)
    values = probe_input(seed, 2 * stage.channels, stage.checked_side, context, has_noise_level=True)
    arguments = tuple(torch.from_numpy(value).to(model.device) for value in values.values())
    weights = {f"unet.{name}": tensor.to(model.device) for name, tensor in tensors.items()}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        answer: Tensor = functional_call(resolver, weights, arguments)
    return answer


def _error(of_codec: np.ndarray, of_tuned: np.ndarray, of_base: np.ndarray) -> float:
    """The loss of a codec, as a share of the tuning's effect; 0 for a tuning without effect."""
    effect = float(np.linalg.norm(of_tuned - of_base))
    return float(np.linalg.norm(of_codec - of_tuned)) / effect if effect else 0.0


@torch.no_grad()
def probe_answer(model: BaseModel, tensors: Mapping[str, Tensor], seed: int) -> np.ndarray:
    """The denoiser's output, fp32 (2, channels, h, w), with `tensors` in place of its own."""
    return _answer(model, tensors, seed).cpu().numpy()


def _answer(model: BaseModel, tensors: Mapping[str, Tensor], seed: int) -> Tensor:
    values = probe_input(seed, model.spec.input_channels, model.latent_side, model.conditioning)
    latents, timesteps, contexts = (torch.from_numpy(value).to(model.device) for value in values.values())
    tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    # Convolutions on a GPU round to 10 bits of mantissa by default. The probe's differences are as small as that.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return model.denoiser.predicted(latents, timesteps, contexts, tensors)
