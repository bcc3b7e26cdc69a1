"""Both refit modes of one engine, in turns: seconds of a refit, a step and an edit, and memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from bench.edits import results
from bench.inputs import GUIDANCE
from bench.measure import Ratio, in_turns
from sampler_svc.build.refit_check import random_weights, reference_answer
from sampler_svc.engines.engine import BASE, Array, EngineSpec, Probe, WeightSet
from sampler_svc.engines.folder import BASE_PROBE_SEED, EngineManifest
from sampler_svc.model import Model
from sampler_svc.sampling.request import Request
from unitune.graph_files import DENOISER

EDIT_STEPS = (8, 20, 50)


def refit_modes(graphs: Path, folder: Path, image: bytes, prompt: str, rounds: int) -> dict[str, object]:
    """Every edit gets other weights than the one before, so that each needs a refit."""
    models, memory = {}, {}
    for mode in EngineManifest.load(folder).refit_modes:
        before = resident_bytes()
        models[mode] = Model.open(folder, refit_mode=mode)
        memory[mode] = resident_bytes() - before
    some = next(iter(models.values()))
    tuned = [name for name in some.base.tensors if ".to_out." in name]
    sets = {"all": list(some.base.tensors), "attn_out": tuned}
    found: dict[str, Any] = {"refit_modes.opened_mb": {mode: round(size / 1e6, 1) for mode, size in memory.items()}}

    for label, names in sets.items():
        refits = {mode: refitting(model, two_sets(graphs, model, names)) for mode, model in models.items()}
        found |= ratios(f"refit_modes.refit_of_{label}", refits, rounds)
    found |= ratios("refit_modes.step", {mode: stepping(model, prompt) for mode, model in models.items()}, rounds)
    refit_s, step_s = found["refit_modes.refit_of_all.s"], found["refit_modes.step.s"]
    found["refit_modes.refit_in_steps"] = {mode: round(refit_s[mode] / step_s[mode], 2) for mode in models}
    for steps in EDIT_STEPS:
        request = Request(image, prompt, "ddim", steps, GUIDANCE, strength=1.0, seeds=(0,))
        edits = {mode: editing(model, two_sets(graphs, model, tuned), request) for mode, model in models.items()}
        found |= ratios(f"refit_modes.edit_of_{steps}_steps", edits, rounds)
    for model in models.values():
        model.pool.close()
    return found


def two_sets(graphs: Path, model: Model, names: list[str]) -> Iterator[WeightSet]:
    """Two sets of weights in turns, which differ in the named tensors."""
    sets = []
    for number in (1, 2):
        tensors = {**model.base.tensors, **disturbed_tensors(model, names, number)}
        answer = reference_answer(graphs / DENOISER, EngineSpec.from_model(model.spec), tensors)
        name = f"set {number} of {len(names)} tensors"  # not a name of the last two sets, which the pool may hold
        sets.append(WeightSet(name, tensors, Probe(BASE_PROBE_SEED, answer, model.base.probe.expected)))
    return cycle(sets)


def disturbed_tensors(model: Model, names: Iterable[str], number: int) -> dict[str, Array]:
    """The named tensors of the base, plus `number` hundredths of random ones."""
    base, drawn = model.base.tensors, random_weights(model.base.tensors)
    return {name: np.add(base[name], np.float32(0.01 * number) * drawn[name]) for name in names}


def refitting(model: Model, sets: Iterator[WeightSet]) -> Callable[[], object]:
    """One refit."""

    def work() -> None:
        weights = next(sets)
        with model.pool.lease(weights.id, lambda: weights) as lease:
            assert not lease.warm

    return work


def stepping(model: Model, prompt: str) -> Callable[[], object]:
    """One denoising step of batch 2."""
    shape = (2, model.spec.latent_channels, *model.spec.latent_side)
    latents = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    contexts = np.stack([model.graphs.embed(prompt), model.graphs.embed("")])

    def work() -> None:
        held = model.pool.resident()  # with any weights: no refit
        with model.pool.lease(held[0] if held else BASE, lambda: model.base) as lease:
            lease.engine.run(latents, np.array([500, 500]), contexts)

    return work


def editing(model: Model, sets: Iterator[WeightSet], request: Request) -> Callable[[], object]:
    """One edit with its refit."""

    def work() -> None:
        weights = next(sets)
        with model.pool.lease(weights.id, lambda: weights) as lease:
            results(request, model.tools(lease.engine.run))

    return work


def ratios(name: str, works: dict[str, Callable[[], object]], rounds: int) -> dict[str, object]:
    """Seconds of each mode, and the ratio of the second to the first if there are two."""
    taken = in_turns(works, rounds)
    first, *others = taken
    found: dict[str, object] = {f"{name}.s": {mode: round(one.median_s, 4) for mode, one in taken.items()}}
    for mode in others:
        found[f"{name}.{mode}_to_{first}"] = asdict(Ratio.divide(taken[mode], taken[first]))
    return found


def resident_bytes() -> int:
    """This process's resident memory; 0 if the system does not tell it."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * 4096
