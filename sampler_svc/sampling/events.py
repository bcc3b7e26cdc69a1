"""The events of an edit while it runs. It calls a function with each, in order."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One denoising step is done."""

    index: int  # from 0
    total: int
    preview: bytes = b""  # PNG of the first seed's picture so far
    attempt: int = 0  # from 1, if there may be several; else 0
    attempts: int = 0  # at most


@dataclass(frozen=True)
class EditedImage:
    """One result."""

    index: int  # into the seeds
    seed: int
    png: bytes  # of the base image's size; with super-resolution at least of that model's size
    mask: bytes = b""  # PNG of the mask that was used, of the same size; empty if none was
    is_blocked: bool = False  # by the content filter, and then without png and mask
    working_size: tuple[int, int] = (0, 0)  # height, width at which it was sampled


@dataclass(frozen=True)
class Done:
    """All results were sent. Seconds of each stage."""

    encode_s: float
    denoise_s: float
    decode_s: float
    super_resolution_s: float = 0.0


@dataclass(frozen=True)
class Warned:
    """A warning that a result is probably not what was meant, with a remedy."""

    text: str


Event = Step | Warned | EditedImage | Done
OnEvent = Callable[[Event], None]
