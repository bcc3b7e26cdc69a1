"""Measure which pictures stickerbook knows, and how well they are told from others.

    python -m stickerbook.known_pictures

The limits in `stickerbook/model/known_pictures.safetensors` come from renders like users' files: enlarged, squeezed, as
JPEG, brighter or noisy. With them the sampler warns of other pictures before a tuning. Held-out renders give the share
of false alarms. Photographs, charts, screenshots, drawings, text, noise and plain colours, which are not in the
training data, give the share that is found. It needs scikit-image and matplotlib for these pictures (`unitune[dev]`).
"""

import argparse
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import CLIPModel

from stickerbook.judge import any_scene
from stickerbook.render import render
from stickerbook.save_model import MODEL
from stickerbook.world import FIRST_HELD_OUT_SEED, STYLES, Scene, draw_scene
from tuner_svc.base_model import BaseModel, load
from tuner_svc.export.clip import ImageTower
from unitune.images import Pixels, to_model
from unitune.known_pictures import KnownPictures

SHOWS = "stickers in painted places"
ROOT = Path(__file__).parent.parent
FIRST_HELD_OUT = FIRST_HELD_OUT_SEED + 80_000  # its own seeds of the held-out range
RENDERS, HELD_OUT = 6000, 2000
LIMIT = 99.75  # percentile of the renders' figures: two limits, so that about one render in 200 is beyond either
SHRINKAGE = 1e-3  # added to the covariance, of its mean variance: directions that no render varies in count less
CROPS = 8  # of each photograph
BATCH = 64


@dataclass(frozen=True)
class Figures:
    """Of n pictures: embeddings (n, d) of length 1, and round trip errors (n,)."""

    embeddings: np.ndarray
    round_trips: np.ndarray

    def strangeness(self, known: KnownPictures) -> np.ndarray:
        """Of each picture, (n,)."""
        pairs = zip(self.embeddings, self.round_trips, strict=True)
        return np.array([known.strangeness(embedding, float(error)) for embedding, error in pairs])


class Eye:
    """The CLIP filter's model and the autoencoder, as the sampler uses them."""

    def __init__(self, folder: Path) -> None:
        clip = CLIPModel.from_pretrained(
            folder / "clip", dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        self._model: BaseModel = load(folder)
        self._tower = ImageTower(clip, [0.5] * 3, [0.5] * 3).eval()

    @torch.no_grad()
    def look(self, pictures: Iterable[Pixels]) -> Figures:
        """The figures of pictures of any size, with one batch at a time in memory."""
        side: tuple[int, int] = self._model.image_side
        embeddings, round_trips = [], []
        remaining = iter(pictures)
        while batch := list(islice(remaining, BATCH)):
            small = np.stack([_resized(picture, side[::-1], Image.Resampling.BICUBIC) for picture in batch])
            embeddings.append(self._tower(torch.from_numpy(small.transpose(0, 3, 1, 2).astype(np.float32) / 255)))
            images = np.concatenate([to_model(picture, side) for picture in batch])
            decoded = self._model.image_decoder(self._model.image_encoder(torch.from_numpy(images))).numpy()
            difference = (decoded.clip(-1, 1) - images) / 2
            round_trips.append(np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3))))
        return Figures(torch.cat(embeddings).numpy(), np.concatenate(round_trips))


def as_a_user_picture(scene: Scene, rng: np.random.Generator) -> Pixels:
    """A render changed like a user's file: its size, aspect, JPEG compression, brightness or noise."""
    picture = render(scene, 128) if rng.random() < 0.5 else render(scene)
    kind = int(rng.integers(7))
    if kind == 0:
        return picture
    if kind == 1:
        return _as_jpeg(picture, int(rng.integers(60, 96)))
    if kind == 2:
        return _as_jpeg(_resized(picture, (512, 512), Image.Resampling.BICUBIC), int(rng.integers(60, 96)))
    if kind == 3:
        side = int(rng.integers(96, 700))
        return _resized(picture, (side, side), Image.Resampling.LANCZOS)
    if kind == 4:
        return _resized(picture, (512, 512), Image.Resampling.NEAREST)
    if kind == 5:
        return _as_jpeg(_resized(picture, (640, 480), Image.Resampling.BICUBIC), 80)
    noisy = picture * rng.uniform(0.85, 1.15) + rng.normal(0, 4, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def known(number: int) -> Iterator[Pixels]:
    """Renders from the training range: any pair of object and place, all styles equally often."""
    rng = np.random.default_rng(11)
    return (as_a_user_picture(any_scene(seed), rng) for seed in range(number))


def held_out(number: int) -> Iterator[Pixels]:
    """Held-out renders; in half of them all styles are equally often."""
    rng = np.random.default_rng(12)
    scenes = [draw_scene(seed, "held_out") for seed in range(FIRST_HELD_OUT, FIRST_HELD_OUT + number)]
    scenes = [s.edited(style=str(rng.choice(STYLES))) if index % 2 else s for index, s in enumerate(scenes)]
    return (as_a_user_picture(scene, rng) for scene in scenes)


def unknown() -> Iterator[tuple[str, Pixels]]:
    """Pictures from outside the world, each with its kind."""
    import matplotlib
    import skimage.data

    rng = np.random.default_rng(13)
    for path in sorted(Path(skimage.data.__file__).parent.iterdir()):
        picture = _read(path)
        if picture is None:
            continue
        has_colour = bool(np.abs(picture[..., 0].astype(int) - picture[..., 2]).mean() > 4)
        is_photo = path.stem.split("_")[0] in ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")
        kind = "colour photographs" if is_photo else "other scientific, in colour" if has_colour else "in grey"
        yield kind, picture
        for _ in range(CROPS if min(picture.shape[:2]) >= 128 else 0):
            height, width = picture.shape[:2]
            side = int(rng.uniform(0.4, 0.9) * min(height, width))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            yield f"crops of {kind}", picture[top : top + side, left : left + side]
    for folder in (ROOT / "docs", Path(matplotlib.get_data_path())):
        for path in sorted(folder.rglob("*.png")):
            if (picture := _read(path)) is not None:
                yield "charts, sheets and icons", picture
    for _ in range(8):
        yield "noise", rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        yield "soft blots", _resized(colours, (256, 256), Image.Resampling.BICUBIC)
        yield "one colour", np.full((256, 256, 3), rng.integers(0, 256, 3), np.uint8)
        first, last = rng.integers(0, 256, (2, 3))
        share = np.linspace(0, 1, 256)[:, None, None]
        yield "gradients", np.broadcast_to(first * (1 - share) + last * share, (256, 256, 3)).astype(np.uint8)
        yield "text", _page(rng)
        yield "shapes", _shapes(rng)


def measure(figures: Figures) -> KnownPictures:
    """The known pictures, from the figures of many of them."""
    mean = figures.embeddings.mean(axis=0)
    covariance = np.cov(figures.embeddings.T)
    covariance += SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    distances = np.linalg.norm((figures.embeddings - mean) @ whitening.T, axis=1)
    return KnownPictures(
        mean.astype(np.float32),
        whitening.astype(np.float32),
        distance=round(float(np.percentile(distances, LIMIT)), 3),
        round_trip=round(float(np.percentile(figures.round_trips, LIMIT)), 4),
        shows=SHOWS,
    )


def _resized(picture: Pixels, size: tuple[int, int], how: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(picture).resize(size, how))


def _as_jpeg(picture: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def _read(path: Path) -> Pixels | None:
    """A colour picture; None for another file."""
    if path.suffix not in (".png", ".jpg", ".gif"):
        return None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _page(rng: np.random.Generator) -> Pixels:
    page = Image.new("RGB", (400, 400), "white")
    letters = list("abcdefghiklmnoprst")
    for top in range(10, 390, int(rng.integers(13, 20))):
        words = ("".join(rng.choice(letters, int(rng.integers(2, 9)))) for _ in range(9))
        ImageDraw.Draw(page).text((10, top), " ".join(words), fill="black")
    return np.asarray(page)


def _shapes(rng: np.random.Generator) -> Pixels:
    page = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(page)
    for _ in range(12):
        left, top, width, height = (int(number) for number in rng.integers(0, 220, 4))
        put = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        colour = (int(rng.integers(256)), int(rng.integers(256)), int(rng.integers(256)))
        put((left, top, left + width // 2 + 5, top + height // 2 + 5), fill=colour, outline="black", width=3)
    return np.asarray(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-report", action="store_true", help="measure by the file that is there, and write none")
    options = parser.parse_args()
    eye = Eye(MODEL)
    limits = KnownPictures.load(MODEL) if options.only_report else measure(eye.look(known(RENDERS)))
    if limits is None:
        raise SystemExit(f"there is no file in {MODEL}: run without --only-report")
    if not options.only_report:
        limits.save(MODEL)
    print(f"limits: distance {limits.distance}, round trip {limits.round_trip}")
    alarms = eye.look(held_out(HELD_OUT)).strangeness(limits) > 1
    print(f"false alarms: {100 * alarms.mean():.2f} % of {HELD_OUT} held-out renders")
    kinds, pictures = zip(*unknown(), strict=True)
    found = eye.look(pictures).strangeness(limits) > 1
    for kind in dict.fromkeys(kinds):
        own = found[[one == kind for one in kinds]]
        print(f"found: {100 * own.mean():3.0f} % of {len(own)} {kind}")
    print(f"found: {100 * found.mean():3.0f} % of all {len(found)}")


if __name__ == "__main__":
    main()
