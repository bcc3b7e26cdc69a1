"""How a method is run: everything that EditBench varies, with a name for tables and a key for the results on disk."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from unitune.base_model import Preset


@dataclass(frozen=True)
class Tuning:
    """How a picture is tuned on. `updates` of 0 is the base model as it is."""

    mode: str
    updates: int
    learning_rate: float


@dataclass(frozen=True)
class Setting:
    """One way to edit. Without a tuning it is SDEdit."""

    name: str
    tuning: Tuning | None
    strength: float
    guidance_scale: float
    interpolation: float
    num_inference_steps: int
    rare_tokens: bool  # whether they stand before the prompt

    def key(self, base_model: str, case: str) -> str:
        """Names the result of a case: everything that it follows from."""
        what = [base_model, case, {**asdict(self), "name": ""}]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]

    def at(self, name: str, **changes: object) -> "Setting":
        """The same with some values changed."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]


def unitune(preset: Preset) -> Setting:
    """The paper's method at the base model's preset."""
    tuning = Tuning(preset.mode, preset.updates, preset.learning_rate)
    return Setting(
        "unitune",
        tuning,
        preset.strength,
        preset.guidance_scale,
        preset.interpolation,
        preset.num_inference_steps,
        rare_tokens=True,
    )


def automatic_points(preset: Preset) -> list[Setting]:
    """The points that automatic settings try."""
    return [
        unitune(preset).at(f"point {strength:g}:{guidance:g}", strength=strength, guidance_scale=guidance)
        for strength, guidance in preset.automatic_points
    ]


def sdedit(preset: Preset) -> Setting:
    """The baseline at the preset's own strength and guidance for it, so that it is not beaten at UniTune's.

    They are its best on the development split (`python -m bench.editbench.sweep --sdedit`). No interpolation, as its
    paper has it.
    """
    own = preset.of("sdedit")
    return unitune(preset).at(
        "sdedit",
        tuning=None,
        strength=own.strength,
        guidance_scale=own.guidance_scale,
        interpolation=0.0,
        rare_tokens=False,
    )
