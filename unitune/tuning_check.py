"""Whether a tuning's config can be run on a base model, by what only the model and its tokenizer know.

The sampler answers before a tuning is made, since tuners come and go. The tuner that takes it asks the same again.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from unitune.base_model import SUPER_RESOLUTION_STAGES, Preset
from unitune.choices import NO_ATTENTION_OF_INPAINTING, NULL_TEXT
from unitune.errors import InvalidField
from unitune.reading import Reader, TuningTexts, check_tuning

BOUND_TO_WARM_START = ("mode", "rare_tokens")  # options that a warm start was learned with
NO_WARM_START = "leave it unset: this base model has no warm start, which `unitune calibrate` can learn"


def check_of_warm_start(name: str, value: str, own: str, prefix: str) -> None:
    """Raises InvalidField unless an option has the value that the warm start was learned with."""
    if value != own:
        remedy = f"with warm_start it must be {own}, which the base model's warm start is for"
        raise InvalidField(f"{prefix}{name}", value, remedy)


class TunedConfig(TuningTexts, Protocol):
    """The fields of a tuning's config that are read here; its message and the tuner's class both have them."""

    @property
    def initial_word(self) -> str: ...
    @property
    def num_inference_steps(self) -> int: ...
    @property
    def super_resolution_updates(self) -> int: ...
    @property
    def super_resolution_2_updates(self) -> int: ...


@dataclass(frozen=True)
class TunedModel:
    """What of a base model decides whether it can be tuned."""

    reader: Reader
    preset: Preset
    num_timesteps: int
    super_resolution: Collection[str]  # the names of the stages that it has
    is_inpainting: bool = False

    def check(self, config: TunedConfig) -> list[str]:
        """Warnings of what the text encoder does not read of the config's texts. Raises InvalidField for settings that
        do not fit. A distilled base model fits none."""
        if kind := self.preset.distilled:
            remedy = (
                f"choose sdedit, which does not tune: this base model was distilled to few steps ({kind}), and tuning "
                "would undo that. Or tune the model that it was distilled from"
            )
            raise InvalidField("config.method", config.method, remedy)
        for stage in SUPER_RESOLUTION_STAGES:
            updates = getattr(config, f"{stage}_updates")
            if updates > 0 and stage not in self.super_resolution:
                remedy = f"it must be 0: this base model has no {stage} folder"
                raise InvalidField(f"config.{stage}_updates", updates, remedy)
        if config.method == NULL_TEXT and self.is_inpainting:
            raise InvalidField("config.method", NULL_TEXT, NO_ATTENTION_OF_INPAINTING)
        if config.method == NULL_TEXT and config.num_inference_steps > self.num_timesteps:
            steps = config.num_inference_steps
            raise InvalidField("config.num_inference_steps", steps, f"it must be 1 to {self.num_timesteps}")
        if config.method == "textual_inversion":
            self._check_placeholder(config)
        return check_tuning(self.reader, config, "config")

    def _check_placeholder(self, config: TunedConfig) -> None:
        """A placeholder must be new to the vocabulary, and its vectors begin as those of one token."""
        placeholder = config.rare_tokens.strip()
        if len(placeholder.split()) > 1:
            raise InvalidField("config.rare_tokens", placeholder, "the placeholder must be one word")
        if self._is_token(placeholder):
            remedy = "the base model's vocabulary has this word already; choose another placeholder, such as beikkpic"
            raise InvalidField("config.rare_tokens", placeholder, remedy)
        if not self._is_token(config.initial_word):
            remedy = "it must be one token of the base model's vocabulary: choose a shorter or a more common word"
            raise InvalidField("config.initial_word", config.initial_word, remedy)

    def _is_token(self, word: str) -> bool:
        pieces = self.reader.encode(word.strip())
        return len(pieces) == 1 and pieces[0].token not in self.reader.empty
