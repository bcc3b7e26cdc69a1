"""What a second pass adds: a sheet of one edit of a large picture, with its ground truth.

    python -m stickerbook.second_pass --sheet docs/second-pass.png

The picture is a scene painted four times as large as stickerbook's own pictures. It is edited by `sdedit` within a
mask, and the columns are: the picture, the edit by one pass, with a second pass at the strengths below, and the ground
truth.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from stickerbook.captions import caption
from stickerbook.demo import load_cases, say
from stickerbook.render import render
from stickerbook.samples import contact_sheet
from unitune import images
from unitune_client import Client, EditOptions
from unitune_client.local.services import LocalServices

SIDE = 256
STRENGTHS = (0.1, 0.2, 0.4)
STEPS, STRENGTH, GUIDANCE_SCALE, SEED = 20, 0.9, 3.0, 2
CHANGED = 12  # levels of 255 by which a pixel of the ground truth differs from the picture where the object is
MARGIN = 8  # pixels of the mask around what changes


def edits() -> np.ndarray:
    """The sheet, uint8: one row with the columns above."""
    case = load_cases()[0]
    wanted = case.edits[0]
    picture, truth = render(case.scene, SIDE), render(wanted, SIDE)
    options = EditOptions(
        method="sdedit",
        num_inference_steps=STEPS,
        strength=STRENGTH,
        guidance_scale=GUIDANCE_SCALE,
        seeds=[SEED],
        mask=images.encode_mask(box_around(np.abs(picture.astype(int) - truth).max(axis=2) > CHANGED)),
        mask_blur=4,
    )
    row = [picture]
    with LocalServices(log=say) as services, Client(services.address) as client:
        for strength in (None, *STRENGTHS):
            options["second_pass"], options["second_pass_strength"] = strength is not None, strength
            result = client.edit_to_end(images.encode_png(picture), caption(wanted), **options)
            row.append(images.decode(result.images[0].png, max_bytes=None))
    return contact_sheet(np.stack([*row, truth]), len(row) + 1, enlarge=1)


def box_around(region: np.ndarray) -> np.ndarray:
    """A mask, float32 of the region's shape: 1 in the box around it, with a margin."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    mask = np.zeros(region.shape, np.float32)
    top, left = max(int(rows[0]) - MARGIN, 0), max(int(columns[0]) - MARGIN, 0)
    mask[top : int(rows[-1]) + MARGIN, left : int(columns[-1]) + MARGIN] = 1
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, metavar="PNG", required=True)
    Image.fromarray(edits()).save(parser.parse_args().sheet)


if __name__ == "__main__":
    main()
