"""One update of UniTune, batch 4, by mode: written out, as one CUDA graph, compiled, and diffusers' loop.

All run the same passes in bfloat16 with weights, loss and optimizer in fp32 (tuner_svc.denoising.mixed_precision).
"""

import copy
import dataclasses
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers.optimization import Adafactor as TransformersAdafactor

from bench.gpu.record import Found, Skipped, clocked, need_cuda, timed
from bench.roofline import flops_of
from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel
from tuner_svc.denoising import Draws, Noising, draw, mixed_precision
from tuner_svc.methods import unitune
from tuner_svc.trainable import trainable
from tuner_svc.update_graph import EAGER_UPDATES, UpdateGraph, repeatable_sums

BATCH, LEARNING_RATE, ROUNDS = 4, 1e-5, 10
UPDATES = 128  # of a tuning

Update = Callable[[Tensor, Tensor], Tensor]  # timesteps, noise -> loss


def eager(model: BaseModel, mode: str = "full") -> Found:
    """The update as the tuner ran it before it had a graph, with its FLOPs; and with any kernel allowed, also such
    as add up otherwise in each run."""
    update, _ = update_of(model, mode)
    draws = draws_of(model)

    def work() -> Tensor:
        return update(*draws()).detach()

    with repeatable_sums():
        found: Found = {"flop": flops_of(work), "update_s": timed(work, model.device, ROUNDS)}
    return found | {"any_kernels_update_s": timed(work, model.device, ROUNDS), "loss": float(work())}


def eager_channels_last(model: BaseModel) -> Found:
    """The same with the weights of convolutions in the order that tensor cores want."""
    model = dataclasses.replace(model, denoiser=copy.deepcopy(model.denoiser))
    model.denoiser.unet.to(memory_format=torch.channels_last)
    return eager(model)


def graph(model: BaseModel, mode: str = "full") -> Found:
    """The update as the tuner runs it: captured whole, and replayed, with its draws; and a tuning's UPDATES of them."""
    need_cuda(model.device, "a CUDA graph")
    update, parameters = update_of(model, mode)
    draws = draws_of(model)
    run = UpdateGraph(update, parameters, model.device)
    found = {"update_s": timed(lambda: run(*draws()), model.device, ROUNDS, warm=EAGER_UPDATES + 2)}
    if not run.is_captured:
        raise Skipped("the update was not captured; the log says why")
    tuning = clocked(lambda: [run(*draws()) for _ in range(UPDATES)], model.device)
    return found | {"updates": UPDATES, "tuning_s": tuning, "loss": float(run(*draws()))}


def compiled(model: BaseModel) -> Found:
    """The denoiser through torch.compile, the optimizer ours; the seconds of the first update, which compiles."""
    need_cuda(model.device, "torch.compile here")
    unet = copy.deepcopy(model.denoiser.unet).requires_grad_(True)
    parameters = list(unet.parameters())
    optimizer, noising = Adafactor(parameters, LEARNING_RATE), Noising(model.schedule, model.device)
    latent, context = picture_and_prompt(model)
    network = torch.compile(unet)
    draws = draws_of(model)

    def work() -> Tensor:
        timesteps, noise = draws()
        given = Draws(timesteps, noise)
        with mixed_precision(model.device):
            prediction = network(noising.noised(latent, given), timesteps, context.expand(BATCH, -1, -1)).sample
        loss = mse_loss(prediction.float(), noising.target(latent, given))
        loss.backward()
        optimizer.step()
        return loss.detach()

    first = timed(work, model.device, 1, warm=0)
    return {"first_update_s": first["wall"], "update_s": timed(work, model.device, ROUNDS), "loss": float(work())}


def diffusers_loop(model: BaseModel) -> Found:
    """The update of diffusers' DreamBooth example (bench/peers/diffusers_dreambooth.py) without what encodes picture
    and prompt, which would come on top: transformers' Adafactor, gradients clipped, eager."""
    unet = copy.deepcopy(model.denoiser.unet).requires_grad_(True).train()
    optimizer = TransformersAdafactor(unet.parameters(), lr=LEARNING_RATE, scale_parameter=False, relative_step=False)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latent, context = picture_and_prompt(model)
    latents, contexts = latent.repeat(BATCH, 1, 1, 1), context.repeat(BATCH, 1, 1)

    def work() -> Tensor:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,), device=model.device)
        noised = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            prediction = unet(noised, timesteps, contexts).sample
        loss = mse_loss(prediction.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return {"update_s": timed(work, model.device, ROUNDS), "loss": float(work())}


def update_of(model: BaseModel, mode: str) -> tuple[Update, list[Tensor]]:
    """The tuner's update in a mode, and what it moves."""
    chosen = trainable(model.denoiser.unet, mode, torch.Generator())
    return unitune.update_of(model, chosen, *picture_and_prompt(model), LEARNING_RATE, mode), chosen.parameters()


def picture_and_prompt(model: BaseModel) -> tuple[Tensor, Tensor]:
    """A latent and a text embedding, random."""
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn((1, model.latent_channels, *model.latent_side), generator=generator)
    context = torch.randn((1, model.context_tokens, model.context_width), generator=generator)
    return latent.to(model.device), context.to(model.device)


def draws_of(model: BaseModel) -> Callable[[], tuple[Tensor, Tensor]]:
    """The tuner's draws, from the processor's generator."""
    generator = torch.Generator().manual_seed(3)
    latent, _ = picture_and_prompt(model)
    num_timesteps = model.schedule.num_train_timesteps

    def draws() -> tuple[Tensor, Tensor]:
        drawn = draw(BATCH, latent, num_timesteps, generator, stratified=True)
        return drawn.timesteps, drawn.noise

    return draws
