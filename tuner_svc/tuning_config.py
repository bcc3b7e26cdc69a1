"""How to tune, and what is allowed."""

from dataclasses import dataclass

from unitune.base_model import Preset
from unitune.choices import (
    MAX_BATCH,
    MAX_CLASS_IMAGES,
    MAX_GUIDANCE_SCALE,
    MAX_LEARNING_RATE,
    MAX_PRIOR_WEIGHT,
    MAX_PROMPT_CHARACTERS,
    MAX_RARE_TOKENS_CHARACTERS,
    MAX_STEPS,
    MAX_UPDATES,
    MAX_VECTORS,
    MAX_WORD_CHARACTERS,
    MODES,
    OPTIONS_OF_ALL,
    TUNING_METHODS,
    TUNING_OPTIONS,
)
from unitune.errors import InvalidField


@dataclass(frozen=True)
class TuningConfig:
    """The fields of the request's message of the same name. Raises InvalidField for a value out of its range.

    Fields that the method does not have (unitune.choices.TUNING_OPTIONS) are neither checked nor read.
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
    stop_loss_ratio: float = 0.0  # UniTune; 0 never stops early
    base_prompt: str = ""  # these three: null-text, as in the edits to come
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    super_resolution_updates: int = 0  # UniTune, Imagic: of the second stage, after the denoiser's

    def __post_init__(self) -> None:
        rate = f"it must be above 0 and at most {MAX_LEARNING_RATE}"
        allowed = {
            "method": (self.method in TUNING_METHODS, f"it must be one of {', '.join(TUNING_METHODS)}"),
            "mode": (self.mode in MODES, f"it must be one of {', '.join(MODES)}"),
            "updates": (0 <= self.updates <= MAX_UPDATES, f"it must be 0 to {MAX_UPDATES}"),
            "batch": (1 <= self.batch <= MAX_BATCH, f"it must be 1 to {MAX_BATCH}"),
            "learning_rate": (0 < self.learning_rate <= MAX_LEARNING_RATE, rate),
            "rare_tokens": _words(self.rare_tokens, MAX_RARE_TOKENS_CHARACTERS),
            "prompt": _words(self.prompt, MAX_PROMPT_CHARACTERS),
            "embedding_updates": (0 <= self.embedding_updates <= MAX_UPDATES, f"it must be 0 to {MAX_UPDATES}"),
            "embedding_learning_rate": (0 < self.embedding_learning_rate <= MAX_LEARNING_RATE, rate),
            "class_noun": _words(self.class_noun, MAX_WORD_CHARACTERS),
            "num_class_images": (
                0 <= self.num_class_images <= MAX_CLASS_IMAGES,
                f"it must be 0 to {MAX_CLASS_IMAGES}",
            ),
            "prior_weight": (0 <= self.prior_weight <= MAX_PRIOR_WEIGHT, f"it must be 0 to {MAX_PRIOR_WEIGHT}"),
            "initial_word": _words(self.initial_word, MAX_WORD_CHARACTERS),
            "stop_loss_ratio": (0 <= self.stop_loss_ratio <= 1, "it must be 0 to 1"),
            "base_prompt": _words(self.base_prompt, MAX_PROMPT_CHARACTERS),
            "num_inference_steps": (1 <= self.num_inference_steps <= MAX_STEPS, f"it must be 1 to {MAX_STEPS}"),
            "guidance_scale": (0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE, f"it must be 0 to {MAX_GUIDANCE_SCALE}"),
            "super_resolution_updates": (
                0 <= self.super_resolution_updates <= MAX_UPDATES,
                f"it must be 0 to {MAX_UPDATES}",
            ),
            "num_vectors": (1 <= self.num_vectors <= MAX_VECTORS, f"it must be 1 to {MAX_VECTORS}"),
        }
        for field, (is_allowed, remedy) in allowed.items():
            if not is_allowed and field in (*OPTIONS_OF_ALL, *TUNING_OPTIONS.get(self.method, ())):
                raise InvalidField(f"config.{field}", getattr(self, field), remedy)

    @classmethod
    def of(cls, preset: Preset, method: str = "unitune") -> "TuningConfig":
        """A base model's own defaults for a method; words that only a caller can give are blanks that pass, and what
        null-text has in common with an edit is left to that.

        Raises as the class does.
        """
        own = preset.of(method)
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


def _words(value: str, most: int) -> tuple[bool, str]:
    is_allowed = value.strip() != "" and len(value) <= most
    return is_allowed, f"it must be 1 to {most} characters, not all of them spaces"
