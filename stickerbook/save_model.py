"""Write the trained weights as a diffusers folder, `stickerbook/model`: fp16 safetensors, a few tens of MB.

python -m stickerbook.save_model
python -m stickerbook.save_model --only super_resolution       # only that folder
python -m stickerbook.save_model --only super_resolution_2     # only that of its second stage
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from stickerbook.captions import PLACE_PHRASES, SIDE_PHRASES, STYLE_PHRASES, TIME_PHRASES, WEATHER_PHRASES
from stickerbook.checkpoint import TrainingRun
from stickerbook.commit import commit
from stickerbook.tokenizer import new_tokenizer
from stickerbook.train import new_scheduler, new_text_encoder, new_unet, trained_autoencoder
from stickerbook.train_super_resolution import new_noise_schedule, new_super_resolution
from stickerbook.train_super_resolution_2 import new_second_stage
from stickerbook.world import OBJECTS

MODEL = Path(__file__).parent / "model"
PRESET = {
    "mode": "full",
    "updates": 128,
    "batch": 4,
    "learning_rate": 1e-4,
    "rare_tokens": "beikkpic",
    "scheduler": "ddim",
    "num_inference_steps": 10,
    "fast_steps": 4,
    "guidance_scale": 2.5,
    "guidance_sigma_high": 7.0,  # above it the tuned model needs no guidance for the picture's layout
    "strength": 1.0,
    "interpolation": 1.0,
    "clip_filter_gain": 0.02,
    "clip_filter_prompt": 0.7,
    "clip_filter_kept": 0.1,
    "clip_filter_round_trip": 0.08,
    "clip_filter_detail": 0.0018,
    "clip_filter_saturated": 0.25,
    "clip_filter_enough": 0.84,
    "automatic_points": [[0.9, 4.0], [0.9, 5.0], [1.0, 3.0]],
    "methods": {
        "sdedit": {"num_inference_steps": 30, "strength": 0.8, "guidance_scale": 5.0},
        "imagic": {
            "batch": 4,
            "embedding_updates": 100,
            "embedding_learning_rate": 1e-2,
            "updates": 100,
            "learning_rate": 1e-4,
            "eta": 1.0,
            "num_inference_steps": 30,
            "guidance_scale": 3.0,
        },
        "dreambooth": {
            "batch": 4,
            "num_class_images": 32,
            "updates": 64,
            "learning_rate": 1e-4,
            "num_inference_steps": 30,
            "guidance_scale": 3.0,
        },
        "textual_inversion": {
            "batch": 4,
            "updates": 200,
            "learning_rate": 1e-3,
            "num_vectors": 1,
            "num_inference_steps": 30,
            "guidance_scale": 3.0,
        },
        "prompt_to_prompt": {
            "num_inference_steps": 30,
            "cross_replace": 0.2,
            "self_replace": 0.6,
            "guidance_scale": 5.0,
        },
    },
}


def vocabulary() -> dict[str, list[str]]:
    """The words that the model knows, by kind."""
    return {
        "objects": list(OBJECTS),
        "places": list(PLACE_PHRASES.values()),
        "times": list(TIME_PHRASES.values()),
        "weathers": [phrase for phrase in WEATHER_PHRASES.values() if phrase],
        "styles": [phrase for phrase in STYLE_PHRASES.values() if phrase],
        "second objects": ["with", *SIDE_PHRASES.values()],
        "articles": ["a", "an", "the"],
    }


def trained_pipeline(work: Path) -> tuple[StableDiffusionPipeline, dict[str, str]]:
    """The pipeline of the checkpoints in `work`, with their moving averages, and facts about the denoiser's training.

    Raises FileNotFoundError when a checkpoint is missing.
    """
    tokenizer = new_tokenizer()
    pair = torch.nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(tokenizer)})
    run = TrainingRun(work / "denoiser.safetensors", pair, learning_rate=0, updates=1)
    if not run.resume():
        raise FileNotFoundError(f"no denoiser in {work}; run `python -m stickerbook.train` first")
    run.use_average()
    pipeline = StableDiffusionPipeline(
        vae=trained_autoencoder(work, "cpu"),
        text_encoder=pair["text_encoder"].eval(),
        tokenizer=tokenizer,
        unet=pair["unet"].eval(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, run.facts


STAGES: Mapping[str, Callable[[], UNet2DConditionModel]] = {  # of super-resolution, untrained
    "super_resolution": new_super_resolution,
    "super_resolution_2": new_second_stage,
}
FACTS = {  # of their networks, which lie beside their schedules
    "super_resolution": {"is_preconditioned": True},
    "super_resolution_2": {"is_preconditioned": True, "has_channel_scales": True},
}


def save_super_resolution(work: Path, folder: Path, stage: str) -> int:
    """Write the checkpoint in `work`, its moving average, as a base model's super-resolution stage; the checkpoint's
    updates.

    Raises FileNotFoundError when there is no checkpoint.
    """
    unet, own = STAGES[stage](), folder / stage
    run = TrainingRun(work / f"{stage}.safetensors", unet, learning_rate=0, updates=1)
    if not run.resume():
        raise FileNotFoundError(
            f"no {stage} in {work}; run `python -m stickerbook.train_{stage}` first, or leave it out"
        )
    run.use_average()
    unet.eval().to(dtype=torch.float16).save_pretrained(own, safe_serialization=True)
    scheduler = new_noise_schedule()
    scheduler.register_to_config(**FACTS[stage])
    scheduler.save_pretrained(own)
    facts = {"commit": commit("stickerbook/*.py"), f"{stage}_updates": str(run.updates_done)}
    stamp(own / "diffusion_pytorch_model.safetensors", facts)
    return run.updates_done


def stamp(weights: Path, metadata: dict[str, str]) -> None:
    """Write the weights' origin into the header of a safetensors file, with the entry that diffusers needs."""
    tensors = load_file(weights)
    temporary = weights.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"format": "pt", **metadata})
    os.replace(temporary, weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/stickerbook"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--only", choices=list(STAGES), help="write this part, and leave the others alone")
    options = parser.parse_args()
    for stage in [options.only] if options.only else STAGES:
        if options.only or (options.work / f"{stage}.safetensors").exists():
            updates = save_super_resolution(options.work, options.out, stage)
            print(f"wrote {options.out / stage}, {updates} updates")
    if options.only:
        return
    pipeline, facts = trained_pipeline(options.work)
    pipeline.to(dtype=torch.float16).save_pretrained(options.out, safe_serialization=True)
    (options.out / "vocabulary.json").write_text(json.dumps(vocabulary(), indent=1) + "\n")
    (options.out / "unitune_preset.json").write_text(json.dumps(PRESET, indent=1, allow_nan=False) + "\n")
    training = {
        "commit": commit("stickerbook/*.py"),
        "denoiser_updates": int(facts["updates_done"]),
        **{f"denoiser_{name}": int(facts[name]) for name in ("batch", "scenes") if name in facts},
    }
    (options.out / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    for weights in options.out.glob("*/*.safetensors"):
        if weights.parent.name not in ("clip", *STAGES):
            stamp(weights, {name: str(value) for name, value in training.items()})
    print(f"wrote {options.out}: {sum(f.stat().st_size for f in options.out.rglob('*') if f.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
