"""A tiny random SDXL model as a diffusers folder: two text encoders, a pooled embedding, three levels of a denoiser.

No two widths are the same, and the pooled embedding is narrower than its encoder, so that nothing passes because two
sizes happen to be equal.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.tiny_model import CONTEXT_TOKENS, IMAGE_SIDE, LATENT_CHANNELS, LATENT_SIDE, disturb, tiny_tokenizer

WIDTHS, POOLED_WIDTH, SIZE_WIDTH = (32, 48), 40, 8
PAD = "!"  # of the second tokenizer, as in SDXL


def tiny_sdxl(
    *,
    seed: int = 0,
    prediction_type: str = "epsilon",
    empty_is_zeros: bool = True,
    is_zero_snr: bool = False,
    in_channels: int = LATENT_CHANNELS,
) -> StableDiffusionXLPipeline:
    """The parts, random by seed."""
    torch.manual_seed(seed)
    first, second = tiny_tokenizer(), tiny_tokenizer()
    second.pad_token = PAD
    text_encoder = CLIPTextModel(_text_config(first, WIDTHS[0], layers=3, act="quick_gelu"))
    text_encoder_2 = CLIPTextModelWithProjection(_text_config(second, WIDTHS[1], layers=4, act="gelu"))
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=IMAGE_SIDE,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 24, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=sum(WIDTHS),
        attention_head_dim=(2, 3, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * SIZE_WIDTH,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=is_zero_snr,
    )
    for part in (text_encoder, text_encoder_2, autoencoder, unet):
        disturb(part)
    return StableDiffusionXLPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=empty_is_zeros,
    )


def save_tiny_sdxl(folder: Path, *, empty_is_zeros: bool = True) -> Path:
    """Write the tiny SDXL model in diffusers layout."""
    tiny_sdxl(empty_is_zeros=empty_is_zeros).save_pretrained(folder, safe_serialization=True)
    return folder


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        hidden_act=act,
        projection_dim=POOLED_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
