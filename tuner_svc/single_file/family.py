"""Of which family a single file is, told by the names and shapes in its header; and the configurations of each family.

Names are those of the original implementations (CompVis latent-diffusion, Stability generative-models).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.lora import OTHER_ADAPTERS
from tuner_svc.single_file.tensor_file import FileHeader

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
EMA = "model_ema."

_FIRST = UNET + "input_blocks.0.0.weight"
_CROSS_ATTENTION = UNET + "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
_CLASS_EMBEDDING = UNET + "label_emb.0.0.weight"
ACCEPTED = "a Stable Diffusion 1.x or 2.x model that makes pictures from text"


@dataclass(frozen=True)
class Family:
    """What a file's header does not say: the parts' configurations, in the terms of diffusers and transformers."""

    name: str  # for people
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    def without_last_layers(self, clip_skip: int) -> "Family":
        """The family whose text encoder ends earlier: `clip_skip` 1 is the whole encoder, 2 leaves its last layer out.

        The final norm stays, as in the programs that call it so. Raises UnusableBaseModel beyond the layers there are.
        """
        layers = int(self.text_encoder["num_hidden_layers"])
        if not 1 <= clip_skip <= layers:
            raise UnusableBaseModel(f"clip skip is {clip_skip}: give 1 to {layers}, the text encoder's layers")
        return replace(self, text_encoder={**self.text_encoder, "num_hidden_layers": layers - clip_skip + 1})


_VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_TEXT_CONFIG = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "layer_norm_eps": 1e-05,
}
_SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# https://huggingface.co/docs/diffusers: the configurations that the models were published with.
SD_1 = Family(
    name="Stable Diffusion 1.x",
    unet={**_UNET_CONFIG, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    vae=_VAE_CONFIG,
    text_encoder={
        **_TEXT_CONFIG,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    tokenizer=_TOKENIZER_CONFIG,
    scheduler={**_SCHEDULER_CONFIG, "prediction_type": "epsilon"},
)
SD_2 = Family(
    name="Stable Diffusion 2.x",
    unet={
        **_UNET_CONFIG,
        "sample_size": 64,  # of 512 px; the models that predict v are of 768 px
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    vae={**_VAE_CONFIG, "sample_size": 768},
    text_encoder={
        **_TEXT_CONFIG,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,  # of OpenCLIP's 24: the last one is not read
        "projection_dim": 512,
    },
    tokenizer={**_TOKENIZER_CONFIG, "pad_token": "!"},
    scheduler=_SCHEDULER_CONFIG,  # whose prediction type is the file's own
)
SAMPLE_SIDE_OF_V = 96  # of latents of SD 2.x that predict v

# What a file may be instead: how it is told, and what people call it.
_OTHERS = (
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("double_blocks.", "a Flux model"),
    ("conditioner.embedders.1.", "an SDXL model"),
    ("embedder.model.", "an unCLIP model"),
    ("edm_mean", "a Playground 2.5 model"),
    ("edm_vpred.sigma_max", "an EDM model"),
    *OTHER_ADAPTERS,
    ("control_model.", "a ControlNet"),
    (UNET + "time_embed.cond_proj.", "a full latent consistency model, whose network takes the guidance"),
)
_LORA_NAMES = ("lora_unet_", "lora_te", ".lora_A.", ".lora_down.", ".lora.down.", "_lora.down.", ".lora_linear_layer.")
_CHANNELS = {9: "a model for inpainting", 8: "an InstructPix2Pix model", 5: "a depth model", 7: "an upscaler"}
_WIDTHS = {768: SD_1, 1024: SD_2}


def refuse_other_kinds(header: FileHeader) -> None:
    """Refuse what is no whole Stable Diffusion model of any size. Raises UnusableBaseModel naming what it is."""
    names = header.shapes

    for part, what in _OTHERS:
        if any(part in name for name in names):
            raise _refusal(header, what)
    if any(part in name for name in names for part in _LORA_NAMES):
        raise _refusal(header, "a LoRA", "give it as --lora beside a model")
    if _FIRST not in names:
        if any(name.startswith((VAE, "decoder.")) for name in names):
            raise _refusal(header, "an autoencoder alone", "give it as --vae beside a model")
        raise _refusal(header, "no Stable Diffusion model")
    if _CLASS_EMBEDDING in names:
        raise _refusal(header, "a model of SDXL's kind")


def family_of(header: FileHeader) -> Family:
    """The family of a whole model. Raises UnusableBaseModel naming what the file is instead, and what is accepted."""
    refuse_other_kinds(header)
    names = header.shapes

    channels = names[_FIRST][1]
    if channels != 4:
        raise _refusal(header, _CHANNELS.get(channels, f"a model whose network takes {channels} channels"))
    width = next((names[_CROSS_ATTENTION.format(i)][1] for i in (1, 2) if _CROSS_ATTENTION.format(i) in names), None)
    if width not in _WIDTHS:
        raise _refusal(header, f"a model whose text embeddings are {width} wide")
    family = _WIDTHS[width]
    if not any(name.startswith((CLIP, OPEN_CLIP)) for name in names):
        raise _refusal(header, "a network without its text encoder", "give the file of the whole model")
    return family


def _refusal(header: FileHeader, what: str, remedy: str = f"give {ACCEPTED}") -> UnusableBaseModel:
    return UnusableBaseModel(f"{header.path} is {what}: {remedy}")
