"""Of which family a single file is, told by the names and shapes in its header; and the configurations of each family.

Names are those of the original implementations (CompVis latent-diffusion, Stability generative-models).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuner_svc.lora_file import OTHER_ADAPTERS
from tuner_svc.model_folder import SECOND_TEXT_ENCODER, UnusableBaseModel
from unitune.diffusion.inpainting import num_channels
from unitune.tensor_file import FileHeader

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
FIRST_OF_PAIR = "conditioner.embedders.0.transformer."  # SDXL's CLIP
SECOND_OF_PAIR = "conditioner.embedders.1.model."  # SDXL's OpenCLIP
EMA = "model_ema."

_FIRST = UNET + "input_blocks.0.0.weight"
_CROSS_ATTENTION = UNET + "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
_CLASS_EMBEDDING = UNET + "label_emb.0.0.weight"
_DEEPEST = (
    UNET + "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight"
)  # of SDXL; smaller models made of it lack it
LATENT_CHANNELS = 4
INPAINTING_CHANNELS = num_channels(LATENT_CHANNELS)
ACCEPTED = "a Stable Diffusion 1.x, 2.x or XL model that makes pictures from text, or one for inpainting"


@dataclass(frozen=True)
class Family:
    """What a file's header does not say: the parts' configurations, in the terms of diffusers and transformers."""

    name: str  # for people
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    second_text_encoder: Mapping[str, Any] | None = None  # of SDXL
    second_tokenizer: Mapping[str, Any] | None = None

    @property
    def text_encoders(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of the text encoders by part."""
        second = {} if self.second_text_encoder is None else {SECOND_TEXT_ENCODER: self.second_text_encoder}
        return {"text_encoder": self.text_encoder, **second}

    @property
    def is_for_inpainting(self) -> bool:
        """Whether the denoiser is shown a mask and the picture."""
        return self.unet.get("in_channels", LATENT_CHANNELS) != self.unet.get("out_channels", LATENT_CHANNELS)

    def for_inpainting(self) -> "Family":
        """The family's models for inpainting, which differ in the denoiser's input alone."""
        return replace(self, name=f"{self.name} for inpainting", unet={**self.unet, "in_channels": INPAINTING_CHANNELS})

    def without_last_layers(self, clip_skip: int) -> "Family":
        """The family whose text encoder ends earlier: `clip_skip` 1 is the whole encoder, 2 leaves its last layer out.

        The final norm stays, as in the programs that call it so. Two text encoders stay whole, since the pooled
        embedding is of all layers: their folder's index says where they end. Raises UnusableBaseModel beyond the layers
        there are.
        """
        # transformers leaves its default, 12, out of a configuration
        layers = min(int(config.get("num_hidden_layers", 12)) for config in self.text_encoders.values())
        if not 1 <= clip_skip <= layers:
            raise UnusableBaseModel(f"clip skip is {clip_skip}: give 1 to {layers}, the text encoder's layers")
        if self.second_text_encoder is not None:
            return self
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
SDXL = Family(
    name="Stable Diffusion XL",
    unet={
        **_UNET_CONFIG,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={**_VAE_CONFIG, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoder=SD_1.text_encoder,
    tokenizer=_TOKENIZER_CONFIG,
    scheduler={
        **_SCHEDULER_CONFIG,
        "_class_name": "EulerDiscreteScheduler",
        "timestep_spacing": "leading",
        "prediction_type": "epsilon",
    },
    second_text_encoder={
        **_TEXT_CONFIG,
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
    second_tokenizer={**_TOKENIZER_CONFIG, "pad_token": "!"},
)
SAMPLE_SIDE_OF_V = 96  # of latents of SD 2.x that predict v

# What a file may be instead: how it is told, and what people call it.
_OTHERS = (
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("double_blocks.", "a Flux model"),
    ("embedder.model.", "an unCLIP model"),
    ("edm_mean", "a Playground 2.5 model"),
    ("edm_vpred.sigma_max", "an EDM model"),
    *OTHER_ADAPTERS,
    ("control_model.", "a ControlNet"),
    (UNET + "time_embed.cond_proj.", "a full latent consistency model, whose network takes the guidance"),
)
_LORA_NAMES = ("lora_unet_", "lora_te", ".lora_A.", ".lora_down.", ".lora.down.", "_lora.down.", ".lora_linear_layer.")
_CHANNELS = {8: "an InstructPix2Pix model", 5: "a depth model", 7: "an upscaler"}
REFINER_WIDTH = 2560  # of what an SDXL refiner takes beside the timestep
_WIDTHS = {768: SD_1, 1024: SD_2, 2048: SDXL}


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


def family_of(header: FileHeader) -> Family:
    """The family of a whole model. Raises UnusableBaseModel naming what the file is instead, and what is accepted."""
    refuse_other_kinds(header)
    names = header.shapes

    channels = names[_FIRST][1]
    if channels not in (LATENT_CHANNELS, INPAINTING_CHANNELS):
        raise _refusal(header, _CHANNELS.get(channels, f"a model whose network takes {channels} channels"))
    width = next((names[_CROSS_ATTENTION.format(i)][1] for i in (1, 2, 4) if _CROSS_ATTENTION.format(i) in names), None)
    if names.get(_CLASS_EMBEDDING, (0, 0))[1] == REFINER_WIDTH:
        raise _refusal(header, "an SDXL refiner")
    if width not in _WIDTHS:
        raise _refusal(header, f"a model whose text embeddings are {width} wide")
    family = _WIDTHS[width]
    if (_CLASS_EMBEDDING in names) != (family is SDXL):
        raise _refusal(header, "a model of SDXL's kind whose network is another than SDXL's")
    if family is SDXL and _DEEPEST not in names:
        raise _refusal(header, "a smaller model made from SDXL, as SSD-1B, Vega and KOALA are")
    needed = (FIRST_OF_PAIR, SECOND_OF_PAIR) if family is SDXL else ((CLIP, OPEN_CLIP),)
    if not all(any(name.startswith(begin) for name in names) for begin in needed):
        raise _refusal(header, "a network without its text encoder", "give the file of the whole model")
    return family.for_inpainting() if channels == INPAINTING_CHANNELS else family


def _refusal(header: FileHeader, what: str, remedy: str = f"give {ACCEPTED}") -> UnusableBaseModel:
    return UnusableBaseModel(f"{header.path} is {what}: {remedy}")
