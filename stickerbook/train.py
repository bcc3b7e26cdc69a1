"""Train the denoiser and its text encoder together, on cached latents.

    python -m stickerbook.train --updates 23000

It needs the checkpoint of `stickerbook.train_autoencoder`. It uses v-prediction, drops one caption in ten, and keeps a
moving average of the weights. It can be interrupted; the same command continues. Every 1000 updates it writes a sheet
of samples beside the checkpoint. On a GPU the denoiser's passes are CUDA graphs, and batches can be larger: `--batch
512 --learning-rate 1e-3 --save-every 2000`.
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stickerbook.batches import batches, workers_for
from stickerbook.captions import training_caption
from stickerbook.checkpoint import TrainingLog, TrainingRun
from stickerbook.latents import cached_latents, normalise
from stickerbook.pictures import pictures
from stickerbook.samples import contact_sheet, sample
from stickerbook.tokenizer import MAX_TOKENS, new_tokenizer
from stickerbook.train_autoencoder import LATENT_CHANNELS, new_autoencoder
from stickerbook.world import NONE, draw_scene

CONTEXT_WIDTH = 160
TOKEN_SLOTS = 512  # more than the tokenizer has, for a larger world with the same weights
PREVIEW_PROMPTS = (
    "a cat on a beach at sunset",
    "a dog in the snow by day",
    "a castle in a meadow by day",
    "a car in a city at night",
    "a penguin on the sea at sunset",
    "a fox in a forest by day",
    "a rocket on a beach by day",
    "a black and white picture of a panda in a city by day",
)


def new_scheduler() -> DDIMScheduler:
    """The noise schedule: cosine, like Imagen's base model, so that the paper's t0 values are valid."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # unused with this spacing, but diffusers requires it
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained denoiser: 8.8 million parameters, cross-attention at 16x16 and 8x8."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP-style text encoder: 3 layers, 160 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=TOKEN_SLOTS,
            hidden_size=CONTEXT_WIDTH,
            intermediate_size=4 * CONTEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def trained_autoencoder(work: Path, device: str, model: Path | None = None) -> AutoencoderKL:
    """The autoencoder of a finished training, with its moving average, and normalised latents; or else that of a base
    model that came of one.

    Raises FileNotFoundError if there is neither: before `stickerbook.train_autoencoder` has run.
    """
    if model and not (work / "autoencoder.safetensors").exists():
        saved = AutoencoderKL.from_pretrained(
            model, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
        )  # normalised when it was saved
        return saved.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    autoencoder = new_autoencoder()
    run = TrainingRun(work / "autoencoder.safetensors", autoencoder, learning_rate=0, updates=1)
    if not run.resume():
        raise FileNotFoundError(f"no autoencoder in {work}; run `python -m stickerbook.train_autoencoder` first")
    run.use_average()
    autoencoder.requires_grad_(False).eval()
    normalise(autoencoder, pictures(range(512)))
    return autoencoder.to(device, memory_format=torch.channels_last)


def trained_pair(folder: Path) -> torch.nn.ModuleDict:
    """The denoiser and the text encoder of a base model."""
    return torch.nn.ModuleDict(
        {
            "unet": UNet2DConditionModel.from_pretrained(
                folder, subfolder="unet", torch_dtype=torch.float32, use_safetensors=True
            ),
            "text_encoder": CLIPTextModel.from_pretrained(
                folder, subfolder="text_encoder", torch_dtype=torch.float32, use_safetensors=True
            ),
        }
    )


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, (n, 32)."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return encoded.input_ids


def split_by_objects(scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """The seeds below `scenes` of scenes with one object, and of scenes with two."""
    has_second = np.array([draw_scene(seed).second != NONE for seed in range(scenes)])
    return np.flatnonzero(~has_second), np.flatnonzero(has_second)


@cache
def tokenizer_of_process() -> CLIPTokenizer:
    """Made once in each process that makes batches."""
    return new_tokenizer()


def drawn(
    batch: int, second_share: float, singles: np.ndarray, pairs: np.ndarray, update: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scenes of one update and their captions: seeds (batch,), token ids (batch, 32)."""
    rng = np.random.default_rng([2, update])
    has_second = rng.random(batch) < second_share
    seeds = np.where(has_second, rng.choice(pairs, batch), rng.choice(singles, batch))
    captions = [training_caption(draw_scene(int(seed)), rng) for seed in seeds]
    return torch.from_numpy(seeds), tokens_of(tokenizer_of_process(), captions)


class CapturedDenoiser(torch.nn.Module):
    """The UNet as a function of tensors. On a CPU with bfloat16, an update is 1.6 times as fast as in float32."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        with torch.autocast(noisy.device.type, torch.bfloat16, cache_enabled=False):
            return self.unet(noisy, timesteps, context).sample


def graphed(unet: UNet2DConditionModel, batch: int) -> CapturedDenoiser:
    """The denoiser for this batch size; on a GPU its passes are CUDA graphs, since launching them takes longer."""
    denoiser, device = CapturedDenoiser(unet), unet.device
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # the text encoder is not in bfloat16
        noisy = torch.zeros(batch, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        context = torch.zeros(batch, MAX_TOKENS, CONTEXT_WIDTH, requires_grad=True, device=device)
        examples = (noisy.to(device), torch.zeros(batch, dtype=torch.int64, device=device), context)
        torch.cuda.make_graphed_callables(denoiser, examples)
    return denoiser


def loss_of(
    denoiser: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    context: torch.Tensor,
    latents: torch.Tensor,
    scheduler: DDIMScheduler,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of v, unweighted. Min-SNR weights (arXiv 2303.09556) nearly remove the noisy timesteps of a
    cosine schedule, in which the words decide what the picture shows."""
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    timesteps = torch.randint(1000, (len(latents),), generator=generator, device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    return functional.mse_loss(denoiser(noisy, timesteps, context).float(), velocity)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/stickerbook"), help="folder of the checkpoints")
    parser.add_argument("--updates", type=int, default=23_000)
    parser.add_argument("--batch", type=int, default=24, help="scenes in an update")
    parser.add_argument("--scenes", type=int, default=60_000, help="scenes in the latent cache")
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument(
        "--second-share", type=float, default=0.6, help="share of the scenes that show a second object (the world: 0.4)"
    )
    parser.add_argument("--save-every", type=int, default=250, metavar="UPDATES")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="begin with the weights of this base model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    tokenizer, scheduler, workers = new_tokenizer(), new_scheduler(), workers_for(options.device)
    autoencoder = trained_autoencoder(options.work, options.device, options.start_from)
    scenes = cached_latents(options.work / "latents.npy", autoencoder, options.scenes, options.device, workers)
    pair = torch.nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(tokenizer)}).to(options.device)
    unet, text_encoder = pair["unet"], pair["text_encoder"]
    run = TrainingRun(
        options.work / "denoiser.safetensors",
        pair,
        learning_rate=options.learning_rate,
        updates=options.updates,
        facts={"scenes": str(len(scenes)), "batch": str(options.batch)},
    )
    if run.resume():
        print(f"resumed at update {run.updates_done}", flush=True)
    elif options.start_from:
        run.start_from(trained_pair(options.start_from))
    make = partial(drawn, options.batch, options.second_share, *split_by_objects(len(scenes)))
    latents = torch.from_numpy(np.array(scenes)).to(options.device)
    denoiser = graphed(unet, options.batch)
    generator = torch.Generator(options.device)
    log = TrainingLog(run, batch=options.batch, every=100)
    for seeds, tokens in batches(make, range(run.updates_done, options.updates), workers):
        generator.manual_seed(run.updates_done)
        context = text_encoder(tokens.to(options.device)).last_hidden_state
        loss = loss_of(denoiser, context, latents[seeds.to(options.device)].float(), scheduler, generator)
        run.update(loss)
        log.add(loss)
        if run.updates_done % options.save_every == 0:
            run.save()
        if run.updates_done % 1000 == 0:
            images = sample(unet, text_encoder, tokenizer, autoencoder, scheduler, list(PREVIEW_PROMPTS), steps=20)
            Image.fromarray(contact_sheet(images, 8)).save(options.work / f"samples-{run.updates_done:06d}.png")
    run.save()


if __name__ == "__main__":
    main()
