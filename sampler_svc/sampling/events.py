"""What an edit tells while it runs. It calls a function with each event, in order."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One denoising step is done."""

    index: int  # from 0
    total: int
    preview: bytes = b""  # PNG of the first seed's picture so far
    attempt: int = 0  # from 1, where there may be several
    attempts: int = 0  # at most


@dataclass(frozen=True)
class EditedImage:
    """One result."""

    index: int  # into the seeds
    seed: int
    png: bytes  # as large as the base image; with super-resolution at least as large as that makes them
    mask: bytes = b""  # PNG of the mask that was used, as large; empty if none was


@dataclass(frozen=True)
class Done:
    """All results are out. Seconds by stage."""

    encode_s: float
    denoise_s: float
    decode_s: float
    super_resolution_s: float = 0.0


@dataclass(frozen=True)
class Warned:
    """A result that is hardly what was meant, in plain words, with a remedy."""

    text: str


Event = Step | Warned | EditedImage | Done
OnEvent = Callable[[Event], None]
