"""What is measured of one edit, against its exact ground truth."""

from dataclasses import dataclass

import numpy as np
from skimage.metrics import structural_similarity

from bench.editbench.cases import Case
from stickerbook.judge import Judge
from stickerbook.render import kept_pixels, psnr_db, render
from stickerbook.world import ATTRIBUTES

MIN_SHARE = 0.02  # of the picture; with fewer pixels to keep than this, how well they are kept says nothing
MAX_PSNR_DB = 60.0  # of pixels that are exactly kept, so that means stay finite


@dataclass(frozen=True)
class Score:
    """One edit, judged."""

    success: bool  # every asked attribute is read right
    kept_attributes: float  # share of the other attributes that are still read right
    kept_psnr_db: float | None  # of the pixels that the ground truth keeps; None if it keeps almost none
    ssim: float | None  # mean structural similarity there, 0 to 1
    distance: float  # root mean square difference to the ground truth's picture, 0 to 1
    change: float  # the same to the base image: how much was done at all


def score(case: Case, pixels: np.ndarray, judge: Judge) -> Score:
    """Judge an edited picture, uint8 (64, 64, 3)."""
    base, truth = render(case.scene), render(case.wanted)
    kept = kept_pixels(base, truth)
    wanted, seen = case.wanted.attributes(), judge.read(pixels[None])[0]
    others = [attribute for attribute in ATTRIBUTES if attribute not in case.changes]
    is_measured = kept.mean() >= MIN_SHARE
    return Score(
        success=all(seen[attribute] == wanted[attribute] for attribute in case.changes),
        kept_attributes=float(np.mean([seen[attribute] == wanted[attribute] for attribute in others])),
        kept_psnr_db=min(MAX_PSNR_DB, psnr_db(base, pixels, kept)) if is_measured else None,
        ssim=_ssim(base, pixels, kept) if is_measured else None,
        distance=_rms(truth, pixels),
        change=_rms(base, pixels),
    )


def _rms(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean(((one.astype(float) - other.astype(float)) / 255) ** 2)))


def _ssim(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    _, similarity = structural_similarity(one, other, channel_axis=2, full=True, data_range=255)
    return float(similarity.mean(axis=2)[where].mean())
