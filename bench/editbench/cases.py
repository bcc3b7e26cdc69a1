"""The cases: pictures of stickerbook's world that training never drew, and the edits asked of each.

`cases.json` holds them, versioned; the pictures and their ground truths are rendered from it. `python -m
bench.editbench.cases` draws the file anew, which only a change of the world should need.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stickerbook.captions import caption
from stickerbook.render import kept_pixels, render
from stickerbook.world import FIRST_HELD_OUT_SEED, NONE, OBJECTS, PLACES, SIDES, STYLES, TIMES, Scene, draw_scene

VERSION = 1
FILE = Path(__file__).with_name("cases.json")
CATEGORIES = ("object", "place", "time", "weather", "add", "remove", "style", "two")
FIRST_SEED = FIRST_HELD_OUT_SEED + 200_000  # of the pictures; stickerbook.evaluate uses smaller ones
PICTURES = {"test": 52, "development": 40}
EDITS_OF_A_PICTURE = 4
QUICK_PICTURES = 6  # the first of the test split: 24 cases
ALIGNED_SHARE = 0.5  # of the pixels that the ground truth keeps, from which on an edit counts as aligned


@dataclass(frozen=True)
class Case:
    """One edit of one picture."""

    id: str
    picture: str
    category: str
    scene: Scene
    changes: dict[str, str]
    aligned: bool  # most pixels stay, as in the paper's local edits; else most change

    @property
    def wanted(self) -> Scene:
        """The ground truth's scene."""
        return self.scene.edited(**self.changes)

    @property
    def prompt(self) -> str:
        """The edit prompt: the whole caption of the wanted scene."""
        return caption(self.wanted)


@dataclass(frozen=True)
class Picture:
    """One picture, which is tuned on once for all its edits."""

    id: str
    split: str  # "test" or "development"
    scene: Scene
    cases: tuple[Case, ...]


def load(split: str, *, quick: bool = False, path: Path = FILE) -> list[Picture]:
    """The pictures of a split. Raises ValueError for a file of another version."""
    file = json.loads(path.read_text())
    if file["version"] != VERSION:
        raise ValueError(f"{path} has version {file['version']}, this program reads {VERSION}")
    pictures = []
    for entry in file["pictures"]:
        if entry["split"] != split:
            continue
        scene = draw_scene(entry["seed"], "held_out")
        cases = tuple(
            Case(f"{entry['id']}-{c['category']}", entry["id"], c["category"], scene, c["changes"], c["aligned"])
            for c in entry["cases"]
        )
        pictures.append(Picture(entry["id"], split, scene, cases))
    return pictures[:QUICK_PICTURES] if quick else pictures


def changes_of(category: str, scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    """A random edit of a category that fits the scene."""

    def other_word(words: tuple[str, ...], *taken: str) -> str:
        return str(rng.choice([word for word in words if word not in taken]))

    match category:
        case "object":
            return {"object": other_word(OBJECTS, scene.object, scene.second)}
        case "place":
            return {"place": other_word(PLACES, scene.place)}
        case "time":
            return {"time": other_word(TIMES, scene.time)}
        case "weather":
            return {"weather": "fog" if scene.weather == "clear" else "clear"}
        case "style":
            return {"style": other_word(STYLES, scene.style)}
        case "add":  # on the side that has room
            side = other_word(SIDES[1:], NONE, "left" if scene.layout.center_x < 0.5 else "right")
            return {"second": other_word(OBJECTS, scene.object), "side": side}
        case "remove":
            return {"second": NONE, "side": NONE}
    first, second = rng.choice(["object", "place", "time", "weather", "style"], size=2, replace=False)
    return {**changes_of(str(first), scene, rng), **changes_of(str(second), scene, rng)}


def drawn() -> dict[str, object]:
    """The whole file: every picture with four edits, all categories about equally often."""
    pictures, seed = [], FIRST_SEED
    for split, count in PICTURES.items():
        used: Counter[str] = Counter()
        for index in range(count):
            # Every second picture has a second object, so that there is one to remove as often as one to add.
            while True:
                scene = draw_scene(seed, "held_out")
                seed += 1
                if (scene.second != NONE) == (index % 2 == 1):
                    break
            rng = np.random.default_rng(seed)
            rest = [c for c in CATEGORIES if c not in ("add", "remove")]
            rest.sort(key=lambda category, rng=rng: (used[category], rng.random()))  # type: ignore[misc]
            chosen = ["remove" if scene.second != NONE else "add", *rest[: EDITS_OF_A_PICTURE - 1]]
            used.update(chosen)
            cases = []
            for category in chosen:
                changes = changes_of(category, scene, rng)
                kept = kept_pixels(render(scene), render(scene.edited(**changes))).mean()
                cases.append({"category": category, "changes": changes, "aligned": bool(kept >= ALIGNED_SHARE)})
            name = f"{split[0]}{index:02d}"
            pictures.append({"id": name, "split": split, "seed": seed - 1, "cases": cases})
    return {"version": VERSION, "pictures": pictures}


def main() -> None:
    file = drawn()
    entries = ",\n  ".join(json.dumps(picture) for picture in file["pictures"])  # type: ignore[attr-defined]
    FILE.write_text(f'{{"version": {VERSION}, "pictures": [\n  {entries}\n]}}\n')
    for split in PICTURES:
        cases = [case for picture in load(split) for case in picture.cases]
        print(
            split,
            len(cases),
            "cases,",
            sum(case.aligned for case in cases),
            "aligned",
            Counter(c.category for c in cases),
        )


if __name__ == "__main__":
    main()
