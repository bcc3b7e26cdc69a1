"""FLOPs and bytes of one update and one denoising step, and their share of the machine's rates.

    python -m bench.roofline            # --quick: small matrices and 2 rounds, to see that it runs

Both run in PyTorch, which counts the FLOPs of matrix products and convolutions. Bytes are only the weights', the least
that must move: a step reads them; an update reads them twice, writes and reads their gradients, and writes them.
Activations and the optimizer's state are not counted.

The machine's rate is that of a large matrix product or of a large convolution, whichever is higher: they come from
different libraries, and on some CPUs one of the two does not use half of the vector registers.
"""

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.inputs import MODEL
from bench.measure import seconds
from tuner_svc import base_model
from tuner_svc.base_model import BaseModel
from tuner_svc.denoising import draw
from tuner_svc.methods import unitune
from tuner_svc.trainable import trainable

BATCH, LEARNING_RATE = 4, 1e-4
WEIGHT_PASSES = {"step": 1, "engine_step": 1, "update": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(roofline(base_model.load(MODEL), quick=parser.parse_args().quick), indent=1))


def roofline(model: BaseModel, *, quick: bool, engine_step_s: float | None = None) -> dict[str, float]:
    """Rates of the machine, and for `update` and `step` FLOPs, bytes, median seconds and shares of the rates; the same
    for `engine_step`, the seconds of a step of batch 2 in the sampler's engine."""
    rounds, side, megabytes = (2, 256, 16) if quick else (10, 2048, 512)
    matmul, convolution = matmul_rate(side, rounds), convolution_rate(side // 16, rounds)
    best, copied = max(matmul, convolution), copy_rate(megabytes << 20, rounds)
    found = {
        "roofline.matmul_gflop_per_s": matmul / 1e9,
        "roofline.convolution_gflop_per_s": convolution / 1e9,
        "roofline.copy_gb_per_s": copied / 1e9,
    }
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.tensors().values())
    works = {"update": updating(model), "step": stepping(model)}
    flops = {name: flops_of(work) for name, work in works.items()}
    taken_s = {name: statistics.median(seconds(work) for _ in range(rounds)) for name, work in works.items()}
    if engine_step_s is not None:
        flops["engine_step"], taken_s["engine_step"] = flops["step"], engine_step_s
    for name, took_s in taken_s.items():
        moved = WEIGHT_PASSES[name] * weight_bytes
        found |= {
            f"roofline.{name}.gflop": flops[name] / 1e9,
            f"roofline.{name}.weight_mb": moved / 1e6,
            f"roofline.{name}.s": took_s,
            f"roofline.{name}.of_best_rate": flops[name] / took_s / best,
            f"roofline.{name}.of_copy_rate": moved / took_s / copied,
        }
    return found


def flops_of(work: Callable[[], object]) -> int:
    """A multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matmul_rate(side: int, rounds: int) -> float:
    """FLOPs per second of a square matrix product in fp32, the best of all rounds."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    return 2 * side**3 / min(seconds(lambda: left @ right) for _ in range(rounds + 1))


def convolution_rate(channels: int, rounds: int) -> float:
    """FLOPs per second of a 3x3 convolution of 64x64 places in fp32, the best of all rounds."""
    values, kernel = torch.rand(1, channels, 64, 64), torch.rand(channels, channels, 3, 3)
    work = torch.no_grad()(lambda: torch.conv2d(values, kernel, padding=1))
    return flops_of(work) / min(seconds(work) for _ in range(rounds + 1))


def copy_rate(size_bytes: int, rounds: int) -> float:
    """Bytes read and written per second by a copy in memory, the best of all rounds."""
    source = torch.rand(size_bytes // 4)
    target = torch.empty_like(source)
    return 2 * size_bytes / min(seconds(lambda: target.copy_(source)) for _ in range(rounds + 1))


def updating(model: BaseModel) -> Callable[[], object]:
    """One update of all weights by UniTune."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.zeros(1, model.latent_channels, *model.latent_side)
    chosen = trainable(model.denoiser.unet, "full", generator)
    update = unitune.update_of(model, chosen, latent, model.encode_prompt("beikkpic"), LEARNING_RATE)

    def work() -> None:
        draws = draw(BATCH, latent, model.schedule.num_train_timesteps, generator, stratified=True)
        update(draws.timesteps, draws.noise)

    work()  # the first update also measures activations
    return work


def stepping(model: BaseModel) -> Callable[[], object]:
    """One denoising step of batch 2: prompt and empty prompt."""
    latents = torch.zeros(2, model.latent_channels, *model.latent_side)
    context = model.encode_prompt("a cat").expand(2, -1, -1)

    @torch.no_grad()
    def work() -> None:
        model.denoiser.unet(latents, torch.tensor([500, 500]), context)

    return work


if __name__ == "__main__":
    main()
