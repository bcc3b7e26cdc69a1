"""Train the CLIP filter's model: an image and a text tower that match captions and pictures.

    python -m stickerbook.train_clip --updates 2500

It is trained only on renders of the world, with the base model's tokenizer. Half of every batch are edits of the other
half, so that it must tell single attributes apart. It is written to `stickerbook/model/clip` in transformers' format.
The training can be interrupted; the same command continues.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from stickerbook.captions import caption, partial_caption
from stickerbook.checkpoint import TrainingLog, TrainingRun
from stickerbook.pictures import as_images
from stickerbook.render import render
from stickerbook.save_model import MODEL
from stickerbook.tokenizer import MAX_TOKENS, new_tokenizer
from stickerbook.train import TOKEN_SLOTS, tokens_of
from stickerbook.world import ATTRIBUTES, FIRST_HELD_OUT_SEED, NONE, SIDES, Scene, draw_scene

FOLDER = MODEL / "clip"
WIDTH, LAYERS, HEADS, PATCH = 160, 4, 4, 8
CANDIDATES = 50  # captions to choose from when retrieval is measured


def new_clip() -> CLIPModel:
    """An untrained CLIP: 3 million parameters, pictures of 64x64 in patches of 8x8."""
    tokenizer = new_tokenizer()
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "projection_dim": 128}
    text = {
        **shape,
        "num_hidden_layers": 3,
        "vocab_size": TOKEN_SLOTS,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shape, "num_hidden_layers": LAYERS, "image_size": 64, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def new_image_processor() -> CLIPImageProcessorPil:
    """Pictures to the image tower's input: 64x64, in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def neighbour(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one attribute changed: the most difficult negative for its caption."""
    attribute = str(rng.choice(["object", "object", "place", "time", "weather", "style", "second", "second"]))
    if attribute == "second":
        if scene.second != NONE and rng.random() < 0.4:
            return scene.edited(second=NONE, side=NONE)
        second = str(rng.choice([w for w in ATTRIBUTES["object"] if w not in (scene.object, scene.second)]))
        side = scene.side if scene.side != NONE else str(rng.choice(SIDES[1:]))
        return scene.edited(second=second, side=side)
    taken = {getattr(scene, attribute), scene.second}
    return scene.edited(**{attribute: str(rng.choice([w for w in ATTRIBUTES[attribute] if w not in taken]))})


def batch_of(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, 64, 64) and their captions' tokens (n, 32)."""
    tokens = tokens_of(new_tokenizer(), [caption(scene) for scene in scenes])
    return as_images(np.stack([render(scene) for scene in scenes])), tokens


@torch.no_grad()
def retrieval(clip: CLIPModel, rounds: int = 20) -> float:
    """Top-1: the share of held-out pictures whose own caption is the nearest of 50 held-out captions."""
    right = []
    for index in range(rounds):
        first = FIRST_HELD_OUT_SEED + 50_000 + CANDIDATES * index
        pictures, tokens = batch_of([draw_scene(seed, "held_out") for seed in range(first, first + CANDIDATES)])
        scores = clip(pixel_values=pictures, input_ids=tokens).logits_per_image
        right.append((scores.argmax(1) == torch.arange(CANDIDATES)).float().mean().item())
    return float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/stickerbook"), help="folder of the checkpoints")
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--pairs", type=int, default=40, help="scenes in an update, each beside a neighbour of it")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    clip = new_clip()
    run = TrainingRun(
        options.work / "clip.safetensors",
        clip,
        learning_rate=options.learning_rate,
        updates=options.updates,
        weight_decay=0.05,
    )
    if run.resume():
        print(f"resumed at update {run.updates_done}", flush=True)
    log = TrainingLog(run, batch=2 * options.pairs, every=250)
    tokenizer = new_tokenizer()
    while not run.is_done:
        rng = np.random.default_rng([5, run.updates_done])
        scenes = [draw_scene(int(seed)) for seed in rng.integers(FIRST_HELD_OUT_SEED, size=options.pairs)]
        scenes += [neighbour(scene, rng) for scene in scenes]
        images = as_images(np.stack([render(scene) for scene in scenes]))
        images = images + 0.05 * float(rng.random()) * torch.from_numpy(rng.standard_normal(images.shape, np.float32))
        tokens = tokens_of(tokenizer, [partial_caption(scene, rng) for scene in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            scores = clip(pixel_values=images, input_ids=tokens).logits_per_image
        labels = torch.arange(len(scenes))
        scores = scores.float()
        loss = (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2
        run.update(loss)
        log.add(loss)
        if run.updates_done % 250 == 0:
            run.save()
    run.use_average()
    clip.eval()
    print(f"retrieval among {CANDIDATES} held-out captions: {retrieval(clip):.3f} right at first")
    clip.half().save_pretrained(FOLDER, safe_serialization=True)
    tokenizer.save_pretrained(FOLDER)
    new_image_processor().save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
