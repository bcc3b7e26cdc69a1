"""Models that were distilled to few steps: how they are recognised, and how they must be sampled.

A distilled model jumps to a picture where a plain one takes small steps. So it is sampled as it was distilled, without
guidance, and it is not tuned: the plain denoising loss would undo the distillation.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

UNGUIDED = {
    "guidance_scale": 1.0,  # off: other programs write 0 for it, which is the empty prompt alone here
    "strength": 0.75,
    "automatic_points": ((0.5, 1.0), (0.75, 1.0), (1.0, 1.0)),
}
# What each kind is sampled with, as its publishers say: the LCM-LoRA report (arXiv 2311.05556), and the model cards of
# SD-Turbo, SDXL-Lightning, Hyper-SD and TCD's LoRAs.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "lcm": {**UNGUIDED, "scheduler": "lcm", "num_inference_steps": 4},
    "turbo": {**UNGUIDED, "scheduler": "euler", "timestep_spacing": "trailing", "num_inference_steps": 4},
    "lightning": {**UNGUIDED, "scheduler": "euler", "timestep_spacing": "trailing", "num_inference_steps": 4},
    "hyper": {**UNGUIDED, "scheduler": "ddim", "timestep_spacing": "trailing", "num_inference_steps": 8},
    "tcd": {**UNGUIDED, "scheduler": "tcd", "num_inference_steps": 4},
}
# Of a kind, those that a LoRA of it needs where the model is not distilled itself; others stay the model's own.
LORA_SETTINGS = ("scheduler", "guidance_scale", "timestep_spacing")
# Of models that predict v and whose last timestep is pure noise (Lin et al., 2024, section 3.4); their authors guide
# with 4 to 6.
ZERO_SNR = {"guidance_scale": 5.0, "guidance_rescale": 0.7}

_LETTER = r"[a-zA-Z]"
_NAMES = {
    "lcm": re.compile(rf"(?<!{_LETTER})lcm(?!{_LETTER})", re.IGNORECASE),
    "tcd": re.compile(rf"(?<!{_LETTER})tcd(?!{_LETTER})", re.IGNORECASE),
    "turbo": re.compile(r"turbo", re.IGNORECASE),
    "lightning": re.compile(r"lightning", re.IGNORECASE),
    # "Hyper-SD15", "v51HyperVAE", but neither "hyperrealism" nor "Hyper-Realistic".
    "hyper": re.compile(r"hyper[-_ ]?sd|Hyper(?![a-z])(?![-_ ]?[rR]eal)|(?i:(?<![a-z])hyper[-_ ]?\d)"),
}
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?", re.IGNORECASE)
_KIND_OF_SCHEDULER = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}  # in a folder's configuration
_TITLES = ("modelspec.title", "modelspec.hash_title", "ss_output_name")  # of a file's metadata
_COMMON_NAMES = ("pytorch_lora_weights", "diffusion_pytorch_model", "model")  # of a file, whose folder has the model's


def settings_of(kind: str, *, is_pair: bool) -> Mapping[str, Any]:
    """The settings of a distilled model; `is_pair` of one with SDXL's two text encoders. Other kinds have none.

    SD-Turbo's published scheduler is Euler's, SDXL-Turbo's its ancestral form.
    """
    ancestral = {"scheduler": "euler_ancestral"} if kind == "turbo" and is_pair else {}
    return {**KINDS.get(kind, {}), **ancestral}


class Distilled(NamedTuple):
    """How a model was distilled, for how many steps, and who says so, in words for people."""

    kind: str
    steps: int
    source: str


def told_by_names(names: Iterable[tuple[str, str]]) -> Distilled | None:
    """The first of the names that says a kind, each with its source in words."""
    for name, source in names:
        for kind, pattern in _NAMES.items():
            if pattern.search(name):
                steps = _STEPS.search(name)
                return Distilled(kind, int(steps[1]) if steps else KINDS[kind]["num_inference_steps"], source)
    return None


def names_of_file(path: Path, metadata: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """What a weights file is called, by its metadata and on the disk, each with its source in words."""
    for title in _TITLES:
        yield metadata.get(title, ""), f"the {title} of {path.name}"
    yield path.stem, f"the name of {path.name}"
    if path.stem in _COMMON_NAMES:
        yield path.absolute().parent.name, f"the folder of {path.name}"


def told_by_configs(scheduler: Mapping[str, Any], unet: Mapping[str, Any]) -> Distilled | None:
    """The same of a diffusers folder: its scheduler, and the name that its network was saved from."""
    if (kind := _KIND_OF_SCHEDULER.get(str(scheduler.get("_class_name")))) is not None:
        return Distilled(kind, KINDS[kind]["num_inference_steps"], "its scheduler")
    return told_by_names([(str(unet.get("_name_or_path", "")), "the _name_or_path of its unet")])
