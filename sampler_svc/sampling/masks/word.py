"""Masks of what a text names, found in the base image before the first step, or in both pictures after the last.

What finds it is told elsewhere: the base model's own predictions (`sampler_svc/sampling/masks/contrast.py`), or a
CLIPSeg (`sampler_svc/sampling/clipseg.py`).
"""

import numpy as np

from sampler_svc.sampling.masks.inputs import FinishedEdit, MaskInputs
from unitune.images import Mask


def named(inputs: MaskInputs) -> Mask:
    """Where the base image shows it. Raises ValueError when nothing finds it, which the service refuses first."""
    if inputs.found is None:
        raise ValueError("the mask is of what a text names, and there is nothing that finds it")
    return inputs.found()


def named_in_either(finished: FinishedEdit) -> Mask:
    """Where base image or edit shows it: the union in Prompt-to-Prompt's local blend (arXiv 2208.01626, section 3.2).

    Raises ValueError as `named` does.
    """
    if finished.find is None:
        raise ValueError("the mask is of what a text names, and there is nothing that finds it")
    return np.maximum(finished.find(finished.base), finished.find(finished.edited))
