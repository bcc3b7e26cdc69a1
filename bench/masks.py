"""How well masks of named objects fit: IoU with the exact masks of held-out scenes, main and second objects.

    python -m bench.masks --scenes 200
    python -m bench.masks --figure docs/methods/masks.png

The first writes report.json and sheet.png (picture, mask, true mask) under out/masks; the second draws the figure of
docs/methods/masks.md, without a measurement. A second object is smaller, and often half hidden. The edit's prompt,
whose words are not used for contrast, is the scene's caption.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from bench.editbench.run import engine_folder
from bench.edits import results
from bench.inputs import DEMO, MODEL
from sampler_svc.engines.engine import BASE
from sampler_svc.model import Model
from sampler_svc.sampling.masks.contrast import contrasts, finder, others
from sampler_svc.sampling.request import Request
from stickerbook.captions import caption
from stickerbook.render import SIDE, object_mask, render
from stickerbook.world import FIRST_HELD_OUT_SEED, NONE, Scene, draw_scene
from unitune import images
from unitune.images import Mask, Pixels

FIGURE = (
    ("cat", "cat", "a dog"),
    ("car", "car", "a bus"),
    ("penguin", "penguin", "a snowman"),
)  # picture, named object, prompt
FIRST_SEED = FIRST_HELD_OUT_SEED + 300_000
SCENES, SHOWN = 200, 24  # of the sheet: objects, main and second
COLUMNS, SCALE, GAP = 3, 2, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--out", type=Path, default=Path("out/masks"))
    parser.add_argument("--figure", type=Path, help="draw the page's figure into this file instead")
    options = parser.parse_args()
    model = Model.open(engine_folder(MODEL, options.out), threads=1)
    if options.figure is not None:
        figure(model).save(options.figure, optimize=True)
        return
    found: dict[str, list[float]] = {"main": [], "second": []}
    panels: list[tuple[Pixels, Mask, Mask]] = []
    with model.pool.lease(BASE, lambda: model.base) as lease:
        for index in range(options.scenes):
            scene = draw_scene(FIRST_SEED + index, "held_out")
            for kind, name in objects(scene):
                find = finder(
                    model.graphs, model.schedule, lease.engine.run, [name], caption(scene), cancelled=lambda: False
                )
                picture, true = render(scene), object_mask(scene, name).astype(np.float32)
                panels.append((picture, find(picture), true))
                found[kind].append(iou(*panels[-1][1:]))
            if (index + 1) % 10 == 0:
                print(f"{index + 1} of {options.scenes} scenes", file=sys.stderr, flush=True)
    report = {
        kind: {"mean_iou": round(float(np.mean(ious)), 3), "objects": len(ious)} for kind, ious in found.items() if ious
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    sheet(panels[:SHOWN]).save(options.out / "sheet.png")
    for kind, values in report.items():
        print(f"{kind} objects: mean IoU {values['mean_iou']:.3f} over {values['objects']}")
    print("a second object beside or behind the main one is often missed: look at the mask that comes with the edit")
    print(f"{options.out / 'report.json'}\n{options.out / 'sheet.png'}")


def figure(model: Model) -> Image.Image:
    """Per edit a row of picture, contrast of the named object, mask, and the picture edited within it."""
    rows = []
    with model.pool.lease(BASE, lambda: model.base) as lease:
        run, graphs, schedule = lease.engine.run, model.graphs, model.schedule
        for picture_name, name, prompt in FIGURE:
            file = (DEMO / f"{picture_name}.png").read_bytes()
            picture = images.decode(file)
            among = others(model.spec.vocabulary, (name, prompt))
            (contrast,) = contrasts(graphs, schedule, run, picture, [name], among)
            shown = np.clip((contrast - contrast.min()) / np.ptp(contrast), 0, 1)
            request = Request(file, prompt, "ddim", 50, 5.0, 0.9, (0,), 1.0, mask_source="word", mask_text=name)
            find = finder(graphs, schedule, run, [name], prompt, lambda: False)
            (edited,) = results(request, model.tools(run, find=find))
            mask = images.decode_mask(edited.mask, picture.shape[:2])
            rows.append([picture, grey(shown), grey(mask), images.decode(edited.png)])
    side = SCALE * SIDE
    page = Image.new("RGB", (len(rows[0]) * (side + GAP) - GAP, len(rows) * (side + GAP) - GAP), (250, 250, 248))
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            small = Image.fromarray(panel).resize((side, side), Image.Resampling.NEAREST)
            page.paste(small, (x * (side + GAP), y * (side + GAP)))
    return page


def grey(values: Mask) -> Pixels:
    """A map of 0 to 1 as a picture."""
    return np.repeat((255 * values).astype(np.uint8)[..., None], 3, axis=2)


def objects(scene: Scene) -> list[tuple[str, str]]:
    """Main and second object, each only if it is visible."""
    named = [("main", scene.object), *([("second", scene.second)] if scene.second != NONE else [])]
    return [(kind, name) for kind, name in named if object_mask(scene, name).any()]


def iou(mask: Mask, true: Mask) -> float:
    """Intersection over union of two masks of 0 and 1, not both empty."""
    return float(np.minimum(mask, true).sum() / np.maximum(mask, true).sum())


def sheet(panels: list[tuple[Pixels, Mask, Mask]]) -> Image.Image:
    """Picture, mask and true mask beside each other, COLUMNS of these in a row."""
    side = SCALE * SIDE
    width, height, rows = 3 * side + GAP, side + GAP, -(-len(panels) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), (250, 250, 248))
    for index, (picture, *masks) in enumerate(panels):
        left, top = GAP + index % COLUMNS * width, GAP + index // COLUMNS * height
        row = Image.fromarray(np.concatenate([picture, *map(grey, masks)], axis=1))
        page.paste(row.resize((3 * side, side), Image.Resampling.NEAREST), (left, top))
    return page


if __name__ == "__main__":
    main()
