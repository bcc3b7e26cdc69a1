"""What can be said and drawn: objects, places, times, styles, and the scenes made of them.

A scene is its attributes (what a caption names) and its layout (where things stand). An edit
changes attributes and keeps the layout, so `render(scene.edited(...))` is the exact ground truth.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

OBJECTS = (
    "balloon", "bus", "butterfly", "cactus", "car", "castle", "cat", "dog",
    "duck", "elephant", "fox", "frog", "house", "lion", "mushroom", "owl",
    "panda", "penguin", "robot", "rocket", "snowman", "tent", "tree", "turtle",
)  # fmt: skip
PLACES = ("beach", "city", "forest", "meadow", "sea", "snow")
TIMES = ("day", "night", "sunset")
STYLES = ("drawing", "black and white")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "object": OBJECTS,
    "place": PLACES,
    "time": TIMES,
    "style": STYLES,
}

FIRST_HELD_OUT_SEED = 1_000_000_000  # training draws scenes with smaller seeds only


@dataclass(frozen=True)
class Layout:
    """Where things stand; lengths are fractions of the picture's side, y grows downwards."""

    horizon: float
    center_x: float
    base_y: float
    size: float
    sun_x: float
    details: int  # seeds the small decoration: trunks, flowers, windows, stars


@dataclass(frozen=True)
class Scene:
    """One picture of the world, exactly."""

    object: str
    place: str
    time: str
    style: str
    layout: Layout

    def __post_init__(self) -> None:
        for attribute, words in ATTRIBUTES.items():
            word = getattr(self, attribute)
            if word not in words:
                raise ValueError(f"{attribute} {word!r} is not in the world; one of {', '.join(words)}")

    def edited(self, **attributes: str) -> "Scene":
        """The same layout with other attributes: the ground truth of an edit."""
        return replace(self, **attributes)  # type: ignore[arg-type]

    def attributes(self) -> dict[str, str]:
        """Attribute name to word, in the order of ATTRIBUTES."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def is_held_out(object_word: str, place: str) -> bool:
    """Whether this pair of object and place is never drawn in training: one place for each object."""
    return PLACES.index(place) == (5 * OBJECTS.index(object_word) + 3) % len(PLACES)


def draw_scene(seed: int, split: Literal["train", "held_out"] = "train") -> Scene:
    """The scene of a seed. `held_out` draws only pairs of object and place that training never sees.

    Raises ValueError for a seed outside the range of its split.
    """
    if (split == "held_out") != (seed >= FIRST_HELD_OUT_SEED):
        raise ValueError(f"seed {seed} is not in the {split} range (held out: from {FIRST_HELD_OUT_SEED})")
    rng = np.random.default_rng(seed)
    while True:
        object_word, place = str(rng.choice(OBJECTS)), str(rng.choice(PLACES))
        if is_held_out(object_word, place) == (split == "held_out"):
            break
    horizon = rng.uniform(0.46, 0.58)
    size = rng.uniform(0.50, 0.66)
    layout = Layout(
        horizon=horizon,
        center_x=rng.uniform(0.36, 0.64),
        base_y=rng.uniform(max(horizon + 0.16, 0.76), 0.92),
        size=size,
        sun_x=float(rng.choice([rng.uniform(0.08, 0.22), rng.uniform(0.78, 0.92)])),
        details=int(rng.integers(1 << 31)),
    )
    style = "drawing" if rng.random() < 0.8 else "black and white"
    return Scene(object_word, place, str(rng.choice(TIMES)), style, layout)
