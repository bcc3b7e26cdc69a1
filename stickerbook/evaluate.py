"""Judge the base model on held-out captions: pairs of object and place that training never drew.

    python -m stickerbook.evaluate

Prints the share of samples in which the judge reads each attribute right (for a second object and its side: of captions
that have one), the confusion of objects, and how well the autoencoder reproduces renders. Writes them with a contact
sheet to out/evaluate/.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from stickerbook.captions import caption
from stickerbook.judge import FIRST_VALIDATION_SEED, Judge, any_scene
from stickerbook.pictures import as_images, as_pixels, pictures
from stickerbook.render import render
from stickerbook.samples import contact_sheet, sample
from stickerbook.save_model import MODEL, trained_pipeline
from stickerbook.train_autoencoder import psnr_db
from stickerbook.world import ATTRIBUTES, FIRST_HELD_OUT_SEED, NONE, Scene, draw_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--work", type=Path, help="judge the checkpoints in this folder instead of the model")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate"))
    options = parser.parse_args()
    if options.work:
        pipeline, _ = trained_pipeline(options.work)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(
            options.model, torch_dtype=torch.float32, use_safetensors=True
        )
    judge = Judge.load()
    scenes = [draw_scene(FIRST_HELD_OUT_SEED + index, "held_out") for index in range(options.samples)]
    images = []
    for start in range(0, len(scenes), 40):
        prompts = [caption(scene) for scene in scenes[start : start + 40]]
        images.append(
            sample(
                pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, pipeline.vae, pipeline.scheduler, prompts,
                steps=options.steps, guidance_scale=options.guidance_scale, seed=start,
            )
        )  # fmt: skip
        print(f"sampled {min(start + 40, len(scenes))}/{len(scenes)}", flush=True)
    seen = judge.read(np.concatenate(images))
    right = shares_right(scenes, seen)
    confusion = Counter(
        f"{scene.object} read as {got['object']}"
        for scene, got in zip(scenes, seen, strict=True)
        if scene.object != got["object"]
    )
    held_out = pictures(range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 200), "held_out")
    report = {
        "samples": len(scenes),
        "right": right,
        "autoencoder_psnr_db": psnr_db(pipeline.vae, held_out),
        "object_right_in_reconstructions": object_after_autoencoder(pipeline.vae, judge),
        "confusion": dict(confusion.most_common()),
        "steps": options.steps,
        "guidance_scale": options.guidance_scale,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    Image.fromarray(contact_sheet(np.concatenate(images)[:96], 16, enlarge=2)).save(options.out / "samples.png")
    print(json.dumps(report, indent=1))


def shares_right(scenes: list[Scene], seen: list[dict[str, str]]) -> dict[str, float]:
    """By attribute. A second object and its side count together, and must be none if the caption has none."""
    pairs = list(zip(scenes, seen, strict=True))
    single = [a for a in ATTRIBUTES if a not in ("second", "side")]
    shares = {a: float(np.mean([getattr(scene, a) == got[a] for scene, got in pairs])) for a in single}
    for name, is_asked in (("second and side", True), ("no second", False)):
        asked = [(scene, got) for scene, got in pairs if (scene.second != NONE) == is_asked]
        both = [scene.second == got["second"] and scene.side == got["side"] for scene, got in asked]
        shares[name] = float(np.mean(both)) if both else 1.0
    return shares


@torch.no_grad()
def object_after_autoencoder(autoencoder: AutoencoderKL, judge: Judge, renders: int = 500) -> float:
    """The share of renders whose object the judge still reads right after encoding and decoding."""
    scenes = [any_scene(FIRST_VALIDATION_SEED + 20_000 + index) for index in range(renders)]
    right = []
    for start in range(0, renders, 50):
        batch = scenes[start : start + 50]
        images = as_images(np.stack([render(scene) for scene in batch]))
        seen = judge.read(as_pixels(autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample))
        right += [scene.object == got["object"] for scene, got in zip(batch, seen, strict=True)]
    return float(np.mean(right))


if __name__ == "__main__":
    main()
