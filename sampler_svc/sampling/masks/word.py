"""Masks of what a text names, found in the base image before the first step, or in both pictures after the last.

The base model's own predictions find it (`sampler_svc/sampling/masks/contrast.py`), or a CLIPSeg
(`sampler_svc/sampling/clipseg.py`).
"""

import numpy as np

from sampler_svc.sampling.masks.inputs import FinishedEdit, MaskInputs
from unitune.images import Mask


def named(inputs: MaskInputs) -> Mask:
    """Where the base image shows it. Raises ValueError without a finder, which the service refuses first."""
    if inputs.found is None:
        raise ValueError("the mask is of named objects, and there is nothing that finds them")
    return inputs.found()


def named_in_either(finished: FinishedEdit) -> Mask:
    """Where the base image or the edit shows it: the union, as in Prompt-to-Prompt (arXiv 2208.01626, section 3.2).

    Raises ValueError as `named` does.
    """
    if finished.find is None:
        raise ValueError("the mask is of named objects, and there is nothing that finds them")
    return np.maximum(finished.find(finished.base), finished.find(finished.edited))
