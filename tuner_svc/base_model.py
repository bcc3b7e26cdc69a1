"""The base model in memory: frozen, fp32, in parts, each of which the export writes as a graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.masking_utils import create_causal_mask
from transformers.utils import logging as transformers_logging

from tuner_svc.fast_lora import FastLora, read_fast_lora
from tuner_svc.fp32_copy import fp32_folder
from tuner_svc.model_folder import (
    SECOND_TEXT_ENCODER,
    SECOND_TOKENIZER,
    WEIGHTS,
    UnusableBaseModel,
    check_layout,
    digest,
    has_two_text_encoders,
    read_preset,
    read_schedule,
    read_text_settings,
    read_vocabulary,
    super_resolution_stages,
    variant_of,
)
from tuner_svc.super_resolver import SuperResolver, read_stages
from tuner_svc.warm_start import WarmStart, read_warm_start
from unitune.base_model import BaseModelSpec, NoiseSchedule, Preset, SuperResolutionSpec, TensorSpec
from unitune.diffusion.conditioning import NUM_SIZES, num_rows, size_ids
from unitune.diffusion.inpainting import num_channels
from unitune.reading import BEGIN_AND_END, Piece, Reader

FP32 = {"torch_dtype": torch.float32, "use_safetensors": True, "local_files_only": True}


class TextEncoder(nn.Module):
    """input_ids int64 (n, tokens), vectors (k, width) -> hidden states float32 (n, tokens, width).

    Ids below 0 stand for vectors: -1 for the first, -2 for the second (Textual Inversion, arXiv 2208.01618).
    """

    def __init__(self, clip: CLIPTextModel) -> None:
        super().__init__()
        self.clip = clip

    def vector_of(self, token: int) -> Tensor:
        """The vocabulary's embedding of a token, (width,)."""
        return self.clip.embeddings.token_embedding.weight[token]

    def no_vectors(self) -> Tensor:
        """The vectors of a prompt that has none: one row, which is not read."""
        return torch.zeros_like(self.vector_of(0)).unsqueeze(0)

    def forward(self, input_ids: Tensor, vectors: Tensor) -> Tensor:
        return self.clip.final_layer_norm(hidden_states(self.clip, input_ids, vectors)[-1])


def hidden_states(clip: CLIPTextModel, input_ids: Tensor, vectors: Tensor) -> list[Tensor]:
    """The embedded tokens and the output of each layer, (n, tokens, width)."""
    table = clip.embeddings.token_embedding.weight
    embedded = torch.where(
        (input_ids >= 0).unsqueeze(-1), table[input_ids.clamp(min=0)], vectors[(-1 - input_ids).clamp(min=0)]
    )
    # From here on as CLIPTextModel, which does not accept token embeddings.
    states = [clip.embeddings(inputs_embeds=embedded)]
    mask = create_causal_mask(config=clip.config, inputs_embeds=states[0], attention_mask=None, past_key_values=None)
    for layer in clip.encoder.layers:
        states.append(layer(states[-1], mask, is_causal=True))
    return states


class TextEncoderPair(nn.Module):
    """Two text encoders as one (SDXL, arXiv 2307.01952, section 2.1): input_ids int64 (n, 2, tokens), a row for each,
    and vectors (k, width), those of both side by side -> conditioning (n, tokens + 1, width).

    Both give their hidden states before the last layer, without the final norm. The last row is the second one's pooled
    embedding: the end token's, of its whole encoder.
    """

    def __init__(self, first: CLIPTextModel, second: CLIPTextModelWithProjection, skipped: int = 0) -> None:
        """`skipped` layers more are left out of the hidden states (clip skip), none of the pooled embedding."""
        super().__init__()
        self.first, self.second, self.projection = first, second.text_model, second.text_projection
        self.skipped = skipped

    def vector_of(self, token: int) -> Tensor:
        """Both vocabularies' embeddings of a token, (width,)."""
        return torch.cat([clip.embeddings.token_embedding.weight[token] for clip in (self.first, self.second)])

    def no_vectors(self) -> Tensor:
        """As TextEncoder's."""
        return torch.zeros_like(self.vector_of(0)).unsqueeze(0)

    def forward(self, input_ids: Tensor, vectors: Tensor) -> Tensor:
        ids, width = input_ids[:, 1], self.first.config.hidden_size
        states = [
            hidden_states(self.first, input_ids[:, 0], vectors[:, :width]),
            hidden_states(self.second, ids, vectors[:, width:]),
        ]
        context = torch.cat([each[-2 - self.skipped] for each in states], dim=-1)
        # As CLIPTextModel's pooler: published configurations have an end token of 2, and mean the largest id.
        end = self.second.config.eos_token_id
        scores = ids if end == 2 else (ids == end).long()
        last = self.second.final_layer_norm(states[1][-1])
        pooled = self.projection(last[torch.arange(ids.shape[0], device=ids.device), scores.argmax(dim=-1)])
        return torch.cat([context, pad(pooled, (0, context.shape[-1] - pooled.shape[-1])).unsqueeze(1)], dim=1)


class ImageEncoder(nn.Module):
    """image (n, 3, height, width) in [-1, 1] -> the posterior's mode, shifted and scaled (n, channels, h, w)."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> Tensor:
        config = self.autoencoder.config
        mode = self.autoencoder.encode(image).latent_dist.mode()
        return (mode - (config.shift_factor or 0.0)) * config.scaling_factor


class ImageDecoder(nn.Module):
    """A scaled latent -> image in about [-1, 1]."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent: Tensor) -> Tensor:
        config = self.autoencoder.config
        return self.autoencoder.decode(latent / config.scaling_factor + (config.shift_factor or 0.0)).sample


class DenoiserModule(nn.Module):
    """sample (n, channels, h, w), timestep int64 (n,), encoder_hidden_states (n, tokens, width) -> epsilon or v.

    The sample is the latents, of an inpainting model with the channels beside them (unitune.diffusion.inpainting). With
    a pooled embedding it also takes text_embeds (n, pooled_width) and time_ids (n, 6).
    """

    def __init__(self, unet: UNet2DConditionModel, pooled_width: int = 0, pixels: int = 0) -> None:
        """The last two are those of unitune.diffusion.conditioning.denoiser_inputs."""
        super().__init__()
        self.unet, self.pooled_width, self.pixels = unet, pooled_width, pixels

    def inputs(self, sample: Tensor, timestep: Tensor, context: Tensor) -> dict[str, Tensor]:
        """What unitune.diffusion.conditioning.denoiser_inputs gives, as tensors, differentiable in `context`."""
        if not self.pooled_width:
            return {"sample": sample, "timestep": timestep, "encoder_hidden_states": context}
        sizes = size_ids(sample.shape[2] * self.pixels, sample.shape[3] * self.pixels)
        # Filled on the device: a captured graph of updates must not copy from the host.
        columns = [torch.full((len(sample), 1), float(size), device=sample.device) for size in sizes]
        return {
            "sample": sample,
            "timestep": timestep,
            "encoder_hidden_states": context[:, :-1],
            "text_embeds": context[:, -1, : self.pooled_width],
            "time_ids": torch.cat(columns, dim=1),
        }

    def predicted(
        self, sample: Tensor, timestep: Tensor, context: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The output for conditioning (n, rows, width), with `weights` in place of the UNet's own tensors."""
        named = {f"unet.{name}": tensor for name, tensor in (weights or {}).items()}
        output: Tensor = functional_call(self, named, (), self.inputs(sample, timestep, context))
        return output

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        if text_embeds is None:
            return self.unet(sample, timestep, encoder_hidden_states).sample
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added).sample


@dataclass(frozen=True)
class BaseModel:
    """A base model. Its tensors are never written to: every tuning starts from them."""

    name: str
    digest: str
    device: torch.device
    tokenizer: CLIPTokenizer
    text_encoder: TextEncoder | TextEncoderPair
    image_encoder: ImageEncoder
    image_decoder: ImageDecoder
    denoiser: DenoiserModule
    schedule: NoiseSchedule
    preset: Preset
    vocabulary: tuple[str, ...]
    image_side: tuple[int, int]  # height, width in pixels
    latent_side: tuple[int, int]
    latent_channels: int
    context_tokens: int
    context_width: int
    size_step: int = 0  # as in BaseModelSpec
    is_inpainting: bool = False  # as in BaseModelSpec
    super_resolution: tuple[SuperResolver, ...] = ()  # the stages of a cascade
    second_tokenizer: CLIPTokenizer | None = None  # this and the next two: of a pair of text encoders
    pooled_width: int = 0
    empty_is_zeros: bool = False
    fast_lora: FastLora | None = None
    warm_start: WarmStart | None = None
    tuning_bytes: int = 0  # of memory, which a tuning may take beside the base model; 0: what is free
    # Padding and truncation are state of the tokenizer, which the checks of requests and a tuning use at the same time.
    _tokenizing: Lock = field(default_factory=Lock, repr=False, compare=False)
    _hidden: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)  # by latents' side

    def tensors(self) -> dict[str, Tensor]:
        """The denoiser's tensors by their name in the UNet, fp32."""
        return dict(self.denoiser.unet.state_dict())

    @property
    def conditioning(self) -> tuple[int, int]:
        """The shape of a prompt's conditioning: rows and width."""
        return num_rows(self.context_tokens, self.pooled_width), self.context_width

    @property
    def spec(self) -> BaseModelSpec:
        """Its specification for the sampler, before the export: without layouts, preview and files."""
        return BaseModelSpec(
            name=self.name,
            digest=self.digest,
            image_side=self.image_side,
            latent_side=self.latent_side,
            latent_channels=self.latent_channels,
            context_tokens=self.context_tokens,
            context_width=self.context_width,
            size_step=self.size_step,
            schedule=self.schedule,
            preset=self.preset,
            tensors={name: TensorSpec(tuple(tensor.shape)) for name, tensor in self.tensors().items()},
            vocabulary=self.vocabulary,
            super_resolution=tuple(stage.spec for stage in self.super_resolution),
            fast_lora=self.fast_lora.spec if self.fast_lora is not None else None,
            pooled_width=self.pooled_width,
            is_inpainting=self.is_inpainting,
            empty_is_zeros=self.empty_is_zeros,
        )

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        """One for each text encoder. They have one vocabulary."""
        return [self.tokenizer, *([] if self.second_tokenizer is None else [self.second_tokenizer])]

    def input_ids(self, prompts: list[str]) -> Tensor:
        """Token ids, int64 (n, tokens), or (n, 2, tokens) of two text encoders; padded, and cut if a prompt is too
        long. Thread-safe."""
        with self._tokenizing:
            ids = [
                tokenizer(
                    prompts, padding="max_length", truncation=True, max_length=self.context_tokens, return_tensors="pt"
                ).input_ids
                for tokenizer in self.tokenizers
            ]
        return (ids[0] if self.second_tokenizer is None else torch.stack(ids, dim=1)).to(self.device)

    def token_ids(self, text: str) -> list[int]:
        """The ids of a piece of text, without begin, end and padding. Thread-safe."""
        with self._tokenizing:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @property
    def reader(self) -> Reader:
        """Reads texts as the text encoder does. Thread-safe."""
        words = self.tokenizer

        def encode(text: str) -> list[Piece]:
            with self._tokenizing:
                found = words(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return [Piece(token, *at) for token, at in zip(found.input_ids, found.offset_mapping, strict=True)]

        empty = frozenset({words.bos_token_id, words.eos_token_id, words.unk_token_id})
        return Reader(encode, self.context_tokens - BEGIN_AND_END, empty, bool(self.vocabulary))

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Tensor:
        """Its conditioning, (1, rows, width)."""
        if self.empty_is_zeros and not prompt.strip():
            return torch.zeros((1, *self.conditioning), device=self.device)
        return self.text_encoder(self.input_ids([prompt]), self.text_encoder.no_vectors())

    @torch.no_grad()
    def encode_image(self, image: np.ndarray) -> Tensor:
        """The latents of model images, (n, channels, h, w): the posterior's mode, so deterministic."""
        return self.image_encoder(torch.from_numpy(image).to(self.device))

    def predicted(
        self, latents: Tensor, timesteps: Tensor, contexts: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The denoiser's output for latents (n, channels, h, w), with `weights` in place of its own tensors. From an
        inpainting model the whole picture is hidden: what it could see it would copy, and bind to no words."""
        if self.is_inpainting:
            hidden = self._all_hidden((latents.shape[2], latents.shape[3]))
            latents = torch.cat([latents, hidden.expand(len(latents), -1, -1, -1)], dim=1)
        return self.denoiser.predicted(latents, timesteps, contexts, weights)

    def _all_hidden(self, side: tuple[int, int]) -> Tensor:
        """The channels beside latents of `side`, (1, 1 + channels, h, w): a mask of ones, and a grey picture's latents.

        Kept, since the autoencoder has no part in an update.
        """
        if side not in self._hidden:
            height, width = (
                one * pixels // own for one, pixels, own in zip(side, self.image_side, self.latent_side, strict=True)
            )
            with torch.autocast(self.device.type, enabled=False):
                grey = self.encode_image(np.zeros((1, 3, height, width), dtype=np.float32))
            self._hidden[side] = torch.cat([torch.ones_like(grey[:, :1]), grey], dim=1)
        return self._hidden[side]


def load(folder: Path, device: str = "cpu", *, with_warm_start: bool = True) -> BaseModel:
    """Read a diffusers folder of a Stable Diffusion 1.x, 2.x or XL model into memory. Opens no connection.

    `with_warm_start` is false for what learns a new one, whatever the folder's own is worth.

    Raises UnusableBaseModel for anything else.
    """
    check_layout(folder)
    schedule, preset, vocabulary = read_schedule(folder), read_preset(folder), read_vocabulary(folder)
    try:
        with fp32_folder(folder) as readable:
            parts = _read_parts(readable)
        large = [_read_unet(folder, stage) for stage in super_resolution_stages(folder)]
    except Exception as error:  # each library has its own errors for damaged or wrong files
        complaint = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnusableBaseModel(f"{folder} cannot be loaded: {complaint}") from error
    _check_parts(folder, parts)
    unet, autoencoder, clip, tokenizer = parts.unet, parts.autoencoder, parts.clip, parts.tokenizer
    height, width = _pair(unet.config.sample_size)
    pixels = 2 ** (len(autoencoder.config.block_out_channels) - 1)  # of a side for each position of the latent's side
    image_side, step = (height * pixels, width * pixels), pixels * 2**unet.num_upsamplers
    stages = read_stages(folder, large, image_side, clip.config.hidden_size)
    for part in (unet, autoencoder, clip, parts.second_clip, *stages):
        if part is not None:
            part.requires_grad_(False).eval().to(device)
    settings = read_text_settings(folder)
    text_encoder: TextEncoder | TextEncoderPair = TextEncoder(clip)
    if parts.second_clip is not None:
        text_encoder = TextEncoderPair(clip, parts.second_clip, settings.skipped_layers)
    return BaseModel(
        name=name_of(folder),
        digest=digest(folder),
        device=torch.device(device),
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        image_encoder=ImageEncoder(autoencoder).eval(),
        image_decoder=ImageDecoder(autoencoder).eval(),
        denoiser=DenoiserModule(unet, parts.pooled_width, pixels).eval(),
        schedule=schedule,
        preset=preset,
        vocabulary=vocabulary,
        image_side=image_side,
        latent_side=(height, width),
        latent_channels=unet.config.out_channels,
        context_tokens=min(tokenizer.model_max_length, clip.config.max_position_embeddings),
        context_width=parts.context_width,
        size_step=_size_step(image_side, step, [stage.spec for stage in stages]),
        is_inpainting=unet.config.in_channels != unet.config.out_channels,
        super_resolution=stages,
        fast_lora=read_fast_lora(folder, unet),
        warm_start=read_warm_start(folder, unet) if with_warm_start else None,
        second_tokenizer=parts.second_tokenizer,
        pooled_width=parts.pooled_width,
        empty_is_zeros=settings.empty_is_zeros,
    )


def name_of(folder: Path) -> str:
    """What people call the base model in a folder. `model` is no useful name; the folder above has a better one."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == "model" else whole.name


class Parts(NamedTuple):
    """The parts of a folder, as their libraries load them; the second text encoder is SDXL's."""

    unet: UNet2DConditionModel
    autoencoder: AutoencoderKL
    clip: CLIPTextModel
    tokenizer: CLIPTokenizer
    second_clip: CLIPTextModelWithProjection | None = None
    second_tokenizer: CLIPTokenizer | None = None

    @property
    def context_width(self) -> int:
        """Of the text embedding: that of the text encoders side by side."""
        second = 0 if self.second_clip is None else int(self.second_clip.config.hidden_size)
        return int(self.clip.config.hidden_size) + second

    @property
    def pooled_width(self) -> int:
        """Of the pooled embedding; 0 without one."""
        return 0 if self.second_clip is None else int(self.second_clip.config.projection_dim)


def _read_parts(folder: Path) -> Parts:
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    parts = Parts(
        _read_unet(folder, "unet"),
        AutoencoderKL.from_pretrained(
            folder, subfolder="vae", low_cpu_mem_usage=False, variant=variant_of(folder, "vae"), **FP32
        ),
        CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", variant=variant_of(folder, "text_encoder"), **FP32
        ),
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
    )
    if not has_two_text_encoders(folder):
        return parts
    return parts._replace(
        second_clip=CLIPTextModelWithProjection.from_pretrained(
            folder, subfolder=SECOND_TEXT_ENCODER, variant=variant_of(folder, SECOND_TEXT_ENCODER), **FP32
        ),
        second_tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder=SECOND_TOKENIZER, local_files_only=True),
    )


def _read_unet(folder: Path, part: str) -> UNet2DConditionModel:
    variant = variant_of(folder, part) if part in WEIGHTS else None
    return UNet2DConditionModel.from_pretrained(
        folder, subfolder=part, variant=variant, low_cpu_mem_usage=False, **FP32
    )


def _check_parts(folder: Path, parts: Parts) -> None:
    """Raises UnusableBaseModel for parts that need more than a latent, a timestep and a text embedding, SDXL's pooled
    embedding and sizes, and what is shown to an inpainting model."""
    unet, autoencoder = parts.unet, parts.autoencoder
    channels, latent = unet.config.in_channels, autoencoder.config.latent_channels
    if unet.config.out_channels != latent or channels not in (latent, num_channels(latent)):
        raise UnusableBaseModel(
            f"{folder}: its unet takes {channels} channels and its vae makes {latent}; a text-to-image model is "
            f"needed, or one for inpainting, which takes {num_channels(latent)}"
        )
    if unet.config.cross_attention_dim != parts.context_width:
        raise UnusableBaseModel(
            f"{folder}: its unet wants text embeddings {unet.config.cross_attention_dim} wide "
            f"and its text_encoder makes {parts.context_width}"
        )
    if autoencoder.config.get("latents_mean") is not None:
        raise UnusableBaseModel(f"{folder}: its vae has latents_mean, which is not applied: give another vae")
    addition = None if parts.second_clip is None else "text_time"
    if unet.config.get("addition_embed_type") != addition:
        raise UnusableBaseModel(
            f"{folder}: its unet has addition_embed_type {unet.config.get('addition_embed_type')}, and with its text "
            f"encoders only {addition} can be tuned"
        )
    for name in ("class_embed_type", "encoder_hid_dim", "time_cond_proj_dim"):
        if unet.config.get(name) is not None:
            raise UnusableBaseModel(f"{folder}: its unet has {name} {unet.config[name]}, which cannot be tuned yet")
    if parts.second_clip is not None and parts.second_tokenizer is not None:
        _check_pair(folder, parts, parts.second_tokenizer)


def _check_pair(folder: Path, parts: Parts, second_tokenizer: CLIPTokenizer) -> None:
    """Raises UnusableBaseModel unless the two text encoders and the unet are as in SDXL's base model."""
    config, pooled = parts.unet.config, parts.pooled_width
    wanted, sizes = config.projection_class_embeddings_input_dim, NUM_SIZES * config.addition_time_embed_dim
    for is_right, complaint in (
        (wanted == pooled + sizes, f"its unet wants {wanted} values beside the timestep, not {pooled} + {sizes}"),
        (pooled <= parts.context_width, f"its pooled embedding, {pooled}, is wider than its text embeddings"),
        (parts.tokenizer.get_vocab() == second_tokenizer.get_vocab(), "its two tokenizers have two vocabularies"),
        (not super_resolution_stages(folder), "it has two text encoders and a super_resolution"),
    ):
        if not is_right:
            raise UnusableBaseModel(f"{folder}: {complaint}; only models like SDXL's base model can be tuned")


def _size_step(image_side: tuple[int, int], step: int, stages: Sequence[SuperResolutionSpec]) -> int:
    """The least multiple of `step` of which each super-resolution stage makes multiples of what its network needs:
    networks halve and double height and width, so that an odd one would not fit. 0 if the model's own sides are no
    multiples of it, or a stage takes its own alone."""
    if not all(stage.step for stage in stages):
        return 0
    for multiple in range(step, min(image_side) + 1, step):
        if all(
            multiple * side % (stage.block * stage.step * own) == 0
            for stage in stages
            for side, own in zip(stage.side, image_side, strict=True)
        ):
            return multiple if all(side % multiple == 0 for side in image_side) else 0
    return 0


def _pair(side: int | list[int]) -> tuple[int, int]:
    """Height and width; diffusers writes one number for a square."""
    return (side, side) if isinstance(side, int) else (side[0], side[1])
