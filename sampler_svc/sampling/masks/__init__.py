"""Edit masks: where an edit may change the picture. One module per source, and the table of them.

A mask is float32 (height, width) over the base image: 1 is edited, 0 is kept. A source either knows it before the first
step, so that every step keeps what is outside, or estimates it from the finished edit.
"""

from collections.abc import Callable, Mapping

from sampler_svc.sampling.masks.diffedit import differing_predictions
from sampler_svc.sampling.masks.difference import changed
from sampler_svc.sampling.masks.given import given_mask
from sampler_svc.sampling.masks.inputs import Find, FinishedEdit, MaskInputs
from sampler_svc.sampling.masks.word import named, named_in_either
from unitune.images import Mask

BEFORE: Mapping[str, Callable[[MaskInputs], Mask]] = {
    "given": given_mask,
    "diffedit": differing_predictions,
    "word": named,
}
AFTER: Mapping[str, Callable[[FinishedEdit], Mask]] = {
    "difference": lambda finished: changed(finished.edited, finished.base),
    "attention": named_in_either,
}

__all__ = ["AFTER", "BEFORE", "Find", "FinishedEdit", "MaskInputs"]
