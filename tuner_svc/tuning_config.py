"""How to tune, and what is allowed."""

from dataclasses import dataclass

from unitune.base_model import Preset
from unitune.options import TUNING, check_values, read_by


@dataclass(frozen=True)
class TuningConfig:
    """The fields of the request's message of the same name. Raises InvalidField for a value out of its range.

    Fields that the method does not have are neither checked nor read.
    """

    mode: str = "full"  # or "attn_out", "lora"
    updates: int = 128  # of null-text: for each step
    batch: int = 4  # noise draws of the picture in one update
    learning_rate: float = 1e-4
    rare_tokens: str = "beikkpic"  # of Textual Inversion: the placeholder
    seed: int = 0
    method: str = "unitune"
    prompt: str = ""  # these three: Imagic
    embedding_updates: int = 500
    embedding_learning_rate: float = 1e-3
    class_noun: str = ""  # these three: DreamBooth
    num_class_images: int = 200
    prior_weight: float = 1.0
    initial_word: str = ""  # these three: Textual Inversion
    num_vectors: int = 1
    scale_learning_rate: bool = True
    stop_loss_ratio: float = 0.0  # this and the next one: UniTune; 0 never stops early
    warm_start: bool = False  # begins at the base model's warm start (tuner_svc.warm_start)
    base_prompt: str = ""  # these three: null-text, as in the edits to come
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    super_resolution_updates: int = 0  # these two, UniTune, Imagic: of super-resolution's stages, after the denoiser's
    super_resolution_2_updates: int = 0

    def __post_init__(self) -> None:
        check_values(TUNING, {name: getattr(self, name) for name in read_by(TUNING, self.method)}, "config.")

    def stage_updates(self, stage: str) -> int:
        """Those of a super-resolution stage."""
        updates: int = getattr(self, f"{stage}_updates")
        return updates

    @classmethod
    def from_preset(cls, preset: Preset, method: str = "unitune") -> "TuningConfig":
        """A base model's own defaults for a method; words that only a caller knows are `_`, so that the check passes,
        and what null-text has in common with an edit is left to that.

        Raises as the class does.
        """
        own = preset.method_preset(method)
        return cls(
            mode=own.mode,
            updates=own.updates,
            batch=own.batch,
            learning_rate=own.learning_rate,
            rare_tokens=own.rare_tokens,
            method=method,
            prompt="_",
            embedding_updates=own.embedding_updates,
            embedding_learning_rate=own.embedding_learning_rate,
            class_noun="_",
            num_class_images=own.num_class_images,
            prior_weight=own.prior_weight,
            initial_word="_",
            num_vectors=own.num_vectors,
            scale_learning_rate=own.scale_learning_rate,
            base_prompt="_",
        )
