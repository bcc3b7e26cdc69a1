"""A mask that the caller drew."""

from sampler_svc.sampling.masks.inputs import MaskInputs
from unitune.images import Mask


def given_mask(inputs: MaskInputs) -> Mask:
    """The request's own. Raises ValueError when there is none, which the service refuses first."""
    if inputs.given is None:
        raise ValueError("the mask is given, and there is none")
    return inputs.given


def from_sdedit(mask: Mask) -> Mask:
    """A mask of SDEdit's own code, where 1 is kept and 0 is edited (ermongroup/SDEdit), as one of ours."""
    return 1 - mask
