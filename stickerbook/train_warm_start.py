"""Learn stickerbook's warm start from scenes of its training, and put it into the model's folder.

    nohup python -m stickerbook.train_warm_start --out out/warm_start &

It is what `unitune calibrate --warm-start` does with a user's photographs. About 25 minutes on two cores; interrupt it
at will: the same command goes on. No scene is one of EditBench's, which training never draws.
"""

import argparse
from pathlib import Path

import numpy as np

from stickerbook.render import render
from stickerbook.save_model import MODEL
from stickerbook.world import draw_scene
from tuner_svc.base_model import load
from tuner_svc.learn_warm_start import CHECKPOINT, ROUNDS, Learning, RoundLines, default_settings, learn
from unitune import images

FIRST_SEED = 7_000_000  # of the scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/warm_start"), help="folder for the checkpoint")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    model = load(MODEL, with_warm_start=False)

    def picture_of(number: int) -> np.ndarray:
        return images.to_model(render(draw_scene(FIRST_SEED + number)), model.image_side)

    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / CHECKPOINT
    learning = Learning.begin(model, default_settings(model))
    learning = learn(model, picture_of, learning, options.rounds, checkpoint, RoundLines(options.rounds))
    learning.stored(model).save(MODEL, MODEL)


if __name__ == "__main__":
    main()
