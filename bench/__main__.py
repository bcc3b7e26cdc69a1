"""Measure every stage against a peer. Writes out/bench/report.json, and report.png, which shows it.

    make bench

Ours and the peer's take turns in one process, with the same model, steps and threads. Run it on an idle machine.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.chart import draw
from bench.edits import edited
from bench.inputs import GUIDANCE, MODEL, PICTURE, PROMPT
from bench.measure import Measured, Ratio, claimed, in_turns, psnr_db, seconds, spread
from bench.peers.diffusers_dreambooth import dreambooth
from bench.peers.diffusers_edit import DiffusersEdit
from bench.program import options_of, say, show
from bench.refit_modes import refit_modes
from bench.refits import refits
from bench.roofline import roofline
from bench.served_tuning import served_tuning
from bench.serving import serving
from bench.true_size import stages_of_small
from sampler_svc.build.folder import build
from sampler_svc.engines.engine import BASE
from sampler_svc.model import Model
from sampler_svc.sampling.request import Request
from tuner_svc import base_model
from tuner_svc.config import DEFAULT_CODEC
from tuner_svc.export.base_model import export
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images

TUNING_UPDATES = 16  # of the paper's 128: every update costs the same


def main() -> None:
    parser = options_of(__doc__, rounds=7)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as scratch:
        graphs = export(MODEL, Path(scratch) / "graphs", say)
        say("building the engine")
        folder = Path(scratch) / "engine"
        build_s = seconds(lambda: build(graphs, folder))
        model = Model.open(folder)
        report: dict[str, Any] = {
            **edits(model, options.rounds),
            **refits(model, graphs, build_s, PROMPT, options.rounds),
            **refit_modes(graphs, folder, PICTURE.read_bytes(), PROMPT, options.rounds),
            **tunings(max(options.rounds // 2, 1 if options.quick else 2)),
        }
        step_s = report["refit.s"]["step"]
        report |= roofline(base_model.load(MODEL), quick=options.quick, engine_step_s=step_s)
        model.pool.close()
    report |= served_tuning(max(options.rounds // 2, 1 if options.quick else 2), quick=options.quick)
    report |= serving(options.rounds, quick=options.quick)
    report |= stages_of_small()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.out / "report.png")
    show(report)


def edits(model: Model, rounds: int) -> dict[str, object]:
    """One edit from pure noise, all steps, against the same edit by every peer; and the pictures' PSNR."""
    peers, absent = peers_here()
    shape = (1, model.spec.latent_channels, *model.spec.latent_side)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)  # the draws of our seed 0
    found: dict[str, object] = {}
    for steps in (20, 50):
        say(f"edit of {steps} steps")
        request = Request(PICTURE.read_bytes(), PROMPT, "ddim", steps, GUIDANCE, strength=1.0, seeds=(0,))

        def ours(request: Request = request) -> np.ndarray:
            return edited(model, leased.engine, request)

        works: dict[str, Callable[[], np.ndarray]] = {"ours": ours}
        works |= {name: partial(peer, PROMPT, steps, GUIDANCE, noise) for name, peer in peers.items()}
        with model.pool.lease(BASE, lambda: model.base) as leased:
            picture = ours()
            alike_db = {name: psnr_db(picture, works[name]()) for name in peers}
            taken = in_turns(works, rounds)
        key = f"edit.{steps}_steps"
        found[f"{key}.s"] = medians(taken)
        for name in peers:
            found[f"{key}.ratio_to_{name}"] = claimed(taken["ours"], taken[name], alike_db[name])
        found |= {f"{key}.ratio_to_{name}": {"refused": f"not run: {reason}"} for name, reason in absent.items()}
        found[f"{key}.psnr_db"] = {name: round(alike, 1) for name, alike in alike_db.items()}
    # The headline: 50 steps.
    return found | {"edit.ratio_to_diffusers_eager": found["edit.50_steps.ratio_to_diffusers_eager"]}


def peers_here() -> tuple[dict[str, DiffusersEdit], dict[str, str]]:
    """The peers that this machine can run, by name, and the reason why it cannot run each of the others."""
    peers, absent = {"diffusers_eager": DiffusersEdit(MODEL)}, {}
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        peers["torch_compile"] = DiffusersEdit(MODEL, compiled=True)
    else:
        absent["torch_compile"] = "there is no C++ compiler (c++, g++ or clang++)"
    try:
        from bench.peers.openvino_edit import OpenVinoEdit
    except ImportError:
        absent["openvino"] = "openvino is not installed: pip install openvino"
    else:
        peers["openvino"] = OpenVinoEdit(MODEL)
    for name, reason in absent.items():
        say(f"not run: {name}, since {reason}")
    return peers, absent


def tunings(rounds: int) -> dict[str, object]:
    """The same updates by our tuner and by diffusers' DreamBooth loop; both include loading the model."""
    say(f"tuning of {TUNING_UPDATES} updates")
    image = images.to_model(images.decode(PICTURE.read_bytes()), (64, 64))

    def ours() -> object:
        return tune(base_model.load(MODEL), image, TuningConfig(updates=TUNING_UPDATES))

    def theirs() -> None:
        dreambooth(MODEL, image, "beikkpic", TUNING_UPDATES, batch=4, learning_rate=1e-4)

    taken = in_turns({"ours": ours, "diffusers dreambooth": theirs}, rounds)
    model, config = base_model.load(MODEL), TuningConfig(updates=TUNING_UPDATES)
    _, manifest = pack_tuned(model, tune(model, image, config), config, "bench", DEFAULT_CODEC)
    fp16_bytes = 2 * sum(tensor.numel() for tensor in model.tensors().values())
    return {
        "weights.ratio_to_fp16_full": spread([manifest.size_bytes / fp16_bytes]),  # bytes do not vary
        "tuning.s": medians(taken),
        "tuning.ratio_to_diffusers_dreambooth": asdict(Ratio.divide(taken["ours"], taken["diffusers dreambooth"])),
    }


def medians(taken: dict[str, Measured]) -> dict[str, float]:
    """Seconds by name."""
    return {name: round(measured.median_s, 4) for name, measured in taken.items()}


if __name__ == "__main__":
    main()
