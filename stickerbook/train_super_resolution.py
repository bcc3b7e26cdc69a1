"""Train the super-resolution model: from a 64 px picture and its caption to the same picture at 256 px.

    python -m stickerbook.train_super_resolution --updates 8000

It needs the base model's folder, for its autoencoder and text encoder. The
pictures to enlarge are mostly renders after the autoencoder's round trip, as soft as edits. Each is noised to a level
that the network is told (conditioning augmentation: Ho et al., arXiv 2106.15282; Imagen, arXiv 2205.11487, section
2.4), so that the network corrects their errors. It predicts the clean picture's difference to the upsampled one, like
SRDiff (arXiv 2104.14951): it is too narrow to pass on every value of every pixel, which v or the whole picture would
need. Its input is the noisy picture times its share of signal, so that pure noise is nearly zero. The training can be
interrupted; the same command continues. Every 500 updates it writes a sheet of held-out scenes beside the checkpoint.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from stickerbook.batches import batches, workers_for
from stickerbook.captions import caption, training_caption
from stickerbook.checkpoint import TrainingLog, TrainingRun
from stickerbook.pictures import as_images, as_pixels, pictures
from stickerbook.samples import contact_sheet
from stickerbook.tokenizer import new_tokenizer
from stickerbook.train import CONTEXT_WIDTH, new_scheduler, tokenizer_of_process, tokens_of
from stickerbook.world import FIRST_HELD_OUT_SEED, draw_scene

SIDE = 256
FACTOR = 4  # of each stage: 64 to 256, 256 to 1024
BLOCK = 4  # the network sees 4x4 pixels as one of 16 times the channels, and works at 64x64
MAX_LEVEL = 250  # of the augmentation; above it no detail is left
NOISY_SHARE = 0.5  # of the noisy pictures: nearly pure noise, where an edit's single step begins
PLAIN_SHARE = 0.25  # of the pictures to enlarge: renders without the autoencoder's round trip


def new_super_resolution() -> UNet2DConditionModel:
    """Super-resolution, untrained: 3.2 million parameters, cross-attention at 16x16, told the augmentation's level.

    At first it predicts no difference to the upsampled picture.
    """
    unet = UNet2DConditionModel(
        sample_size=SIDE // BLOCK,
        in_channels=2 * 3 * BLOCK**2,  # the noisy picture, then the upsampled one, noised
        out_channels=3 * BLOCK**2,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 64, 96),
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        class_embed_type="timestep",
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet


def super_resolution_unet(folder: Path) -> UNet2DConditionModel:
    """The super-resolution network of a base model."""
    return UNet2DConditionModel.from_pretrained(
        folder, subfolder="super_resolution", torch_dtype=torch.float32, use_safetensors=True
    )


def new_noise_schedule() -> DDIMScheduler:
    """The base model's noise schedule; network output plus upsampled picture is the clean picture."""
    return DDIMScheduler.from_config(new_scheduler().config, prediction_type="sample")


def as_blocks(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, side, side) to (n, 48, side / 4, side / 4)."""
    return functional.pixel_unshuffle(images, BLOCK)


def upsampled(images: torch.Tensor) -> torch.Tensor:
    """Pictures bilinearly at four times their size."""
    return functional.interpolate(images, scale_factor=FACTOR, mode="bilinear", align_corners=False)


def drawn_levels(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Augmentation levels as timesteps, half of them in the lowest quarter: int64, (count,)."""
    return torch.from_numpy((MAX_LEVEL * rng.random(count) ** 2).astype(np.int64))


def drawn_timesteps(count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Timesteps of the noisy pictures, a share of them of the noisiest tenth: int64, (count,)."""
    timesteps = torch.randint(1000, (count,), generator=generator, device=device)
    is_noisy = torch.rand(count, generator=generator, device=device) < NOISY_SHARE
    return torch.where(is_noisy, 999 - timesteps // 10, timesteps)


def drawn(batch: int, update: int) -> tuple[torch.Tensor, ...]:
    """What an update sees of `batch` / 2 scenes: token ids, pictures of 64 and of 256 px, which of the small
    ones are plain; and levels for all of the batch."""
    rng = np.random.default_rng([3, update])
    seeds = rng.integers(FIRST_HELD_OUT_SEED, size=batch // 2)
    captions = [training_caption(draw_scene(int(seed)), rng) for seed in seeds]
    is_plain = torch.from_numpy(rng.random(len(seeds)) < PLAIN_SHARE)
    small, large = pictures(seeds.tolist()), pictures(seeds.tolist(), side=SIDE)
    tokens = tokens_of(tokenizer_of_process(), captions)
    return tokens, small, large, is_plain, drawn_levels(rng, batch)


def loss_of(
    unet: UNet2DConditionModel,
    context: torch.Tensor,
    images: torch.Tensor,
    low: torch.Tensor,
    levels: torch.Tensor,
    scheduler: DDIMScheduler,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the picture, unweighted, since the noisy timesteps decide what it shows.

    `images` and the upsampled small ones, `low`, are (n, 3, side, side), `levels` timesteps (n,).
    """
    target, low = as_blocks(images), as_blocks(low)
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    augmentation = torch.randn(low.shape, generator=generator, device=low.device)
    timesteps = drawn_timesteps(len(target), generator, target.device)
    signal = scheduler.alphas_cumprod.to(target.device)[timesteps].sqrt()[:, None, None, None]
    seen = scheduler.add_noise(low, augmentation, levels)
    noisy = torch.cat([signal * scheduler.add_noise(target, noise, timesteps), seen], dim=1)
    noisy = noisy.to(memory_format=torch.channels_last)
    with torch.autocast(target.device.type, torch.bfloat16):
        difference = unet(noisy, timesteps, context, class_labels=levels).sample
    return functional.mse_loss(low + difference.float(), target)


@torch.no_grad()
def enlarge(
    unet: UNet2DConditionModel,
    context: torch.Tensor,
    small: torch.Tensor,
    scheduler: DDIMScheduler,
    *,
    noise_level: int = 50,
    steps: int = 1,
    seed: int = 0,
) -> torch.Tensor:
    """Pictures (n, 3, side, side) at four times their size by DDIM, without guidance; both in about [-1, 1]."""
    generator = torch.Generator("cpu").manual_seed(seed)
    low = as_blocks(upsampled(small))
    levels = torch.full((len(low),), noise_level)
    seen = scheduler.add_noise(low, torch.randn(low.shape, generator=generator).to(low.device), levels)
    latents = torch.randn(low.shape, generator=generator).to(low.device)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        beside = torch.cat([scheduler.alphas_cumprod[timestep].sqrt() * latents, seen], dim=1)
        difference = unet(beside, timestep, context, class_labels=levels.to(low.device)).sample
        latents = scheduler.step(low + difference, timestep, latents).prev_sample
    return functional.pixel_shuffle(latents, BLOCK)


def psnr_of(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Each picture's PSNR in dB, (n,)."""
    error = ((images.clamp(-1, 1) - truth) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()


def resized(small: torch.Tensor, side: int, kind: Literal["BICUBIC", "LANCZOS"]) -> torch.Tensor:
    """Enlargement by a filter, for comparison: square pictures at another side."""
    large = [Image.fromarray(picture).resize((side, side), Image.Resampling[kind]) for picture in as_pixels(small)]
    return as_images(np.stack([np.asarray(picture) for picture in large]))


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Pictures of 64 px after the autoencoder's round trip."""
    return autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample.clamp(-1, 1)


class HeldOut:
    """Held-out scenes, to watch how well they are enlarged."""

    def __init__(
        self, count: int, autoencoder: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
    ) -> None:
        seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + count)
        captions = [caption(draw_scene(seed, "held_out")) for seed in seeds]
        self.truth = pictures(seeds, "held_out", SIDE)
        self.small = reconstruct(autoencoder, pictures(seeds, "held_out"))
        self.bicubic, self.lanczos = (resized(self.small, SIDE, kind) for kind in ("BICUBIC", "LANCZOS"))
        with torch.no_grad():
            self.context = text_encoder(tokens_of(tokenizer, captions)).last_hidden_state

    def enlarged_by(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler) -> torch.Tensor:
        """All of them at 256 px, in about [-1, 1]."""
        return enlarge(unet, self.context.to(unet.device), self.small.to(unet.device), scheduler).cpu()

    def sheet(self, large: torch.Tensor, count: int = 6) -> np.ndarray:
        """Bicubic, enlarged and truth below one another; uint8."""
        rows = torch.cat([self.bicubic[:count], large[:count], self.truth[:count]])
        return contact_sheet(as_pixels(rows), count, enlarge=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/stickerbook"), help="folder of the checkpoints")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model", help="the base model's folder")
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=12, help="noisy pictures in an update, two of each scene")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="begin with that of this base model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    tokenizer, scheduler, device = new_tokenizer(), new_noise_schedule(), options.device
    autoencoder = AutoencoderKL.from_pretrained(
        options.model, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
    )
    text_encoder = CLIPTextModel.from_pretrained(
        options.model, subfolder="text_encoder", torch_dtype=torch.float32, use_safetensors=True
    )
    autoencoder.requires_grad_(False).eval()
    text_encoder.requires_grad_(False).eval()
    held_out = HeldOut(24, autoencoder, text_encoder, tokenizer)
    autoencoder.to(device, memory_format=torch.channels_last)
    text_encoder.to(device)
    workers = workers_for(device)
    unet = new_super_resolution().to(device, memory_format=torch.channels_last)
    path = options.work / "super_resolution.safetensors"
    run = TrainingRun(path, unet, learning_rate=options.learning_rate, updates=options.updates)
    if run.resume():
        print(f"resumed at update {run.updates_done}", flush=True)
    elif options.start_from:
        run.start_from(super_resolution_unet(options.start_from))
    print(f"held-out PSNR of bicubic enlargement {psnr_of(held_out.bicubic, held_out.truth).mean():.2f} dB", flush=True)
    generator = torch.Generator(device)
    log = TrainingLog(run, batch=options.batch, every=50)
    make = partial(drawn, options.batch)
    for batch in batches(make, range(run.updates_done, options.updates), workers):
        tokens, plain, images, is_plain, levels = (tensor.to(device) for tensor in batch)
        generator.manual_seed(run.updates_done)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            context = text_encoder(tokens).last_hidden_state.float()
            soft = reconstruct(autoencoder, plain).float()
        small = torch.where(is_plain[:, None, None, None], plain, soft)
        # Painting and decoding a scene cost as much as a pass over it, so each is used twice.
        context, images, small = (torch.cat([tensor, tensor]) for tensor in (context, images, small))
        loss = loss_of(unet, context, images, upsampled(small), levels, scheduler, generator)
        run.update(loss)
        log.add(loss)
        if run.updates_done % 250 == 0:
            run.save()
        if run.updates_done % 500 == 0:
            large = held_out.enlarged_by(unet, scheduler)
            print(f"held-out PSNR {psnr_of(large, held_out.truth).mean():.2f} dB", flush=True)
            Image.fromarray(held_out.sheet(large)).save(options.work / f"super-resolution-{run.updates_done:06d}.png")
    run.save()


if __name__ == "__main__":
    main()
