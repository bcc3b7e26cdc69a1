"""The vocabulary of the world (objects, places, times, styles), and the scenes made of it.

A scene has attributes, which a caption names, and a layout. An edit changes attributes and keeps the layout, so
`render(scene.edited(...))` is the exact ground truth.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

# New words go to the end. The held-out pairs of the first 24 objects and 6 places must never change: otherwise weights
# that are trained further would have seen them.
OBJECTS = (
    "balloon", "bus", "butterfly", "cactus", "car", "castle", "cat", "dog",
    "duck", "elephant", "fox", "frog", "house", "lion", "mushroom", "owl",
    "panda", "penguin", "robot", "rocket", "snowman", "tent", "tree", "turtle",
    "apple", "banana", "bear", "bicycle", "cake", "cow", "ghost", "guitar",
    "pig", "pizza", "rabbit", "sailboat", "sunflower", "tiger", "train", "umbrella",
)  # fmt: skip
PLACES = ("beach", "city", "forest", "meadow", "sea", "snow", "desert", "room")
TIMES = ("day", "night", "sunset")
WEATHERS = ("clear", "fog")
STYLES = ("drawing", "black and white", "pencil sketch", "pixel art", "watercolour", "mosaic")
NONE = "none"
SIDES = (NONE, "left", "right", "background")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "object": OBJECTS,
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "style": STYLES,
    "second": (NONE, *OBJECTS),
    "side": SIDES,
}

FIRST_HELD_OUT_SEED = 1_000_000_000  # training draws scenes with smaller seeds only


@dataclass(frozen=True)
class Layout:
    """The places of all objects. Lengths are fractions of the picture's side, y grows downwards."""

    horizon: float
    center_x: float
    base_y: float
    size: float
    second_size: float  # at the side; in the background it is drawn at 0.75 of it
    second_offset: float  # from centre to centre
    sun_x: float
    light: float  # brightness of the whole picture, about 1
    details: int  # seeds the small decoration: trunks, flowers, windows, stars


@dataclass(frozen=True)
class Scene:
    """One picture of the world, exactly."""

    object: str
    place: str
    time: str
    weather: str
    style: str
    second: str
    side: str
    layout: Layout

    def __post_init__(self) -> None:
        for attribute, words in ATTRIBUTES.items():
            word = getattr(self, attribute)
            if word not in words:
                raise ValueError(f"{attribute} {word!r} is not in the world; one of {', '.join(words)}")
        if (self.second == NONE) != (self.side == NONE):
            raise ValueError(f"second {self.second!r} and side {self.side!r} go together: both none, or neither")

    def edited(self, **attributes: str) -> "Scene":
        """The same layout with other attributes: the ground truth of an edit."""
        return replace(self, **attributes)  # type: ignore[arg-type]

    def attributes(self) -> dict[str, str]:
        """Attribute name to word, in the order of ATTRIBUTES."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def is_held_out(object_word: str, place: str) -> bool:
    """Whether this pair of object and place is held out of training: one place for each object."""
    index = OBJECTS.index(object_word)
    if index < 24:
        return PLACES.index(place) == (5 * index + 3) % 6
    return PLACES.index(place) == (3 * index + 6) % 8


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
    style = "drawing" if rng.random() < 0.6 else str(rng.choice(STYLES[1:]))
    weather = "clear" if rng.random() < 0.8 else "fog"
    second, side = NONE, NONE
    if rng.random() < 0.4:
        second = str(rng.choice([word for word in OBJECTS if word != object_word]))
        side = str(rng.choice(SIDES[1:]))
    layout = draw_layout(rng, side)
    return Scene(object_word, place, str(rng.choice(TIMES)), weather, style, second, side, layout)


def draw_layout(rng: np.random.Generator, side: str) -> Layout:
    """The layout of a picture with a second object at `side`, or with space for one."""
    horizon = rng.uniform(0.46, 0.58)
    center_x = {
        NONE: rng.uniform(0.34, 0.66),
        "left": rng.uniform(0.60, 0.70),
        "right": rng.uniform(0.30, 0.40),
        "background": rng.uniform(0.32, 0.44) if rng.random() < 0.5 else rng.uniform(0.56, 0.68),
    }[side]
    return Layout(
        horizon=horizon,
        center_x=center_x,
        base_y=rng.uniform(max(horizon + 0.18, 0.78), 0.92),
        size=rng.uniform(0.48, 0.62),
        second_size=rng.uniform(0.36, 0.44),
        second_offset=rng.uniform(0.40, 0.46),
        sun_x=float(rng.choice([rng.uniform(0.08, 0.22), rng.uniform(0.78, 0.92)])),
        light=rng.uniform(0.94, 1.04),
        details=int(rng.integers(1 << 31)),
    )
