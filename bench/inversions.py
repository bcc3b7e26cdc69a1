"""How well each inversion of Prompt-to-Prompt keeps the picture: edits to its own base prompt, and of its object.

    python -m bench.inversions --guidance 5 --pictures 6

The pictures are those of EditBench's development split that have an object edit. Prints the mean PSNR in dB: of the
edit to the base prompt, against the autoencoder's round trip, and of the pixels that the object edit should keep.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from bench.editbench.cases import Case, load
from bench.editbench.run import engine_folder
from bench.editbench.scores import score
from bench.edits import edited
from bench.inputs import MODEL
from sampler_svc.engines.engine import BASE, Engine
from sampler_svc.model import Model
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.request import Request
from stickerbook.captions import caption
from stickerbook.judge import Judge
from stickerbook.render import psnr_db, render
from tuner_svc.base_model import BaseModel
from tuner_svc.base_model import load as load_model
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.choices import INVERSIONS, NULL_TEXT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--updates", type=int, default=10, help="of null-text, for each step")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of null-text")
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("out/inversions"))
    options = parser.parse_args()
    model, tuner, judge = Model.open(engine_folder(MODEL, options.out), threads=1), load_model(MODEL), Judge.load()
    steps = model.spec.preset.method_preset("prompt_to_prompt").num_inference_steps
    cases = [case for picture in load("development") for case in picture.cases if case.category == "object"]
    itself: dict[str, list[float]] = {inversion: [] for inversion in INVERSIONS}
    kept, right = {inversion: list[float]() for inversion in INVERSIONS}, dict.fromkeys(INVERSIONS, 0)
    with model.controlled.lease(BASE, lambda: model.base) as lease:
        for case in cases[: options.pictures]:
            config = TuningConfig(
                method=NULL_TEXT,
                base_prompt=caption(case.scene),
                updates=options.updates,
                learning_rate=options.learning_rate,
                num_inference_steps=steps,
                guidance_scale=options.guidance,
            )
            nulls = null_embeddings(tuner, case, config)
            decoded = edit_by_branches(
                model, lease.engine, case, caption(case.scene), config, AttentionEdit(), strength=0.0
            )
            for inversion in INVERSIONS:
                # The shares of the figure in docs/methods/prompt_to_prompt.md.
                attention = AttentionEdit(0.4, 0.2, inversion, nulls=nulls if inversion == NULL_TEXT else None)
                same = edit_by_branches(model, lease.engine, case, caption(case.scene), config, attention)
                itself[inversion].append(psnr_db(decoded, same, np.ones(same.shape[:2], dtype=bool)))
                found = score(case, edit_by_branches(model, lease.engine, case, case.prompt, config, attention), judge)
                if found.kept_psnr_db is not None:
                    kept[inversion].append(found.kept_psnr_db)
                right[inversion] += found.success
            print(f"{case.id}: {', '.join(f'{i} {itself[i][-1]:.1f} dB' for i in INVERSIONS)}", file=sys.stderr)
    for inversion in INVERSIONS:
        figures = f"itself {np.mean(itself[inversion]):.1f} dB, object edit keeps {np.mean(kept[inversion]):.1f} dB"
        print(f"{inversion}: {figures}, right in {right[inversion]} of {len(itself[inversion])}")


def null_embeddings(tuner: BaseModel, case: Case, config: TuningConfig) -> np.ndarray:
    """Null-text's embeddings for a case's picture, (steps, tokens, width)."""
    image = images.to_model(render(case.scene), tuner.image_side)
    nulls: np.ndarray = tune(tuner, image, config).extras["nulls"].numpy()
    return nulls


def edit_by_branches(
    model: Model,
    engine: Engine,
    case: Case,
    prompt: str,
    config: TuningConfig,
    attention: AttentionEdit,
    strength: float = 1.0,
) -> np.ndarray:
    """The edited picture, uint8 (64, 64, 3)."""
    request = Request(
        image=images.encode_png(render(case.scene)),
        prompt=prompt,
        base_prompt=config.base_prompt,
        scheduler="ddim",
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        strength=strength,
        seeds=(0,),
        attention=attention,
    )
    return edited(model, engine, request)


if __name__ == "__main__":
    main()
