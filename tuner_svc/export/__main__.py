"""Export a base model for the sampler: once per model, minutes for Stable Diffusion.

    python -m tuner_svc.export --base-model MODEL --out GRAPHS
    python -m tuner_svc.export --base-model MODEL --graphs-root ROOT     # ROOT/{digest}, if not there yet
    ... --fp16                                                           # and the fp16 graph, for engines on a GPU

The last line of stdout is the folder's path.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tuner_svc.export.exported_folder import DIGEST_CHARACTERS, ExportError, is_export_of
from tuner_svc.model_folder import UnusableBaseModel, digest
from unitune.free_memory import map_large_blocks
from unitune.program_end import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser("python -m tuner_svc.export", description="Export a base model for the sampler.")
    parser.add_argument(
        "--base-model", type=Path, required=True, help="a diffusers folder, Stable Diffusion 1.x, 2.x or XL"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="the graphs folder")
    where.add_argument("--graphs-root", type=Path, help="folder of graphs folders, each named by its model's digest")
    parser.add_argument("--fp16", action="store_true", help="also the denoiser in fp16, for engines on a GPU")
    options = parser.parse_args(arguments)
    map_large_blocks()
    out = options.out or options.graphs_root
    return exit_code("export", partial(_exported, options), out, UnusableBaseModel, ExportError)


def _exported(options: argparse.Namespace) -> Path:
    """The graphs folder, with what the arguments ask for."""
    model_digest = digest(options.base_model)
    found = options.out or options.graphs_root / model_digest[:DIGEST_CHARACTERS]
    if not options.fp16 and is_export_of(found, options.base_model, model_digest):
        return found
    # These load PyTorch, which takes seconds: nobody waits for it whose graphs are there or whose folder is no model.
    from tuner_svc.base_model import load
    from tuner_svc.export import fp16
    from tuner_svc.export.base_model import export, export_under

    if options.out:
        folder = export(options.base_model, options.out, _say)
    else:
        folder = export_under(options.base_model, options.graphs_root, _say)
    if options.fp16 and not fp16.is_complete(folder, model_digest):
        fp16.add_fp16_graph(folder, load(options.base_model), _say)
    return folder


def _say(stage: str) -> None:
    print(f"export: {stage} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
