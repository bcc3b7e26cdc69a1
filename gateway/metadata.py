"""The metadata in a PNG: once in the form that other programs read, and once complete, so that it can be made again.

The contract says the form (EditedImage.png in edit.proto). Nothing may differ between two runs of the same request, and
nothing may be secret: there is no path, no tenant, no tuning's name and no time.
"""

import json
from collections.abc import Mapping
from typing import Any

from gateway.edit_plan import EditPlan
from gateway.names import parse
from unitune import __version__, png_text
from unitune.options import Flat, to_words
from unitune.v1.edit_pb2 import EditEvent
from unitune.v1.tuning_pb2 import Tuning

VERSION = 1
SOFTWARE = f"UniTune {__version__}"
SAMPLERS = {  # as web interfaces call them
    "ddim": "DDIM",
    "euler": "Euler",
    "dpmpp_2m": "DPM++ 2M",
    "lcm": "LCM",
    "euler_ancestral": "Euler a",
    "tcd": "TCD",
}
HASH_DIGITS = 10  # of a model, as they show it


class Metadata:
    """The metadata of one edit's pictures: a common part, and a part of each."""

    def __init__(self, plan: EditPlan, tuning: Tuning | None) -> None:
        """`tuning` is the one whose weights are used. Computes the digest of a picture in some milliseconds."""
        self._seeds = plan.seeds
        self._record: dict[str, Any] = {
            "version": VERSION,
            "software": SOFTWARE,
            "prompt": plan.prompt,
            "method": Flat(plan.config).method,
            "sampling": to_words(plan.config),
            "base_model": {"name": plan.base_model.name, "digest": plan.base_model.digest},
            "picture": {"sha256": plan.image_sha256},
        }
        if mask := plan.mask_sha256:
            self._record["mask"] = {"sha256": mask}
        if tuning is not None:
            self._record["tuning"] = {"key": tuning.key, "config": to_words(tuning.config)}
            if tuning.images:
                further = [parse(name, "images").id for name in tuning.images]
                self._record["tuning"]["further_pictures"] = further

    def put_into(self, image: EditEvent.EditedImage) -> None:
        """Write the metadata into a picture's file, or into its first piece."""
        record = self._record | {"seed": self._seeds[image.index]}
        if image.seed != record["seed"]:
            record["sampled_seed"] = image.seed
        if image.strength:
            record["chosen"] = {"strength": image.strength, "guidance_scale": image.guidance_scale}
        texts = {
            "parameters": _parameters(record, png_text.size_of(image.png)),
            "unitune": json.dumps(record, sort_keys=True, separators=(",", ":")),
        }
        told = png_text.with_texts(image.png, texts)
        image.size_bytes += len(told) - len(image.png)
        image.png = told


def _parameters(record: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The text in the form of `create_infotext` of AUTOMATIC1111's stable-diffusion-webui."""
    sampling = record["sampling"] | record.get("chosen", {})
    said = {
        "Steps": sampling["num_inference_steps"],
        "Sampler": SAMPLERS.get(sampling["scheduler"], sampling["scheduler"]),
        "CFG scale": f"{sampling.get('guidance_scale', 1):g}",
        "Seed": record.get("sampled_seed", record["seed"]),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": record["base_model"]["digest"][:HASH_DIGITS],
        "Model": record["base_model"]["name"],
        "Denoising strength": f"{sampling.get('strength', 1):g}",
        "Edit method": record["method"],
        "Version": record["software"],
    }
    negative = sampling.get("negative_prompt", "")
    lines = [record["prompt"], *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(str(value))}" for name, value in said.items())])


def _quoted(value: str) -> str:
    """The value, quoted if it has a character that separates values."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value
