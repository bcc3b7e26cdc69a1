"""A step of an edit in PyTorch, fp16, batch 2 (prompt and empty prompt), and edits of 50 and of 8 of them.

On a processor it is fp32, for PyTorch's convolutions in fp16 take seconds there.

A refit is a copy of all tensors into the module: the peer of an engine's. It is proven as one: by the answer to the
probe's question, against PyTorch in fp32 with the new weights.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.gpu.fp16_folder import distance, question_of
from bench.gpu.model import other_weights
from bench.gpu.record import Found, clocked, need_cuda, timed
from bench.roofline import flops_of
from tuner_svc.base_model import BaseModel
from unitune.diffusion.denoiser import Prediction
from unitune.diffusion.schedule import Schedule
from unitune.diffusion.solvers import FirstOrder, ddim_run

EDIT_STEPS, FEW_STEPS, GUIDANCE = 50, 8, 7.5
ROUNDS, EDITS, REFITS = 30, 3, 5

Latent = Any  # (1, channels, h, w), a tensor or an array
Predicted = Callable[[Latent, int, float], Prediction]  # latent, timestep, level -> by the denoiser of epsilon, guided
Step = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents (2, ...), timesteps (2,), contexts (2, ...) -> prediction


@torch.no_grad()
def eager(model: BaseModel) -> Found:
    """Kernel by kernel. The FLOPs of a step with it."""
    unet = fp16_unet(model)
    step = step_of(unet)
    given = on_device(model)
    return {"flop": flops_of(lambda: step(*given))} | figures(model, step) | refits(model, unet, step)


@torch.no_grad()
def eager_channels_last(model: BaseModel) -> Found:
    """The same with the weights of convolutions in the order that tensor cores want."""
    unet = fp16_unet(model).to(memory_format=torch.channels_last)
    return figures(model, step_of(unet))


@torch.no_grad()
def graph(model: BaseModel, *, channels_last: bool = False) -> Found:
    """The step as a CUDA graph."""
    need_cuda(model.device, "a CUDA graph")
    unet = fp16_unet(model)
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    step = captured(step_of(unet), on_device(model))
    return figures(model, step) | refits(model, unet, step)


@torch.no_grad()
def compiled_graph(model: BaseModel) -> Found:
    """The module through torch.compile, then as a CUDA graph; the seconds of the first call, which compiles."""
    need_cuda(model.device, "torch.compile here")
    unet = fp16_unet(model).to(memory_format=torch.channels_last)
    plain = step_of(torch.compile(unet))
    given = on_device(model)
    first = clocked(lambda: plain(*given), model.device)
    without = timed(lambda: plain(*given), model.device, ROUNDS)
    step = captured(plain, given)
    return (
        {"first_step_s": first["median"], "step_without_graph_s": without}
        | figures(model, step)
        | refits(model, unet, step)
    )


def figures(model: BaseModel, step: Step) -> Found:
    """Seconds of a step and of an edit, and how far off fp16 is."""
    given = on_device(model)
    noise, predicted = given[0][:1].float(), predicted_by(step, model)
    return {
        "step_s": timed(lambda: step(*given), model.device, ROUNDS),
        "edit_s": clocked(edit_of(model, noise, predicted), model.device, EDITS, warm=1),
        "few_steps_edit_s": clocked(edit_of(model, noise, predicted, FEW_STEPS), model.device, EDITS, warm=1),
        "error": distance(step(*given).float().cpu().numpy(), answer_of(model, {})),
    }


def refits(model: BaseModel, unet: nn.Module, step: Step) -> Found:
    """Seconds of a refit, from fp32 tensors on the GPU and from fp32 arrays of the processor's, and that it is seen."""
    into = dict(unet.state_dict())
    sets = {"base": model.tensors(), "other": other_weights(model)}
    on_host = {name: tensor.cpu() for name, tensor in sets["other"].items()}
    given = on_device(model)

    def refit(tensors: dict[str, Tensor]) -> None:
        torch._foreach_copy_([into[name] for name in tensors], list(tensors.values()))

    said: dict[str, np.ndarray] = {}
    found: Found = {}
    for name in ("base", "other", "base", "other"):
        refit(sets[name])
        answer = step(*given).float().cpu().numpy()
        found[f"{name}_after_refit_error"] = distance(answer, answer_of(model, sets[name]))
        if not np.array_equal(said.setdefault(name, answer), answer):
            found["differs_after_refit_there_and_back"] = True
    return found | {
        "refit_effect": distance(said["other"], said["base"]),
        "refit_from_gpu_s": timed(lambda: refit(sets["other"]), model.device, REFITS),
        "refit_from_processor_s": clocked(lambda: refit(on_host), model.device, REFITS, warm=1),
    }


def fp16_unet(model: BaseModel) -> nn.Module:
    """A copy in fp16; on a processor in fp32."""
    unet = copy.deepcopy(model.denoiser.unet)
    return unet.half() if model.device.type == "cuda" else unet


def step_of(unet: nn.Module) -> Step:
    """The module, asked in its own type and answering in it."""
    dtype = next(unet.parameters()).dtype

    def step(latents: Tensor, timesteps: Tensor, contexts: Tensor) -> Tensor:
        answer: Tensor = unet(latents.to(dtype), timesteps, contexts.to(dtype)).sample
        return answer

    return step


def captured(plain: Step, given: tuple[Tensor, ...]) -> Step:
    """A step as a CUDA graph; its answer is written over by the next."""
    static = [tensor.clone() for tensor in given]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            plain(*static)
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded, stream=side):
        answer = plain(*static)

    def step(*inputs: Tensor) -> Tensor:
        for to, tensor in zip(static, inputs, strict=True):
            to.copy_(tensor)
        recorded.replay()
        return answer

    return step


def edit_of(model: BaseModel, noise: Latent, predicted: Predicted, steps: int = EDIT_STEPS) -> Callable[[], Latent]:
    """An edit from pure noise by DDIM, of tensors or of arrays. Encoders and decoder are left out."""
    run, solver = ddim_run(Schedule(**vars(model.schedule)), steps), FirstOrder()

    def edit() -> Latent:
        latent = noise
        for timestep, level, next_level in run:
            latent = solver.step(latent, predicted(latent, timestep, level), level, next_level)
        return latent

    return edit


def predicted_by(step: Step, model: BaseModel) -> Predicted:
    """All on the GPU, the timesteps too."""
    _, _, contexts = on_device(model)
    timesteps = torch.arange(model.schedule.num_train_timesteps, device=model.device).repeat_interleave(2).view(-1, 2)

    def predicted(latent: Tensor, timestep: int, level: float) -> Prediction:
        prompted, empty = step(latent.expand(2, -1, -1, -1), timesteps[timestep], contexts).float().chunk(2)
        epsilon = empty + GUIDANCE * (prompted - empty)
        return Prediction((latent - (1 - level) ** 0.5 * epsilon) / level**0.5, epsilon)

    return predicted


def on_device(model: BaseModel) -> tuple[Tensor, Tensor, Tensor]:
    """The probe's question."""
    latents, timesteps, contexts = (torch.from_numpy(array).to(model.device) for array in question_of(model).values())
    return latents, timesteps, contexts


@torch.no_grad()
def answer_of(model: BaseModel, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """PyTorch's answer to the question with these tensors in place of the model's; fp32 without TF32."""
    latents, timesteps, contexts = on_device(model)
    unet = model.denoiser.unet
    given = {name: tensor.to(dtype) for name, tensor in {**model.tensors(), **tensors}.items()}
    before = torch.backends.cudnn.allow_tf32  # which PyTorch allows convolutions, and not matrix products
    torch.backends.cudnn.allow_tf32 = False
    try:
        answer = functional_call(unet, given, (latents.to(dtype), timesteps, contexts.to(dtype))).sample
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return answer.float().cpu().numpy()
