"""The specification of a base model for the sampler: `tuner_svc.export` writes it, and it is read without torch.

A graphs folder holds

    spec.json               this specification; null in its preset means infinity, which JSON lacks
    tokenizer.json          of the `tokenizers` library
    tokenizer_2.json        of the second of two text encoders, where the base model has two
    text_encoder.onnx (+ .data)   input_ids int64 (n, tokens), vectors float32 (k, width) -> hidden_states float32
                            (n, rows, width), the prompts' conditioning (unitune.diffusion.conditioning); ids -1,
                            -2, ... stand for the vectors; two text encoders have input_ids (n, 2, tokens), a row each
    image_encoder.onnx      image float32 (n, 3, height, width) in [-1, 1] -> latent (n, channels, h, w), scaled, mode
    image_decoder.onnx      latent, scaled -> image in about [-1, 1]
    clip_image.onnx, clip_text.onnx, clip_tokenizer.json   the CLIP filter, where the base model has one
    super_resolution.onnx, super_resolution_2.onnx   where the model is a cascade, a graph for each further stage:
                            sample (the noisy picture, then the upsampled one, noised; in blocks), timestep int64
                            (n, 2), its own and the upsampled one's noise level, encoder_hidden_states -> out, a
                            picture in blocks
    denoiser.onnx           sample, timestep int64 (n,), encoder_hidden_states -> out, the latents' shape; with a
                            pooled embedding also text_embeds (n, pooled_width) and time_ids (n, 6). The sample is the
                            latents, or of an inpainting model unitune.diffusion.inpainting.beside
    denoiser_controlled.onnx    the same, with control over its attention (unitune.attention)
    denoiser.safetensors, super_resolution.safetensors, super_resolution_2.safetensors    the weights of these, by
                            PyTorch name, fp32; also the graphs' external data, so that there is one copy of them
    fast_lora.safetensors   the changes of a LoRA that distils the denoiser to few steps, where the base model has one,
                            as unitune.codecs stores them (lora), and the probe's answers with and without them
    *.onnx.data             weights of the other graphs, where they are large

Batch sizes are dynamic, and so is k, 1 or more. Height and width of pictures and latents are, too: those of any working
size (unitune.working_size), unless `size_step` is 0. Every tensor that a tuning may change is an initializer of the
denoiser with the tensor's own name, stored externally. `layout` is the initializer's layout: the export may have
reshaped it.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unitune.diffusion.conditioning import num_rows
from unitune.diffusion.inpainting import num_channels

SCHEMA = 7
SPEC_FILE = "spec.json"
LARGE_BYTES = 64 << 20  # of weights. What takes seconds for a small model takes minutes for a large one
# The stages of a cascade after the base model, in their order: folders of a base model, begins of files and of fields.
SUPER_RESOLUTION_STAGES = ("super_resolution", "super_resolution_2")
CHECKED_BLOCKS = 64  # most rows and columns, in blocks, of what super-resolution of any size is checked with
SETTLED_NS = 2_000_000_000  # 2 s: the coarsest times of a file system

_digests: dict[tuple[int, int, int, int], str] = {}


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal. A file that this process has digested before is not read again, under another name
    neither, unless it was changed."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        # A change right after the digest could have the same time.
        is_old = time.time_ns() - status.st_mtime_ns > SETTLED_NS
        if is_old and identity in _digests:
            return _digests[identity]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if is_old:
            _digests[identity] = digest
        return digest


def is_large(size_bytes: int) -> bool:
    """Whether weights of this size are checked in the cheapest way, stored outside of graphs, and not copied."""
    return size_bytes > LARGE_BYTES


def check_side(own: tuple[int, int], step: int, size_bytes: int) -> tuple[int, int]:
    """Height and width of the latents that a network with weights of this size is checked with: its own, or, for a
    large one that takes all multiples of `step`, few of them. Every weight has its part in an answer of any size."""
    return (2 * step, 3 * step) if step and is_large(size_bytes) else own


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the denoiser: its shape in PyTorch, and its layout in the graph."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "same"  # "same", "transposed" (the last two axes swapped) or "reshaped" to `graph_shape`
    graph_shape: tuple[int, ...] = ()

    @property
    def shape_in_graph(self) -> tuple[int, ...]:
        """The shape of the graph's initializer that holds the tensor."""
        if self.layout == "transposed":
            return (*self.shape[:-2], self.shape[-1], self.shape[-2])
        return self.graph_shape if self.layout == "reshaped" else self.shape

    @property
    def size_bytes(self) -> int:
        """The tensor's bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_graph(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor in the layout of its initializer; a contiguous copy if it is transposed there."""
        view = self.view_in_graph(tensor)
        return np.ascontiguousarray(view) if self.layout == "transposed" else view

    def view_in_graph(self, tensor: np.ndarray) -> np.ndarray:
        """The same without a copy if the tensor is contiguous, perhaps with other strides."""
        if self.layout == "transposed":
            return tensor.swapaxes(-1, -2)
        return tensor.reshape(self.graph_shape) if self.layout == "reshaped" else tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """The training noise schedule, with the fields of diffusers' scheduler_config.json."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"  # or "v_prediction", or "sample": the clean latent
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    rescale_betas_zero_snr: bool = False


EVERY_STEP = {"guidance_sigma_low": 0.0, "guidance_sigma_high": math.inf}  # is guided

# Settings of the other methods' papers and ports, for base models whose preset does not set them (docs/methods/).
# Methods that tune sample from the noisiest level, and mix nothing of the base image back.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "sdedit": {"strength": 0.8, "interpolation": 0.0},
    "imagic": {
        "mode": "full", "updates": 1000, "batch": 1, "learning_rate": 2e-6, "strength": 1.0, "interpolation": 0.0,
    },
    "dreambooth": {
        "mode": "full", "updates": 800, "batch": 1, "learning_rate": 5e-6, "strength": 1.0, "interpolation": 0.0,
    },
    "textual_inversion": {
        "updates": 5000, "batch": 4, "learning_rate": 5e-3, "strength": 1.0, "interpolation": 0.0,
    },
    "prompt_to_prompt": {"scheduler": "ddim", "strength": 1.0, "interpolation": 0.0},
    "null_text": {"updates": 10, "learning_rate": 0.01},
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """The defaults of a base model for tuning and sampling; `unitune_preset.json` beside it overrides them.

    They are UniTune's. `method_preset` has those of another method; `methods` may override them under its name. The
    CLIP filter's settings are the same for all methods.
    """

    mode: str = "attn_out"
    updates: int = 128
    batch: int = 4
    learning_rate: float = 1e-4
    rare_tokens: str = "beikkpic"
    scheduler: str = "ddim"
    num_inference_steps: int = 50
    fast_steps: int = 0  # num_inference_steps of a fast edit by UniTune; 0: not known
    guidance_scale: float = 7.5
    strength: float = 0.85
    interpolation: float = 0.0
    guidance_sigma_low: float = 0.0  # steps are guided if their sigma is above this and at most the next
    guidance_sigma_high: float = math.inf
    timestep_spacing: str = ""  # of every run; empty: the noise schedule's own
    guidance_rescale: float = 0.0
    second_pass_strength: float = 0.2
    distilled: str = ""  # how the model was distilled to few steps, such as "turbo"; empty: it was not
    embedding_updates: int = 500  # these two and eta: Imagic
    embedding_learning_rate: float = 1e-3
    eta: float = 0.7
    num_class_images: int = 200  # these two: DreamBooth
    prior_weight: float = 1.0
    num_vectors: int = 1  # these two: Textual Inversion
    scale_learning_rate: bool = True
    cross_replace: float = 0.4  # these two: Prompt-to-Prompt, as in PIE-Bench's runs (arXiv 2310.01506)
    self_replace: float = 0.6
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def method_preset(self, method: str) -> "Preset":
        """The defaults of a method: this base model's own, else published ones, else UniTune's.

        The interval of guidance is only UniTune's.
        """
        others = {} if method == "unitune" else EVERY_STEP
        return replace(self, **{**others, **PUBLISHED.get(method, {}), **self.methods.get(method, {})})

    # Cosines of the CLIP filter (sampler_svc/sampling/clip_filter.py). The values are InstructPix2Pix's, for pictures
    # of Stable Diffusion.
    clip_filter_gain: float = 0.02  # how much more like the prompt an edit must be than the base image
    clip_filter_prompt: float = 0.2  # least likeness to the prompt
    clip_filter_kept: float = 0.6  # least likeness to the base image
    clip_filter_enough: float = (
        1.0  # enough likeness to the prompt: above it, more likeness to the base image is better
    )
    # Limits beyond which a picture is malformed, 0 to 1. They are loose, as no Stable Diffusion has been measured.
    clip_filter_round_trip: float = 0.15  # largest difference to the autoencoder's round trip
    clip_filter_detail: float = 0.0005  # least difference between a pixel and its neighbours
    clip_filter_saturated: float = 0.5  # largest share of burnt-out colour values, minus that of the base image
    # (strength, guidance_scale) that an automatic edit tries.
    automatic_points: tuple[tuple[float, float], ...] = ((0.7, 7.5), (0.85, 7.5), (0.95, 10.0))


@dataclass(frozen=True)
class SuperResolutionSpec:
    """One super-resolution stage of a cascade: unitune.diffusion.super_resolution."""

    name: str  # one of SUPER_RESOLUTION_STAGES
    side: tuple[int, int]  # height, width in pixels of what it makes
    block: int  # side of the square of pixels that the network takes as one
    schedule: NoiseSchedule
    tensors: Mapping[str, TensorSpec]
    # Whether the network takes the noisy picture times its share of signal, and predicts the clean picture's difference
    # to the upsampled one.
    is_preconditioned: bool = False
    image_side: tuple[int, int] = (1, 1)  # of the pictures that it enlarges to `side`: those of the stage before
    step: int = 0  # heights and widths in blocks are multiples of it; 0: only those of `side`
    is_local: bool = False  # it is convolutions alone, so that it makes of a part what it makes of it in the whole
    noise_level: int = 50  # this and the next two: defaults of an edit
    num_inference_steps: int = 1
    guidance_scale: float = 1.0

    def side_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what it makes of a picture of a working size."""
        height, width = (small * made // own for small, made, own in zip(size, self.side, self.image_side, strict=True))
        return height, width

    @property
    def weights(self) -> str:
        """The file of its weights."""
        return f"{self.name}.safetensors"

    @property
    def graph(self) -> str:
        """The file of its graph."""
        return f"{self.name}.onnx"

    @property
    def channels(self) -> int:
        """Of a picture in blocks."""
        return 3 * self.block**2

    @property
    def checked_side(self) -> tuple[int, int]:
        """Height and width, in blocks, of the pictures that it is checked with: its own, or those of a part of one. The
        answers to them lie in every file of weights that tunes it."""
        height, width = (side // self.block for side in self.side)
        most = CHECKED_BLOCKS // self.step * self.step if self.step else max(height, width)
        return min(height, most), min(width, most)


@dataclass(frozen=True)
class FastLoraSpec:
    """The fast LoRA: how it was distilled, and how an edit with it is sampled."""

    distilled: str  # such as "lcm"
    scheduler: str
    num_inference_steps: int
    guidance_scale: float = 1.0
    timestep_spacing: str = ""  # empty: the scheduler's own, or the noise schedule's
    weights: str = "fast_lora.safetensors"


@dataclass(frozen=True)
class BaseModelSpec:
    """Everything about a base model except its weights."""

    name: str
    digest: str  # sha256 over the configs and weights of text encoder, autoencoder, denoiser, tokenizer
    image_side: tuple[int, int]  # height, width in pixels
    latent_side: tuple[int, int]
    latent_channels: int
    context_tokens: int
    context_width: int
    schedule: NoiseSchedule
    preset: Preset
    tensors: Mapping[str, TensorSpec]  # all tensors of the denoiser
    size_step: int = 0  # height and width of working sizes are multiples of it, in pixels; 0: image_side alone
    vocabulary: tuple[str, ...] = ()  # every word that the model knows; empty means open
    latent_to_rgb: tuple[tuple[float, ...], ...] = ()  # (channels + 1, 3): linear preview, last row is the offset
    super_resolution: tuple[SuperResolutionSpec, ...] = ()  # the stages of a cascade, in their order
    fast_lora: FastLoraSpec | None = None
    pooled_width: int = 0  # of the text's pooled embedding; 0: the denoiser takes none, and no size
    is_inpainting: bool = False  # the denoiser is shown a mask and the picture (unitune.diffusion.inpainting)
    empty_is_zeros: bool = False  # the conditioning of an empty prompt is zeros, not the text encoders' answer
    base_weights: str = "denoiser.safetensors"  # the base model's denoiser tensors, by PyTorch name, fp32
    graphs: str = ""  # digest of what the graphs depend on: all that `digest` is of but the preset; empty: not known
    schema: int = SCHEMA
    files: Mapping[str, str] = field(default_factory=dict)  # file name to sha256

    @property
    def pixels_each(self) -> int:
        """Along each side, of one value of the latent."""
        return self.image_side[0] // self.latent_side[0]

    @property
    def input_channels(self) -> int:
        """Of the denoiser's sample."""
        return num_channels(self.latent_channels) if self.is_inpainting else self.latent_channels

    @property
    def latent_step(self) -> int:
        """The same of the latent's height and width."""
        return self.size_step * self.latent_side[0] // self.image_side[0]

    @property
    def conditioning(self) -> tuple[int, int]:
        """The shape of a prompt's conditioning: rows and width."""
        return num_rows(self.context_tokens, self.pooled_width), self.context_width

    def save(self, folder: Path) -> None:
        """Write spec.json into a folder. Raises ValueError for NaN, and for infinity outside the preset."""
        fields = asdict(self)
        fields["preset"] = _replaced(fields["preset"], math.inf, None)
        (folder / SPEC_FILE).write_text(json.dumps(fields, indent=1, sort_keys=True, allow_nan=False))

    @classmethod
    def load(cls, folder: Path) -> "BaseModelSpec":
        """Read spec.json of a folder. Raises FileNotFoundError, or ValueError for another schema or a damaged file."""
        try:
            return cls._parse((folder / SPEC_FILE).read_text(), folder)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{folder / SPEC_FILE} is damaged; export again") from error

    @classmethod
    def _parse(cls, text: str, folder: Path) -> "BaseModelSpec":
        fields: dict[str, Any] = json.loads(text)
        if fields.get("schema") != SCHEMA:
            raise ValueError(
                f"{folder / SPEC_FILE} has schema {fields.get('schema')}, this program reads {SCHEMA}; export again"
            )
        fields["schedule"] = NoiseSchedule(**fields["schedule"])
        preset = _replaced(fields["preset"], None, math.inf)
        points = tuple((strength, guidance) for strength, guidance in preset["automatic_points"])
        fields["preset"] = Preset(**{**preset, "automatic_points": points})
        fields["tensors"] = _tensors(fields["tensors"])
        for name in ("image_side", "latent_side", "vocabulary"):
            fields[name] = tuple(fields[name])
        for stage in fields["super_resolution"]:
            stage["side"], stage["schedule"] = tuple(stage["side"]), NoiseSchedule(**stage["schedule"])
            stage["image_side"] = tuple(stage["image_side"])
            stage["tensors"] = _tensors(stage["tensors"])
        fields["super_resolution"] = tuple(SuperResolutionSpec(**stage) for stage in fields["super_resolution"])
        if lora := fields.get("fast_lora"):
            fields["fast_lora"] = FastLoraSpec(**lora)
        fields["latent_to_rgb"] = tuple(tuple(row) for row in fields["latent_to_rgb"])
        return cls(**fields)


def _replaced(settings: Mapping[str, Any], old: float | None, new: float | None) -> dict[str, Any]:
    """A preset's settings, and those of its methods, with the value `old` replaced by `new`."""
    return {
        name: _replaced(value, old, new) if isinstance(value, Mapping) else new if value == old else value
        for name, value in settings.items()
    }


def _tensors(found: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(tuple(t["shape"]), t["dtype"], t["layout"], tuple(t["graph_shape"]))
        for name, t in found.items()
    }
