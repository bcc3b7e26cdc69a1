"""The settings of edits and tunings in force, as a server tells them.

Made of protos/unitune/v1 by `make protos`; change it there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How a tuning is made, every default filled in. `batch` counts noise draws of the picture in one update.

    Fields of other methods than `method` are empty or 0.
    """

    method: str = ""
    mode: str = ""
    updates: int = 0
    batch: int = 0
    learning_rate: float = 0.0
    rare_tokens: str = ""
    seed: int = 0
    prompt: str = ""
    class_noun: str = ""
    num_class_images: int = 0
    prior_weight: float = 0.0
    initial_word: str = ""
    num_vectors: int = 0
    embedding_updates: int = 0
    embedding_learning_rate: float = 0.0
    scale_learning_rate: bool = False
    stop_loss_ratio: float = 0.0
    base_prompt: str = ""
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    super_resolution_updates: int = 0
    super_resolution_2_updates: int = 0
    warm_start: bool = False

    @property
    def total_updates(self) -> int:
        """Optimizer updates of all phases together, as progress counts them."""
        runs = self.num_inference_steps if self.method == "null_text" else 1
        large = self.super_resolution_updates + self.super_resolution_2_updates
        return self.embedding_updates + self.updates * runs + large


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How an edit is sampled, every default filled in. `strength` is 0 to 1, a `guidance_scale` of 1 is none.

    What the edit does not read, such as an option of another method, is None; `strength` and `guidance_scale` are 0
    where `automatic` chooses them. `EditOptions` says what each one means.
    """

    method: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    strength: float
    interpolation: float
    negative_prompt: str = ""
    base_prompt: str = ""
    prompt_guidance_scale: float | None = None
    unconditional_model: str = ""
    base_mixture: float | None = None
    mask_source: str = ""
    mask_text: str = ""
    mask_blur: float | None = None
    only_masked: bool = False
    mask_padding: int | None = None
    mask_keeps: bool = False
    repeats: int | None = None
    inverted: bool = False
    eta: float | None = None
    guidance_sigma_low: float | None = None
    guidance_sigma_high: float | None = None
    automatic: bool = False
    clip_filter: bool = False
    resamples: int | None = None
    inversion: str = ""
    cross_replace: float | None = None
    self_replace: float | None = None
    alignment: str = ""
    word_weights: Mapping[str, float] = field(default_factory=dict)
    blend_words: tuple[str, ...] = ()
    super_resolution: bool = False
    super_resolution_noise_level: int | None = None
    super_resolution_steps: int | None = None
    super_resolution_guidance_scale: float | None = None
    dynamic_thresholding: bool | None = None
    super_resolution_width: int | None = None
    timestep_spacing: str = ""
    guidance_rescale: float | None = None
    second_pass: bool = False
    second_pass_strength: float | None = None
    second_pass_scale: float | None = None
    tcd_gamma: float | None = None
    fast_lora: bool = False
