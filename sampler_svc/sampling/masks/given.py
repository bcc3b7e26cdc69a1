"""A mask that the caller gave."""

from sampler_svc.sampling.masks.inputs import MaskInputs
from unitune.images import Mask


def given_mask(inputs: MaskInputs) -> Mask:
    """The request's mask. Raises ValueError without one, which the service refuses first."""
    if inputs.given is None:
        raise ValueError("the mask is given, and there is none")
    return inputs.given


def from_sdedit(mask: Mask) -> Mask:
    """The mask for a mask of SDEdit's code (ermongroup/SDEdit), where 1 is kept and 0 is edited."""
    return 1 - mask
