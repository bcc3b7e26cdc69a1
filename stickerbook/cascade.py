"""What super-resolution adds: figures on held-out scenes, and a sheet of edits with their ground truth.

    python -m stickerbook.cascade                                    # PSNR against bicubic enlargement, no services
    python -m stickerbook.cascade --sheet docs/methods/cascade.png   # edits through the services, and no figures

The figures compare enlarged pictures with the same scenes painted at 128 px. The small pictures are renders after the
autoencoder's round trip, as soft as edits. The sheet's rows are edits of demo pictures painted at 128 px: the small
picture enlarged, the same by super-resolution, by super-resolution tuned on the picture, and the ground truth. Nothing
of the base image is mixed back.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from stickerbook.captions import caption
from stickerbook.demo import load_cases, say
from stickerbook.render import render
from stickerbook.samples import contact_sheet
from stickerbook.save_model import MODEL
from stickerbook.train_super_resolution import SIDE, HeldOut, enlarge, new_noise_schedule, psnr_of
from unitune import images
from unitune_client import Client, EditOptions
from unitune_client.local.services import LocalServices

TRIED = ((0, 1), (50, 1), (100, 1), (200, 1), (50, 2), (50, 8))  # noise level, steps
BATCH = 24
UPDATES = 64  # of super-resolution, in the sheet's third column
STRENGTH, GUIDANCE_SCALE = 0.9, 5.0  # of the sheet's edits


def measure(model: Path, scenes: int) -> None:
    """Print the PSNR of bicubic enlargement, and of super-resolution at some noise levels and numbers of steps."""
    fp32 = {"torch_dtype": torch.float32, "use_safetensors": True}
    held_out = HeldOut(
        scenes,
        AutoencoderKL.from_pretrained(model, subfolder="vae", **fp32).eval(),
        CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **fp32).eval(),
        CLIPTokenizer.from_pretrained(model, subfolder="tokenizer"),
    )
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="super_resolution", **fp32).eval()
    of_bicubic = psnr_of(held_out.bicubic, held_out.truth)
    print(f"{scenes} held-out scenes, bicubic: {of_bicubic.mean():.2f} dB")
    for level, steps in TRIED:
        batches = zip(held_out.context.split(BATCH), held_out.small.split(BATCH), strict=True)
        large = [
            enlarge(unet, context, small, new_noise_schedule(), noise_level=level, steps=steps, seed=index)
            for index, (context, small) in enumerate(batches)
        ]
        found = psnr_of(torch.cat(large), held_out.truth)
        better = float((found > of_bicubic).float().mean())
        print(f"  noise level {level:3}, {steps} steps: {found.mean():.2f} dB; better in {better:.0%}", flush=True)


def edits(cases: int) -> np.ndarray:
    """The sheet, uint8: a row per edit, with the columns above."""
    rows = []
    with LocalServices(log=say) as services, Client(services.address) as client:
        for case in load_cases()[:cases]:
            file = io.BytesIO()
            Image.fromarray(render(case.scene, SIDE)).save(file, "PNG")
            plain = client.tune(file.getvalue())
            tuned = client.tune(file.getvalue(), super_resolution_updates=UPDATES)
            for wanted in case.edits:
                for tuning, is_enlarged in ((plain, None), (plain, True), (tuned, True)):
                    options = EditOptions(strength=STRENGTH, guidance_scale=GUIDANCE_SCALE, interpolation=0.0)
                    options["super_resolution"] = is_enlarged
                    result = client.edit_to_end(tuning, caption(wanted), **options)
                    rows.append(images.decode(result.images[0].png, max_bytes=None))
                rows.append(render(wanted, SIDE))
                say(caption(wanted))
    return contact_sheet(np.stack(rows), 4, enlarge=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scenes", type=int, default=240)
    parser.add_argument("--sheet", type=Path, metavar="PNG")
    parser.add_argument("--cases", type=int, default=2, help="of the demo's pictures, for the sheet")
    options = parser.parse_args()
    if options.sheet is None:
        measure(options.model, options.scenes)
    else:
        Image.fromarray(edits(options.cases)).save(options.sheet)


if __name__ == "__main__":
    main()
