"""How a method is run: everything that EditBench varies, with a name for tables and a key for the results on disk."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.editbench.cases import Case
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.warm_start import read_settings
from unitune.base_model import Preset
from unitune.choices import BOUND_TO_NULL_TEXT, EDIT_METHODS, PROMPT_TO_PROMPT, TUNING_METHODS
from unitune.prompts import with_rare_tokens, with_words_before, with_words_instead

PER_PROMPT = ("imagic",)  # methods whose tuning is for one prompt; the others tune once for all edits of a picture
GUIDED_AT_EVERY_STEP = {"guidance_sigma_low": None, "guidance_sigma_high": None}


@dataclass(frozen=True)
class Setting:
    """One way to edit. `tuning` lacks the words that follow from the case; without a tuning it is the base model."""

    name: str
    method: str
    tuning: TuningConfig | None
    strength: float
    guidance_scale: float
    interpolation: float
    scheduler: str
    num_inference_steps: int
    rare_tokens: str  # that stand before the prompt; empty for none
    eta: float  # Imagic's; others do not read it
    guidance_sigma_low: float | None = None  # steps of a sigma up to it are not guided; None for none such
    guidance_sigma_high: float | None = None  # nor are steps of a larger one; None for none such
    cross_replace: float | None = None  # these two: Prompt-to-Prompt's; the others have none
    self_replace: float | None = None
    codec: str | None = None  # of the stored weights; None for the tuner's default

    def key(self, base_model: str, case: str) -> str:
        """Names the result of a case: everything that it follows from."""
        own = {name: value for name, value in asdict(self).items() if name == "tuning" or value is not None}
        if self.tuning is not None:  # what no method here reads; results of before it was there keep their names
            own["tuning"] = {name: value for name, value in own["tuning"].items() if name not in BOUND_TO_NULL_TEXT}
            if not self.tuning.warm_start:
                del own["tuning"]["warm_start"]
        what = [base_model, case, {**own, "name": ""}]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]

    def at(self, name: str, **changes: object) -> "Setting":
        """The same with some values changed."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]

    def tuning_of(self, case: Case) -> TuningConfig | None:
        """The tuning with this case's words: its prompt for Imagic, the base image's object for DreamBooth and Textual
        Inversion. Equal for all cases that share a tuning."""
        if self.tuning is None:
            return None
        words = {
            "imagic": {"prompt": case.prompt},
            "dreambooth": {"class_noun": case.scene.object},
            "textual_inversion": {"initial_word": case.scene.object},
        }
        return replace(self.tuning, **words.get(self.method, {}))  # type: ignore[arg-type]

    def prompt_of(self, case: Case) -> str:
        """The prompt as the method needs it, with its words where a comparison (gateway/compare.py) puts them.

        An edit that puts another object in the subject's place does not mention the subject, and is asked for in plain
        words.
        """
        bound = self.tuning.rare_tokens if self.tuning is not None else ""
        if self.method == "dreambooth":
            return with_words_before(case.prompt, bound, case.scene.object)
        if self.method == "textual_inversion":
            return with_words_instead(case.prompt, bound, case.scene.object)
        return with_rare_tokens(self.rare_tokens, case.prompt)


def setting_of(preset: Preset, method: str) -> Setting:
    """A method at the base model's own settings for it, so that no rival is beaten at UniTune's.

    Raises ValueError for a method that is none.
    """
    if method not in EDIT_METHODS:
        raise ValueError(f"{method!r} is not a method; known are {', '.join(EDIT_METHODS)}")
    own = preset.method_preset(method)
    return Setting(
        name=method,
        method=method,
        tuning=TuningConfig.from_preset(preset, method) if method in TUNING_METHODS else None,
        strength=own.strength,
        guidance_scale=own.guidance_scale,
        interpolation=own.interpolation,
        scheduler=own.scheduler,
        num_inference_steps=own.num_inference_steps,
        rare_tokens=own.rare_tokens if method == "unitune" else "",
        eta=own.eta,
        guidance_sigma_low=own.guidance_sigma_low or None,
        guidance_sigma_high=own.guidance_sigma_high if math.isfinite(own.guidance_sigma_high) else None,
        cross_replace=own.cross_replace if method == PROMPT_TO_PROMPT else None,
        self_replace=own.self_replace if method == PROMPT_TO_PROMPT else None,
    )


def automatic_points(preset: Preset) -> list[Setting]:
    """The points that automatic settings try, guided at every step."""
    return [
        setting_of(preset, "unitune").at(
            f"point {strength:g}:{guidance:g}",
            strength=strength,
            guidance_scale=guidance,
            **GUIDED_AT_EVERY_STEP,
        )
        for strength, guidance in preset.automatic_points
    ]


def from_warm_start(setting: Setting, base_model: Path) -> Setting:
    """The same from the base model's warm start, with the updates of that. Raises ValueError where there is none."""
    found = read_settings(base_model)
    if found is None or setting.tuning is None:
        raise ValueError(f"{base_model} has no warm start, or {setting.name} does not tune")
    return setting.at("warm_start", tuning=replace(setting.tuning, **found.defaults()))
