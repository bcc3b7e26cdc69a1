"""Whether `unitune calibrate`, which knows no ground truth, finds the settings that EditBench's ground truth found.

    python -m bench.editbench.calibrated

Paints three development scenes as photographs of one subject, calibrates on them with two prompts, and compares the
choice with the sweeps on the development split (docs/editbench.md). Exit status 1: it is outside of what these found
good. Takes about eight minutes on two idle cores; --out has the sheets.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from bench.editbench.cases import load
from stickerbook.render import render
from unitune_client.local.machine import PRESET_FILE

PICTURES = ("d24", "d21", "d06")  # their layouts; one prompt must suit all photographs of a calibration
SCENE = {
    "object": "duck",
    "place": "city",
    "time": "day",
    "weather": "clear",
    "style": "drawing",
    "second": "none",
    "side": "none",
}
PROMPTS = ("a penguin in a city by day", "a duck in a city at night")
TRIED = {
    "--updates": (64, 128, 192),
    "--learning-rate": (1e-4,),
    "--strength": (0.8, 0.9, 1.0),
    "--guidance": (1.0, 2.5, 4.0, 8.0),
}
# What the sweeps found good: 64 updates keep less and 192 change less; strength and guidance of the preset, and those
# of automatic settings.
GOOD_UPDATES = (128,)
GOOD_POINTS = ((1.0, 2.5), (0.9, 4.0))


def main() -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/calibrated"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    photos = []
    for picture in load("development"):
        if picture.id in PICTURES:
            photos.append(options.out / f"{picture.id}.png")
            Image.fromarray(render(picture.scene.edited(**SCENE))).save(photos[-1])
    command = [sys.executable, "-m", "unitune_client", "calibrate", *map(str, photos)]
    command += [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    command += [part for flag, values in TRIED.items() for value in values for part in (flag, f"{value:g}")]
    done = subprocess.run([*command, "--out", str(options.out), "--overwrite"])
    if done.returncode != 0:
        return done.returncode
    chosen = json.loads((options.out / PRESET_FILE).read_text())["methods"]["unitune"]
    point = (chosen["strength"], chosen["guidance_scale"])
    is_good = chosen["updates"] in GOOD_UPDATES and point in GOOD_POINTS
    print(f"{chosen}: {'as' if is_good else 'NOT as'} the sweeps with a ground truth")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
