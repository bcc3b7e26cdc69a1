"""Train the second stage of super-resolution: from a 256 px picture and its caption to the same picture at 1024 px.

    python -m stickerbook.train_super_resolution_2 --updates 3000

It is a network of convolutions, trained on crops and run on whole pictures, as Imagen's (arXiv 2205.11487, section 2.4
and appendix F.1). It needs the base model's folder, for its text encoder, and for its first stage, where that makes
256 px. The pictures to enlarge are as soft as the first stage's results: its own, or renders that are blurred at
random. All else is as in `stickerbook.train_super_resolution`: noise of a level that the network is told, and the clean
picture's difference to the upsampled one as its output. The training can be interrupted; the same command continues.
Every 500 updates it writes a sheet of held-out scenes beside the checkpoint.
"""

import argparse
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextModel

from stickerbook.batches import batches, workers_for
from stickerbook.captions import caption, training_caption
from stickerbook.checkpoint import TrainingLog, TrainingRun
from stickerbook.pictures import as_images, as_pixels, pictures
from stickerbook.render import render
from stickerbook.samples import contact_sheet
from stickerbook.tokenizer import new_tokenizer
from stickerbook.train import CONTEXT_WIDTH, tokenizer_of_process, tokens_of
from stickerbook.train_super_resolution import (
    BLOCK,
    FACTOR,
    drawn_levels,
    enlarge,
    loss_of,
    new_noise_schedule,
    psnr_of,
    reconstruct,
    resized,
    super_resolution_unet,
    upsampled,
)
from stickerbook.world import FIRST_HELD_OUT_SEED, Scene, draw_scene
from tuner_svc.channel_scale import with_channel_scales

FOLDER = "super_resolution_2"  # in the base model's
SMALL_SIDE, SIDE = 256, 1024
CROP = 256  # side in pixels of what an update sees of the 1024 px picture
CROPS = 4  # of each scene in an update
REUSED = 4  # updates that see crops of one scene, since painting it costs as much as an update
PLAIN_SHARE = 0.25  # of the pictures to enlarge: renders that are not blurred


def new_second_stage() -> UNet2DConditionModel:
    """The second stage, untrained: convolutions, told the augmentation's level and one embedding of the whole text.

    At first it predicts no difference to the upsampled picture.
    """
    unet = UNet2DConditionModel(
        sample_size=SIDE // BLOCK,
        in_channels=2 * 3 * BLOCK**2,  # the noisy picture, then the upsampled one, noised
        out_channels=3 * BLOCK**2,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        addition_embed_type="text",  # attention over the text alone, which gives one embedding for all places
        addition_embed_type_num_heads=4,
        norm_num_groups=16,
        class_embed_type="timestep",
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return with_channel_scales(unet)


def second_stage_unet(folder: Path) -> UNet2DConditionModel:
    """The second stage of a base model."""
    unet = UNet2DConditionModel.from_pretrained(
        folder, subfolder=FOLDER, torch_dtype=torch.float32, use_safetensors=True
    )
    return with_channel_scales(unet)


def blurred(small: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pictures of 256 px, less sharp by a random amount: made smaller and large again, and blurred."""
    soft, side = small, small.shape[-1]
    if rng.random() < 0.6:
        smaller = functional.interpolate(soft, size=int(side * rng.uniform(0.3, 1)), mode="bilinear", antialias=True)
        mode = "bicubic" if rng.random() < 0.5 else "bilinear"
        soft = functional.interpolate(smaller, size=side, mode=mode, align_corners=False).clamp(-1, 1)
    soft = _gaussian(soft, float(rng.uniform(0.1, 1.2)))
    share = rng.uniform(0.4, 1)  # a first stage restores some edges and not others
    return share * soft + (1 - share) * small


def _gaussian(images: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = 4
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, weights, groups=3)
    return functional.conv2d(across, weights.transpose(2, 3), groups=3)


@lru_cache(maxsize=4)
def _painted(seed: int) -> torch.Tensor:
    """A training scene at 1024 px, (1, 3, 1024, 1024)."""
    return pictures([seed], side=SIDE)


@cache
def _first_stage(model: Path) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel] | None:
    """What makes 256 px pictures of a base model's; None for one whose first stage makes another size."""
    unet = super_resolution_unet(model).requires_grad_(False).eval()
    if unet.config.sample_size * BLOCK != SMALL_SIDE:
        return None
    autoencoder = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True)
    return autoencoder.requires_grad_(False).eval(), unet, text_encoder_of(model)


@cache
def text_encoder_of(model: Path) -> CLIPTextModel:
    """The frozen text encoder of a base model."""
    encoder = CLIPTextModel.from_pretrained(
        model, subfolder="text_encoder", torch_dtype=torch.float32, use_safetensors=True
    )
    return encoder.requires_grad_(False).eval()


@torch.no_grad()
def first_stage_result(model: Path, scene: Scene, text: str, seed: int) -> torch.Tensor | None:
    """The scene at 256 px as the first stage makes it of the autoencoder's round trip, (1, 3, 256, 256)."""
    found = _first_stage(model)
    if found is None:
        return None
    autoencoder, unet, text_encoder = found
    context = text_encoder(tokens_of(tokenizer_of_process(), [text])).last_hidden_state
    small = reconstruct(autoencoder, as_images(render(scene)[None]))
    return enlarge(unet, context, small, new_noise_schedule(), seed=seed).clamp(-1, 1)


@lru_cache(maxsize=4)
def _first_stage_result_of(model: Path, seed: int) -> torch.Tensor | None:
    """Of a training scene."""
    scene = draw_scene(seed)
    return first_stage_result(model, scene, caption(scene), seed)


def drawn(batch: int, model: Path, update: int) -> tuple[torch.Tensor, ...]:
    """What an update sees: token ids, crops of the pictures and of the upsampled small ones, (batch, 3, 256, 256), and
    their noise levels. Half of the crops are those with most to restore of some."""
    rng = np.random.default_rng([4, update])
    seeds = np.random.default_rng([5, update // REUSED]).integers(FIRST_HELD_OUT_SEED, size=batch // CROPS)
    captions, crops, lows = [], [], []
    for seed in map(int, seeds):
        large, scene = _painted(seed), draw_scene(seed)
        text = training_caption(scene, rng)
        small = functional.avg_pool2d(large, FACTOR)
        soft = _first_stage_result_of(model, seed) if rng.random() < 0.5 else None
        if soft is None:
            soft = small if rng.random() < PLAIN_SHARE else blurred(small, rng)
        low = upsampled(soft)
        lacking = functional.avg_pool2d((large - low).square().mean(dim=1, keepdim=True), BLOCK)[0, 0]
        for number in range(CROPS):
            places = [_drawn_place(rng) for _ in range(4 if number % 2 else 1)]
            top, left = max(places, key=lambda place: float(_crop(lacking, place, BLOCK).sum()))
            crops.append(_crop(large, (top, left)))
            lows.append(_crop(low, (top, left)))
            captions.append(text)
    levels = drawn_levels(rng, batch)
    return tokens_of(tokenizer_of_process(), captions), torch.cat(crops), torch.cat(lows), levels


def _drawn_place(rng: np.random.Generator) -> tuple[int, int]:
    top, left = (BLOCK * int(start) for start in rng.integers((SIDE - CROP) // BLOCK + 1, size=2))
    return top, left


def _crop(images: torch.Tensor, place: tuple[int, int], each: int = 1) -> torch.Tensor:
    top, left = (start // each for start in place)
    return images[..., top : top + CROP // each, left : left + CROP // each]


class LargeHeldOut:
    """Held-out scenes, to watch how well they are enlarged: the first stage's results, or every other one blurred."""

    def __init__(self, count: int, model: Path) -> None:
        scenes = [draw_scene(seed, "held_out") for seed in range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + count)]
        captions = [caption(scene) for scene in scenes]
        self.truth = as_images(np.stack([render(scene, SIDE) for scene in scenes]))
        self.small = functional.avg_pool2d(self.truth, FACTOR)
        made = [first_stage_result(model, scene, text, 0) for scene, text in zip(scenes, captions, strict=True)]
        for index, one in enumerate(made):
            if one is not None:
                self.small[index] = one[0]
            elif index % 2:
                self.small[index] = _gaussian(self.small[index : index + 1], 0.7)[0]
        self.bicubic, self.lanczos = (resized(self.small, SIDE, kind) for kind in ("BICUBIC", "LANCZOS"))
        with torch.no_grad():
            tokens = tokens_of(new_tokenizer(), captions)
            self.context = text_encoder_of(model)(tokens).last_hidden_state

    def enlarged_by(
        self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, noise_level: int = 50, steps: int = 1
    ) -> torch.Tensor:
        """All of them at 1024 px, one after another, in about [-1, 1]."""
        pairs = zip(self.context.split(1), self.small.split(1), strict=True)
        large = [
            enlarge(unet, context, small, scheduler, noise_level=noise_level, steps=steps) for context, small in pairs
        ]
        return torch.cat(large)

    def sheet(self, large: torch.Tensor, count: int = 4, side: int = 320) -> np.ndarray:
        """The middle of bicubic, enlarged and truth below one another; uint8."""
        start = (SIDE - side) // 2
        rows = torch.cat([self.bicubic[:count], large[:count], self.truth[:count]])
        return contact_sheet(as_pixels(rows[..., start : start + side, start : start + side]), count, enlarge=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/stickerbook"), help="folder of the checkpoints")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model", help="the base model's folder")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=8, help=f"crops in an update, {CROPS} of each scene")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="begin with that of this base model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    scheduler, device = new_noise_schedule(), options.device
    held_out = LargeHeldOut(6, options.model)
    unet = new_second_stage().to(device, memory_format=torch.channels_last)
    run = TrainingRun(
        options.work / f"{FOLDER}.safetensors", unet, learning_rate=options.learning_rate, updates=options.updates
    )
    if run.resume():
        print(f"resumed at update {run.updates_done}", flush=True)
    elif options.start_from:
        run.start_from(second_stage_unet(options.start_from))
    for name, large in (("bicubic", held_out.bicubic), ("Lanczos", held_out.lanczos)):
        print(f"held-out PSNR of {name} enlargement {psnr_of(large, held_out.truth).mean():.2f} dB", flush=True)
    text_encoder = text_encoder_of(options.model)
    generator = torch.Generator(device)
    log = TrainingLog(run, batch=options.batch, every=25)
    make = partial(drawn, options.batch, options.model)
    for batch in batches(make, range(run.updates_done, options.updates), workers_for(device)):
        tokens, images, low, levels = batch
        generator.manual_seed(run.updates_done)
        with torch.no_grad():
            context = text_encoder(tokens).last_hidden_state.to(device)
        loss = loss_of(unet, context, images.to(device), low.to(device), levels.to(device), scheduler, generator)
        run.update(loss)
        log.add(loss)
        if run.updates_done % 50 == 0:
            run.save()
        if run.updates_done % 500 == 0:
            large = held_out.enlarged_by(unet, new_noise_schedule())
            print(f"held-out PSNR {psnr_of(large, held_out.truth).mean():.2f} dB", flush=True)
            Image.fromarray(held_out.sheet(large)).save(options.work / f"super-resolution-2-{run.updates_done:06d}.png")
    run.save()


if __name__ == "__main__":
    main()
