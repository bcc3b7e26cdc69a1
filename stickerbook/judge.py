"""The judge: a classifier of what a picture shows, trained only on rendered scenes.

    python -m stickerbook.judge --updates 2500

Its training has no picture of the diffusion model, so it does not learn to accept that model's faults. It can be
interrupted; the same command continues.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from stickerbook.checkpoint import TrainingLog, TrainingRun
from stickerbook.pictures import as_images
from stickerbook.render import render
from stickerbook.world import ATTRIBUTES, NONE, OBJECTS, PLACES, STYLES, Scene, draw_scene

WEIGHTS = Path(__file__).parent / "judge.safetensors"
FIRST_VALIDATION_SEED = 900_000_000  # the judge's own split of the training range


class Residual(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.layers(features)


class Judge(nn.Module):
    """A small convolutional network with one head per attribute: 1.9 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (48, 96, 160, 192)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1), Residual(widths[0])]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=2), Residual(after)]
        self.features = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Flatten())
        self.heads = nn.ModuleDict(
            {attribute: nn.Linear(widths[-1] * 16, len(words)) for attribute, words in ATTRIBUTES.items()}
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images in [-1, 1], (n, 3, 64, 64), to logits per attribute."""
        features = self.features(images)
        return {attribute: head(features) for attribute, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pixels: np.ndarray) -> list[dict[str, str]]:
        """What each picture shows: pixels uint8 (n, 64, 64, 3) to one dictionary of attributes each."""
        logits = self(as_images(pixels))
        indices = {attribute: scores.argmax(1).tolist() for attribute, scores in logits.items()}
        return [
            {attribute: ATTRIBUTES[attribute][indices[attribute][row]] for attribute in ATTRIBUTES}
            for row in range(len(pixels))
        ]

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Judge":
        """The trained judge. Raises FileNotFoundError before it is trained."""
        judge = cls()
        judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return judge.eval()


def any_scene(seed: int) -> Scene:
    """A scene of any pair of object and place, all styles equally often, since the judge must know them all."""
    rng = np.random.default_rng([3, seed])
    scene = draw_scene(seed)
    others = [word for word in OBJECTS if word != scene.second]
    return scene.edited(object=str(rng.choice(others)), place=str(rng.choice(PLACES)), style=str(rng.choice(STYLES)))


def batch_of(seeds: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rendered pictures and the indices of their attributes."""
    scenes = [any_scene(seed) for seed in seeds]
    images = as_images(np.stack([render(scene) for scene in scenes]))
    labels = {
        attribute: torch.tensor([words.index(getattr(scene, attribute)) for scene in scenes])
        for attribute, words in ATTRIBUTES.items()
    }
    return images, labels


def spoiled(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blurred, noisy, shifted in brightness: small faults must not change the verdict."""
    if rng.random() < 0.5:
        small = functional.interpolate(images, scale_factor=float(rng.uniform(0.6, 0.9)), mode="area")
        images = functional.interpolate(small, size=images.shape[-2:], mode="bilinear")
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return images * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(0, 0.1)) * noise


@torch.no_grad()
def right_of_renders(judge: Judge, renders: int) -> dict[str, float]:
    """The share of unseen renders that is read right, by attribute; `second` and `side` only if there is one."""
    images, labels = batch_of(list(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + renders)))
    logits = judge.eval()(images)
    has_second = labels["second"] != ATTRIBUTES["second"].index(NONE)
    shares = {}
    for attribute in ATTRIBUTES:
        right = logits[attribute].argmax(1) == labels[attribute]
        shares[attribute] = float((right[has_second] if attribute in ("second", "side") else right).float().mean())
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/stickerbook"), help="folder of the checkpoints")
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    judge = Judge()
    run = TrainingRun(
        options.work / "judge.safetensors",
        judge,
        learning_rate=options.learning_rate,
        updates=options.updates,
        weight_decay=0.02,
    )
    if run.resume():
        print(f"resumed at update {run.updates_done}", flush=True)
    log = TrainingLog(run, batch=options.batch, every=250)
    while not run.is_done:
        rng = np.random.default_rng([4, run.updates_done])
        images, labels = batch_of(rng.integers(FIRST_VALIDATION_SEED, size=options.batch).tolist())
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(spoiled(images, rng))
        losses = [functional.cross_entropy(logits[attribute].float(), labels[attribute]) for attribute in ATTRIBUTES]
        loss = torch.stack(losses).sum()
        run.update(loss)
        log.add(loss)
        if run.updates_done % 250 == 0:
            run.save()
    run.use_average()
    for attribute, share in right_of_renders(judge, 2000).items():
        print(f"{attribute}: {share:.3f} right of 2000 unseen renders")
    save_file({name: tensor.half() for name, tensor in judge.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main()
