"""The judge: a classifier trained on rendered scenes only, which says what a picture shows.

    python -m stickerbook.judge --updates 1500

It never sees a picture of the diffusion model, so it cannot learn to excuse one.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from stickerbook.pictures import as_images
from stickerbook.render import render
from stickerbook.world import ATTRIBUTES, OBJECTS, PLACES, Scene, draw_scene

WEIGHTS = Path(__file__).parent / "judge.safetensors"
FIRST_VALIDATION_SEED = 900_000_000  # the judge's own split of the training range


class Judge(nn.Module):
    """A small convolutional network with one head per attribute: 0.7 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 96, 128)
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for before, after in zip(widths, (*widths[1:], 192), strict=True):
            layers += [
                nn.GroupNorm(8, before),
                nn.SiLU(),
                nn.Conv2d(before, after, 3, padding=1, stride=2),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1, groups=8),
            ]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {attribute: nn.Linear(192 * 16, len(words)) for attribute, words in ATTRIBUTES.items()}
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images in [-1, 1], (n, 3, 64, 64), to logits per attribute."""
        features = functional.silu(self.features(images)).flatten(1)
        return {attribute: head(features) for attribute, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pixels: np.ndarray) -> list[dict[str, str]]:
        """What each picture shows: pixels uint8 (n, 64, 64, 3) to one dictionary of attributes each."""
        images = as_images(pixels)
        indices = {attribute: logits.argmax(1).tolist() for attribute, logits in self(images).items()}
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
    """A scene of any pair of object and place: the judge must know them all."""
    rng = np.random.default_rng([3, seed])
    return draw_scene(seed).edited(object=str(rng.choice(OBJECTS)), place=str(rng.choice(PLACES)))


def batch_of(seeds: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rendered pictures and the indices of their attributes."""
    scenes = [any_scene(seed) for seed in seeds]
    pixels = np.stack([render(scene) for scene in scenes])
    images = as_images(pixels)
    labels = {
        attribute: torch.tensor([words.index(getattr(scene, attribute)) for scene in scenes])
        for attribute, words in ATTRIBUTES.items()
    }
    return images, labels


def spoiled(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blurred, noisy, shifted in brightness: small faults must not change the verdict."""
    if rng.random() < 0.5:
        small = functional.interpolate(images, scale_factor=float(rng.uniform(0.5, 0.9)), mode="area")
        images = functional.interpolate(small, size=images.shape[-2:], mode="bilinear")
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return images * float(rng.uniform(0.85, 1.15)) + float(rng.uniform(0, 0.12)) * noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=options.learning_rate, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.updates)
    started = time.monotonic()
    for update in range(1, options.updates + 1):
        rng = np.random.default_rng([4, update])
        images, labels = batch_of(rng.integers(FIRST_VALIDATION_SEED, size=options.batch).tolist())
        logits = judge(spoiled(images, rng))
        loss = torch.stack([functional.cross_entropy(logits[a], labels[a]) for a in ATTRIBUTES]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if update % 100 == 0:
            print(
                f"update {update}/{options.updates}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
    images, labels = batch_of(list(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + 1000)))
    with torch.no_grad():
        logits = judge.eval()(images)
    for attribute in ATTRIBUTES:
        right = (logits[attribute].argmax(1) == labels[attribute]).float().mean()
        print(f"{attribute}: {right:.3f} right of 1000 renders")
    save_file({name: tensor.half() for name, tensor in judge.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main()
