"""Captions of scenes. The full caption names every attribute; training also uses partial ones."""

import string

import numpy as np

from stickerbook.world import NONE, Scene

PLACE_PHRASES = {
    "beach": "on a beach",
    "city": "in a city",
    "forest": "in a forest",
    "meadow": "in a meadow",
    "sea": "on the sea",
    "snow": "in the snow",
    "desert": "in a desert",
    "room": "in a room",
}
TIME_PHRASES = {"day": "by day", "night": "at night", "sunset": "at sunset"}
WEATHER_PHRASES = {"clear": "", "fog": "in fog"}
STYLE_PHRASES = {
    "drawing": "",
    "black and white": "a black and white picture of",
    "pencil sketch": "a pencil sketch of",
    "pixel art": "a pixel art picture of",
    "watercolour": "a watercolour painting of",
    "mosaic": "a mosaic of",
}
SIDE_PHRASES = {"left": "on the left", "right": "on the right", "background": "in the background"}


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def objects_phrase(scene: Scene) -> str:
    """The object, and the second one with its side: "a cat with a tree on the left"."""
    if scene.second == NONE:
        return article(scene.object)
    return f"{article(scene.object)} with {article(scene.second)} {SIDE_PHRASES[scene.side]}"


def caption(scene: Scene) -> str:
    """The full caption, such as "a pencil sketch of a cat with a tree on the left on a beach at sunset in fog"."""
    parts = (
        STYLE_PHRASES[scene.style],
        objects_phrase(scene),
        PLACE_PHRASES[scene.place],
        TIME_PHRASES[scene.time],
        WEATHER_PHRASES[scene.weather],
    )
    return " ".join(part for part in parts if part)


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption for training: mostly full, sometimes partial, sometimes empty, sometimes with a rare word before it.

    Classifier-free guidance needs the empty caption (one in ten). Rare words are random letters: the model learns that
    such tokens mean nothing, so that a tuning can give them a meaning.
    """
    if rng.random() < 0.1:
        return "" if rng.random() < 0.6 else rare_word(rng)
    text = partial_caption(scene, rng)
    return f"{rare_word(rng)} {text}" if rng.random() < 0.15 else text


def partial_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The full caption, sometimes without a part."""
    parts = [
        STYLE_PHRASES[scene.style],
        objects_phrase(scene) if rng.random() < 0.96 else "",
        PLACE_PHRASES[scene.place] if rng.random() < 0.94 else "",
        TIME_PHRASES[scene.time] if rng.random() < 0.9 else "",
        WEATHER_PHRASES[scene.weather],
    ]
    return " ".join(part for part in parts if part)


def rare_word(rng: np.random.Generator) -> str:
    """Four to nine random letters."""
    return "".join(rng.choice(list(string.ascii_lowercase), size=int(rng.integers(4, 10))))
