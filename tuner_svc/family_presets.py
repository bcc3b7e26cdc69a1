"""The defaults of a family of base models, where a folder's `unitune_preset.json` does not set them.

They are starting points, not measured by us: `unitune calibrate` finds those of one model on one's own photographs.

Stable Diffusion 1.x and 2.x have those of `unitune.base_model.Preset`: the paper's 128 updates of batch 4 at 1e-4, of
the attention's outputs, and 50 steps of DDIM at guidance 7.5, as the authors of Stable Diffusion sample. The port of
UniTune to Stable Diffusion 1.4 (github.com/xuduo35/UniTune) is near to them: 100 updates of 4 at 9e-5, of the
attention above all.
"""

from collections.abc import Mapping
from typing import Any

STABLE_DIFFUSION: Mapping[str, Any] = {}
# Of models with a closed vocabulary, which have only learnt whole objects: at more, tiles show small ones
# (docs/photographs.md has a sheet of stickerbook's).
CLOSED: Mapping[str, Any] = {"second_pass_strength": 0.1}
SDXL: Mapping[str, Any] = {
    "learning_rate": 5e-5,  # half the paper's. Nothing was published for SDXL
    "guidance_scale": 5.0,  # of StableDiffusionXLPipeline in diffusers
    "automatic_points": ((0.7, 5.0), (0.85, 5.0), (0.95, 7.5)),
}
