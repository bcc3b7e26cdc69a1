"""How to tune, and what is allowed."""

from dataclasses import dataclass

from unitune.base_model import Preset
from unitune.choices import MAX_BATCH, MAX_LEARNING_RATE, MAX_RARE_TOKENS_CHARACTERS, MAX_UPDATES, MODES
from unitune.errors import InvalidField


@dataclass(frozen=True)
class TuningConfig:
    """The fields of the request's message of the same name. Raises InvalidField for a value out of its range."""

    mode: str = "full"  # or "attn_out", "lora"
    updates: int = 128
    batch: int = 4  # noise draws of the picture in one update
    learning_rate: float = 1e-4
    rare_tokens: str = "beikkpic"
    seed: int = 0

    def __post_init__(self) -> None:
        length = len(self.rare_tokens)
        allowed = {
            "mode": (self.mode in MODES, f"it must be one of {', '.join(MODES)}"),
            "updates": (0 <= self.updates <= MAX_UPDATES, f"it must be 0 to {MAX_UPDATES}"),
            "batch": (1 <= self.batch <= MAX_BATCH, f"it must be 1 to {MAX_BATCH}"),
            "learning_rate": (
                0 < self.learning_rate <= MAX_LEARNING_RATE,
                f"it must be above 0 and at most {MAX_LEARNING_RATE}",
            ),
            "rare_tokens": (
                self.rare_tokens.strip() != "" and length <= MAX_RARE_TOKENS_CHARACTERS,
                f"it must be 1 to {MAX_RARE_TOKENS_CHARACTERS} characters, not all of them spaces",
            ),
        }
        for field, (is_allowed, remedy) in allowed.items():
            if not is_allowed:
                raise InvalidField(f"config.{field}", getattr(self, field), remedy)

    @classmethod
    def of(cls, preset: Preset) -> "TuningConfig":
        """A base model's own defaults. Raises as the class does."""
        return cls(preset.mode, preset.updates, preset.batch, preset.learning_rate, preset.rare_tokens)
