"""A refit from the stored weights to the proven engine, against a build and a denoising step; and its parts.

Two tunings of all tensors, stored like the tuner's, are used in turns, so that every refit writes everything.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path

import numpy as np

from bench.measure import Ratio, in_turns, spread
from bench.refit_modes import disturbed_tensors, stepping
from sampler_svc.build.refit_check import reference_answer
from sampler_svc.engines.engine import EngineSpec
from sampler_svc.engines.folder import BASE_PROBE_SEED
from sampler_svc.engines.weights import tuned_weights
from sampler_svc.model import Model
from tuner_svc.config import DEFAULT_CODEC
from unitune.codecs import decode, encode
from unitune.graph_files import DENOISER
from unitune.object_store import ObjectStore
from unitune.weights import Manifest, pack

PARTS = ("read and checked", "decoded", "written and proven")


def refits(model: Model, graphs: Path, build_s: float, prompt: str, rounds: int) -> dict[str, object]:
    """Seconds and ratios; `build_s` is what building the same engine took."""
    parts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = ObjectStore(folder)
        refit = refitting(model, store, [stored(model, graphs, store, number) for number in (1, 2)], parts)
        taken = in_turns({"refit": refit, "step": stepping(model, prompt)}, rounds)
    return {
        "refit.s": {name: round(one.median_s, 4) for name, one in taken.items()} | {"build": round(build_s, 4)},
        "refit.parts.s": {name: round(statistics.median(seconds[1:]), 4) for name, seconds in parts.items()},
        "refit.denoising_steps": asdict(Ratio.divide(taken["refit"], taken["step"])),
        "refit.ratio_to_build": spread([refit_s / build_s for refit_s in taken["refit"].seconds]),  # one build
    }


def stored(model: Model, graphs: Path, store: ObjectStore, number: int) -> Manifest:
    """Store a tuning: every tensor is moved a hundredth or two towards a random one."""
    base = model.base.tensors
    parts = encode(disturbed_tensors(model, base, number), base, DEFAULT_CODEC)
    answer = reference_answer(
        graphs / DENOISER, EngineSpec.from_model(model.spec), {**base, **decode(parts, base, DEFAULT_CODEC)}
    )
    data, manifest = pack(
        parts, probe_tuned=answer, probe_base=model.base.probe.expected, key=str(number), base_model=model.spec.digest,
        method="unitune", rare_tokens="", updates=number, probe_seed=BASE_PROBE_SEED, codec=DEFAULT_CODEC,
    )  # fmt: skip
    store.put_weights(manifest.key, data, manifest)
    return manifest


def refitting(
    model: Model, store: ObjectStore, manifests: list[Manifest], parts: dict[str, list[float]]
) -> Callable[[], object]:
    """One refit with the next of the stored tunings; the seconds of its parts are added to `parts`."""
    turns = cycle(manifests)

    def work() -> None:
        manifest = next(turns)
        times = [time.perf_counter()]
        tuned = store.get_weights(manifest.key, manifest.digest)
        times.append(time.perf_counter())
        weights = tuned_weights(tuned, model.base, model.spec.digest)
        weights = replace(weights, tensors=dict(weights.tensors))  # decoded here, to be timed
        times.append(time.perf_counter())
        with model.pool.lease(weights.id, lambda: weights) as lease:
            times.append(time.perf_counter())
            assert not lease.warm
        for name, seconds in zip(PARTS, np.diff(times), strict=True):
            parts.setdefault(name, []).append(float(seconds))

    return work
