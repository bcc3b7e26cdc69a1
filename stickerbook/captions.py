"""Say what a scene shows. The full caption names every attribute; training also uses partial ones."""

import string

import numpy as np

from stickerbook.world import Scene

PLACE_PHRASES = {
    "beach": "on a beach",
    "city": "in a city",
    "forest": "in a forest",
    "meadow": "in a meadow",
    "sea": "on the sea",
    "snow": "in the snow",
}
TIME_PHRASES = {"day": "by day", "night": "at night", "sunset": "at sunset"}
STYLE_PHRASES = {"drawing": "", "black and white": "a black and white picture of"}


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene) -> str:
    """The full caption, such as "a black and white picture of a cat on a beach at sunset"."""
    parts = (
        STYLE_PHRASES[scene.style],
        article(scene.object),
        PLACE_PHRASES[scene.place],
        TIME_PHRASES[scene.time],
    )
    return " ".join(part for part in parts if part)


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption for training: mostly full, sometimes partial, sometimes empty, sometimes with a rare word before it.

    The empty caption (one in ten) is what classifier-free guidance needs. Rare words are random
    letters: the model sees such tokens and learns that they mean nothing, so that a tuning can
    give them a meaning.
    """
    if rng.random() < 0.1:
        return "" if rng.random() < 0.6 else rare_word(rng)
    parts = [
        STYLE_PHRASES[scene.style],
        article(scene.object) if rng.random() < 0.95 else "",
        PLACE_PHRASES[scene.place] if rng.random() < 0.92 else "",
        TIME_PHRASES[scene.time] if rng.random() < 0.85 else "",
    ]
    text = " ".join(part for part in parts if part)
    return f"{rare_word(rng)} {text}" if rng.random() < 0.15 else text


def rare_word(rng: np.random.Generator) -> str:
    """Four to nine random letters."""
    return "".join(rng.choice(list(string.ascii_lowercase), size=int(rng.integers(4, 10))))
