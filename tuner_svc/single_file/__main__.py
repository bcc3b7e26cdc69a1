"""Write a base model that is one .safetensors file as a diffusers folder, which every command takes.

    python -m tuner_svc.single_file MODEL.safetensors --out FOLDER
    ... --vae FILE --lora FILE:0.8 --fast-lora FILE --prediction v --clip-skip 2

The last line of stdout is the folder's path.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tuner_svc.few_steps import KINDS
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.model import Lora, Source, write_folder
from tuner_svc.single_file.prediction import PREDICTION_TYPES
from unitune.program_end import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser("python -m tuner_svc.single_file", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="a .safetensors file of Stable Diffusion 1.x, 2.x or XL")
    parser.add_argument("--out", type=Path, required=True, help="the folder, which must not be there yet")
    parser.add_argument("--vae", type=Path, help="an autoencoder in place of the file's own: a file or a folder")
    parser.add_argument(
        "--lora", type=_lora, action="append", default=[], metavar="FILE[:WEIGHT]", help="merged into the weights"
    )
    parser.add_argument(
        "--fast-lora", type=_lora, metavar="FILE[:WEIGHT]", help="added while sampling, for few steps; never tuned with"
    )
    parser.add_argument("--prediction", choices=tuple(PREDICTION_TYPES), help="what it predicts, if it does not say so")
    parser.add_argument(
        "--clip-skip", type=int, default=1, help="2 leaves the text encoder's last layer out  [default: 1]"
    )
    parser.add_argument(
        "--distilled", choices=(*KINDS, "no"), help="to few steps, it or its fast LoRA, if no name says so"
    )
    parser.add_argument("--steps", type=int, help="that it was distilled to, if no name says so")
    parser.add_argument("--config", type=Path, help="a diffusers folder of the same architecture, for an unusual one")
    options = parser.parse_args(arguments)
    source = Source(
        options.file,
        options.vae,
        tuple(options.lora),
        options.prediction,
        options.clip_skip,
        options.config,
        options.distilled,
        options.steps,
        options.fast_lora,
    )
    return exit_code("import", partial(write_folder, source, options.out, _say), options.out, UnusableBaseModel)


def _lora(text: str) -> Lora:
    """FILE or FILE:WEIGHT. Raises ArgumentTypeError for a weight that is no number."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Lora(Path(text))
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text}: its weight must be a number, as in FILE:0.8")
    return Lora(Path(path), number)


def _say(line: str) -> None:
    print(f"import: {line} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
