"""Pictures of a class, sampled by the base model (DreamBooth, arXiv 2208.12242, section 3.2).

They stay latents, since a tuning needs latents.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner_svc.base_model import BaseModel
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import classifier_free, guided
from unitune.diffusion.schedule import Latents, Schedule
from unitune.diffusion.solvers import SCHEDULERS

BATCH = 4  # pictures drawn together
KEPT = 8  # sets of pictures in memory

_kept: OrderedDict[tuple[str, str, int, tuple[int, int]], Tensor] = OrderedDict()  # the tuner has one PyTorch thread


def class_prompt(class_noun: str) -> str:
    """The prompt of the class."""
    return f"a {class_noun.strip()}"


def class_latents(
    model: BaseModel,
    class_noun: str,
    number: int,
    before_each: Callable[[], None] = lambda: None,
    side: tuple[int, int] | None = None,
) -> Tensor:
    """Latents (number, channels, h, w) of a base model and class noun; (h, w) is `side`, or the base model's own. The
    last KEPT sets are in memory.

    `before_each` may raise before a step; then nothing is kept.
    """
    key = (model.digest, class_noun.strip(), number, side or model.latent_side)
    if key not in _kept:
        _kept[key] = draw_class(model, class_noun, number, before_each, side)
    _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return _kept[key]


def draw_class(
    model: BaseModel,
    class_noun: str,
    number: int,
    before_each: Callable[[], None] = lambda: None,
    side: tuple[int, int] | None = None,
) -> Tensor:
    """Sample them with the preset's scheduler, steps and guidance; picture i has seed i."""
    schedule = Schedule(**vars(model.schedule))
    scheduler = SCHEDULERS[model.preset.scheduler]
    run = scheduler.run(schedule.spaced(model.preset.timestep_spacing), model.preset.num_inference_steps)
    prompt, empty = (model.encode_prompt(text)[0].cpu().numpy() for text in (class_prompt(class_noun), ""))
    terms = classifier_free(model.preset.guidance_scale, prompt, empty)

    @torch.no_grad()
    def denoiser(latents: Latents, timesteps: NDArray[np.int64], contexts: NDArray[np.float32]) -> Latents:
        arguments = (torch.from_numpy(array).to(model.device) for array in (latents, timesteps, contexts))
        answer: Latents = model.predicted(*arguments).cpu().numpy()
        return answer

    batches = []
    shape = (model.latent_channels, *(side or model.latent_side))
    for first in range(0, number, BATCH):
        seeds = range(first, min(first + BATCH, number))
        generators = [np.random.default_rng(seed) for seed in seeds]
        draw = partial(_drawn, generators, shape)
        latents, solver = draw(), scheduler.solver(run, draw)
        for timestep, level, next_level in run:
            before_each()
            output = guided(denoiser, latents, timestep, terms, rescale=model.preset.guidance_rescale)
            latents = solver.step(latents, predict(output, latents, level, schedule.prediction_type), level, next_level)
        batches.append(torch.from_numpy(np.asarray(latents, dtype=np.float32)))
    return torch.cat(batches).to(model.device)


def _drawn(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Latents:
    return np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])
