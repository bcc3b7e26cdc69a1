"""A tiny random base model as a diffusers folder: all the parts of Stable Diffusion 1.x, seconds on one core.

Its picture side (48) and latent side (12) are neither those of stickerbook nor of Stable Diffusion, and every
tensor is random, norms and biases too, so that nothing passes because two tensors happen to be equal.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE_SIDE, LATENT_SIDE, LATENT_CHANNELS = 48, 12, 4
INPAINTING_CHANNELS = LATENT_CHANNELS + 1 + LATENT_CHANNELS
CONTEXT_TOKENS, CONTEXT_WIDTH = 16, 32
WORDS = ("a", "at", "beach", "by", "cat", "cow", "day", "dog", "drawing", "in", "night", "on", "snow", "sunset", "the")
START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows `WORDS` and every byte."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[tuple[str, str], str] = {}
    for word in sorted(WORDS, key=len, reverse=True):  # a short word's merge must not break up a longer word
        joined = word[0]
        for letter in [*word[1:-1], f"{word[-1]}</w>"] if len(word) > 1 else []:
            merges.setdefault((joined, letter), joined + letter)
            joined += letter
    vocabulary += [*merges.values(), START, END]
    return CLIPTokenizer(
        {piece: index for index, piece in enumerate(vocabulary)}, list(merges), model_max_length=CONTEXT_TOKENS
    )


def tiny_pipeline(
    *, seed: int = 0, prediction_type: str = "epsilon", in_channels: int = LATENT_CHANNELS
) -> StableDiffusionPipeline:
    """The parts, random by seed. 0.55 million parameters in the denoiser."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=CONTEXT_WIDTH,
            intermediate_size=2 * CONTEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_SIDE,
        scaling_factor=0.5,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 48),
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    for part in (text_encoder, autoencoder, unet):
        disturb(part)
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def disturb(part: torch.nn.Module) -> None:
    """Add noise to every norm and bias, in place; a fresh layer has ones and zeros there."""
    for parameter in part.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


def save_tiny_super_resolution(folder: Path, *, seed: int = 0, is_preconditioned: bool = True) -> None:
    """Write the first stage of tiny super-resolution into a base model's folder: 96x96 pictures in blocks of 4x4,
    random by seed."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=2 * IMAGE_SIDE // 4,
        in_channels=2 * 48,
        out_channels=48,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 24),
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        class_embed_type="timestep",
    )
    disturb(unet)
    _save_stage(unet, folder / "super_resolution", is_preconditioned=is_preconditioned)


def save_tiny_second_stage(folder: Path, *, seed: int = 0) -> None:
    """Write the second stage, beside the first one: 192x192 pictures in blocks of 4x4, by convolutions alone."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4 * IMAGE_SIDE // 4,
        in_channels=2 * 48,
        out_channels=48,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 24),
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        norm_num_groups=8,
        class_embed_type="timestep",
    )
    disturb(unet)
    _save_stage(unet, folder / "super_resolution_2", is_preconditioned=True, has_channel_scales=True)


def _save_stage(unet: UNet2DConditionModel, folder: Path, **facts: bool) -> None:
    unet.save_pretrained(folder, safe_serialization=True)
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.register_to_config(**facts)
    scheduler.save_pretrained(folder)


def save_tiny_model(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write the tiny model in diffusers layout."""
    tiny_pipeline(seed=seed, prediction_type=prediction_type).save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_inpainting(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model for inpainting in diffusers layout: latents, a mask and the masked picture's latents go in.
    All else is the tiny model's own."""
    parts = tiny_pipeline(seed=seed).components
    parts["unet"] = tiny_pipeline(seed=seed, in_channels=INPAINTING_CHANNELS).unet
    StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder
