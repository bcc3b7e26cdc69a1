"""Judge the base model on held-out captions: pairs of object and place that training never drew.

    python -m stickerbook.evaluate --samples 400

Prints the share of samples in which the judge reads each attribute right, the object's confusion and the
autoencoder's PSNR; writes them with a contact sheet to out/evaluate/.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from stickerbook.captions import caption
from stickerbook.judge import Judge
from stickerbook.pictures import pictures
from stickerbook.samples import contact_sheet, sample
from stickerbook.save_model import MODEL, trained_pipeline
from stickerbook.train_autoencoder import psnr_db
from stickerbook.world import ATTRIBUTES, FIRST_HELD_OUT_SEED, draw_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--work", type=Path, help="judge the checkpoints in this folder instead of the model")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate"))
    options = parser.parse_args()
    if options.work:
        pipeline, _ = trained_pipeline(options.work)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(options.model, torch_dtype=torch.float32)
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
    right = {
        attribute: float(
            np.mean([getattr(scene, attribute) == got[attribute] for scene, got in zip(scenes, seen, strict=True)])
        )
        for attribute in ATTRIBUTES
    }
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
        "confusion": dict(confusion.most_common()),
        "steps": options.steps,
        "guidance_scale": options.guidance_scale,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    Image.fromarray(contact_sheet(np.concatenate(images)[:96], 16, enlarge=2)).save(options.out / "samples.png")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
