"""Edit three pictures that are not in the training data, through the real services, and judge the results.

    make demo

Writes the edited pictures, out/demo/sheet.png and out/demo/report.json. The pictures are of 256 px; the base model
edits them at 64 px, and its super-resolution enlarges what it drew. Each picture is tuned on once and edited with two
prompts. `success` is the judge's verdict (every attribute of the edited scene right), and `kept_psnr_db` compares the
pixels that the ground truth leaves alone with the picture given; both look at 64 px.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stickerbook.captions import caption
from stickerbook.judge import Judge
from stickerbook.render import kept_pixels, psnr_db, render
from stickerbook.world import FIRST_HELD_OUT_SEED, Scene, draw_scene
from unitune import images
from unitune_client import Client
from unitune_client.cli.outputs import Outputs, slug
from unitune_client.cli.sheet import contact_sheet
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

SIDE = 256  # of the pictures, which super-resolution makes
CASES = Path(__file__).parent.parent / "demo" / "cases.json"


@dataclass(frozen=True)
class DemoCase:
    """One picture of the demo: its file, its scene, and the scenes that its edits should become."""

    picture: Path
    scene: Scene
    edits: tuple[Scene, ...]


def load_cases(path: Path = CASES) -> list[DemoCase]:
    """The cases of a file: [{"picture", "seed", "scene": {...}, "edits": [{...}, ...]}, ...]."""
    cases = []
    for case in json.loads(path.read_text()):
        scene = draw_scene(FIRST_HELD_OUT_SEED + case["seed"], "held_out").edited(**case["scene"])
        edits = tuple(scene.edited(**changes) for changes in case["edits"])
        cases.append(DemoCase(path.parent / case["picture"], scene, edits))
    return cases


def draw_pictures(cases: list[DemoCase]) -> None:
    """Paint the pictures of the cases into their files, which are in the repository."""
    for case in cases:
        Image.fromarray(render(case.scene, SIDE)).save(case.picture)


def judged(case: DemoCase, wanted: Scene, edited: np.ndarray, judge: Judge) -> dict[str, object]:
    """The report of one edit, a picture as large as the one given."""
    original = render(case.scene)
    pixels = np.asarray(Image.fromarray(edited).reduce(len(edited) // len(original)))
    kept = kept_pixels(original, render(wanted))
    seen = judge.read(pixels[None])[0]
    return {
        "success": seen == wanted.attributes(),
        "kept_psnr_db": round(psnr_db(original, pixels, kept), 2),
        "kept_share": round(float(kept.mean()), 3),
        "seen": seen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--draw", action="store_true", help="paint the pictures of demo/cases.json anew and stop")
    options = parser.parse_args()
    cases = load_cases()
    if options.draw:
        draw_pictures(cases)
        return
    judge = Judge.load()
    options.out.mkdir(parents=True, exist_ok=True)
    stages = {"tune_s": 0.0, "refit_s": 0.0, "edit_s": 0.0}
    edits: list[dict[str, object]] = []
    rows = []
    started = time.monotonic()
    home = Home((options.out / "services").absolute())  # its own, so that services running elsewhere do not matter
    with LocalServices(home=home, log=say) as services, Client(services.address) as client:
        for case in cases:
            say(f"{case.picture.name}: {caption(case.scene)}; tuning on it, once for {len(case.edits)} edits")
            tuning = client.tune(case.picture)
            if tuning.start_time is not None and tuning.end_time is not None:
                stages["tune_s"] += (tuning.end_time - tuning.start_time).total_seconds()
            results = []
            for wanted in case.edits:
                result = client.edit_to_end(tuning, caption(wanted), automatic=True, super_resolution=True)
                stages["refit_s"] += result.timings.refit_s
                stages["edit_s"] += result.timings.total_s
                outputs = Outputs(options.out, case.picture.name, overwrites=True)
                file = outputs.save(result.images[0].png, slug(caption(wanted)))
                verdict = judged(case, wanted, images.decode(result.images[0].png, max_bytes=None), judge)
                edits.append({"picture": case.picture.name, "prompt": caption(wanted), "image": file.name, **verdict})
                outcome = "right" if verdict["success"] else "not right"
                say(f"  {caption(wanted)}: {outcome}, kept pixels {verdict['kept_psnr_db']} dB")
                results.append((caption(wanted), result.images[0].png))
            rows.append((case.picture.read_bytes(), results))
    contact_sheet(rows).save(options.out / "sheet.png")
    report = {
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
        "total_s": round(time.monotonic() - started, 1),
        "edits": edits,
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    right = sum(bool(edit["success"]) for edit in edits)
    say(f"{right} of {len(edits)} edits right; look at {options.out / 'sheet.png'}")


def say(line: str) -> None:
    """Progress goes to standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
