"""Train the autoencoder: 64x64 pictures to 16x16 latents of 8 channels and back.

    python -m stickerbook.train_autoencoder --updates 6000

It trains on random 32x32 crops, which works because all layers are convolutions, and in the last sixth on whole
pictures. It can be interrupted; the same command continues. On a GPU use only whole pictures and larger batches:
`--crop-share 0 --batch 512`.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from stickerbook.batches import batches, workers_for
from stickerbook.checkpoint import TrainingLog, TrainingRun
from stickerbook.pictures import pictures
from stickerbook.world import FIRST_HELD_OUT_SEED

LATENT_CHANNELS = 8
CROP = 32
KL_WEIGHT = 1e-4  # on the mean over latent entries; keeps the latents near the unit ball


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder of the stickerbook shape: 2.6 million parameters, no attention."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def edges(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal and vertical differences of neighbouring pixels."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def loss_of(autoencoder: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Absolute error of pixels and of edges, and the small KL term."""
    with torch.autocast(images.device.type, torch.bfloat16):
        posterior = autoencoder.encode(images).latent_dist
        decoded = autoencoder.decode(posterior.sample(generator)).sample
    decoded = decoded.float()
    loss = (decoded - images).abs().mean() + 2 * functional.mse_loss(decoded, images)
    for mine, theirs in zip(edges(decoded), edges(images), strict=True):
        loss = loss + 0.5 * (mine - theirs).abs().mean()
    return loss + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def drawn(batch: int, crops_until: int, update: int) -> torch.Tensor:
    """The pictures of one update, as many pixels in each: `batch` crops, after `crops_until` updates whole pictures."""
    rng = np.random.default_rng([1, update])
    whole = update >= crops_until
    scenes = batch // 4 if whole else batch // 2
    images = pictures(rng.integers(FIRST_HELD_OUT_SEED, size=scenes).tolist())
    if whole:
        return images
    corners = rng.integers(0, 64 - CROP + 1, size=(2 * scenes, 2))
    return torch.stack([images[i // 2, :, y : y + CROP, x : x + CROP] for i, (y, x) in enumerate(corners.tolist())])


@torch.no_grad()
def psnr_db(autoencoder: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over pictures of the PSNR of decode(encode(picture)), in dB; the posterior's mode is decoded."""
    decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    error = ((decoded - images) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/stickerbook"), help="folder of the checkpoints")
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16, help="crops of 32x32 in an update")
    parser.add_argument("--crop-share", type=float, default=5 / 6, help="of the updates; the others see whole pictures")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="begin with the weights of this base model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    autoencoder = new_autoencoder().to(options.device, memory_format=torch.channels_last)
    run = TrainingRun(
        options.work / "autoencoder.safetensors",
        autoencoder,
        learning_rate=options.learning_rate,
        updates=options.updates,
    )
    if run.resume():
        print(f"resumed at update {run.updates_done}", flush=True)
    elif options.start_from:
        run.start_from(
            AutoencoderKL.from_pretrained(
                options.start_from, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
            )
        )
    held_out = pictures(range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 48), "held_out").to(options.device)
    generator = torch.Generator(options.device)
    log = TrainingLog(run, batch=options.batch // 4, every=250)  # four crops have a scene's pixels
    make = partial(drawn, options.batch, int(options.updates * options.crop_share))
    for images in batches(make, range(run.updates_done, options.updates), workers_for(options.device)):
        generator.manual_seed(run.updates_done)
        loss = loss_of(autoencoder, images.to(options.device, memory_format=torch.channels_last), generator)
        run.update(loss)
        log.add(loss)
        if run.updates_done % 250 == 0:
            run.save()
            print(f"held-out PSNR {psnr_db(autoencoder, held_out):.2f} dB", flush=True)
    run.save()


if __name__ == "__main__":
    main()
