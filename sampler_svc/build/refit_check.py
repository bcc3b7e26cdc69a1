"""Checks that an engine on the CPU answers like the exported graph, with the base weights and with others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sampler_svc.build.builder import BuildError
from sampler_svc.engines.cpu import open_plain, open_refitted, session_options
from sampler_svc.engines.engine import Engine, EngineSpec, Probe, Tensors, WeightSet, probe_ratio, size_of
from sampler_svc.engines.folder import BASE_PROBE_SEED
from unitune.base_model import is_large
from unitune.errors import DataLoss
from unitune.hard_link import link_or_copy
from unitune.tensor_file import map_tensors, write_tensors

MAX_REFIT_RATIO = 1e-3  # of the effect of random weights; fp32 gives about 1e-5, one stale tensor 3e-3 and more


@dataclass(frozen=True)
class References:
    """What an engine must answer, with two sets of weights: the exported graph's answers without optimisation."""

    base: WeightSet
    other: WeightSet  # random, and so different in every tensor that a single stale one shows
    of_own_side: np.ndarray  # with the base weights, to the probe at the model's own height and width


def references(graph: Path, spec: EngineSpec, weights: Path, probe: Path, scratch: Path) -> References:
    """Asks the exported graph. Weights are read-only and lie in a file, the random ones in one in `scratch`. Writes the
    answer of the base weights to `probe`.

    Refits of a large graph are proven with small latents (`EngineSpec.check_side`). At its own size it is asked once.
    """
    tensors = map_tensors(weights)
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    places = {name: place for place, name in enumerate(tensors)}
    write_tensors(scratch / weights.name, kinds, lambda name: random_tensor(tensors[name], places[name]))
    link_or_copy(graph, scratch / graph.name)
    side, plain = spec.check_side, open_plain(graph)
    of_base = of_own = _answer(spec, plain, side)
    if side != spec.latent[1:]:
        of_own = _answer(spec, plain)
    del plain  # before the next is opened
    of_drawn = _answer(spec, open_plain(scratch / graph.name), side)
    save_file({"base": of_base}, probe)
    drawn = map_tensors(scratch / weights.name)
    return References(
        base=WeightSet("base", tensors, Probe(BASE_PROBE_SEED, of_base, of_base, side)),
        other=WeightSet("other", drawn, Probe(BASE_PROBE_SEED, of_drawn, of_base, side)),
        of_own_side=of_own,
    )


def check_refits(engine: Engine, expected: References) -> None:
    """Refits the engine with each set in turn, twice; a large engine with the other set once. Raises BuildError unless
    its answers are right, and bit-equal each time. Closes the engine."""
    base, other = expected.base, expected.other
    sets = (base, other, base) if is_large(size_of(base.tensors)) else (base, other, base, other)
    answers = []
    try:
        for weights in sets:
            ratio = engine.refit(weights).probe_ratio
            answers.append(np.asarray(engine.probe_answer))
            if weights is other and not 0 <= ratio < MAX_REFIT_RATIO:
                raise BuildError(f"the built engine is not refitted well enough: its probe ratio is {ratio:.3g}")
            if weights is base and len(answers) == 1 and base.probe.side != engine.spec.latent[1:]:
                own = Probe(BASE_PROBE_SEED, expected.of_own_side, expected.of_own_side)
                probe_ratio(engine.run(*engine.spec.question(own.seed)), own)
    except DataLoss as error:
        raise BuildError(f"the built engine does not answer like the exported graph: {error.message}") from error
    finally:
        engine.close()
    if not all(np.array_equal(first, again) for first, again in zip(answers, answers[2:], strict=False)):
        raise BuildError("the built engine does not come back to the same answers after a refit")


def random_weights(base: Tensors) -> dict[str, np.ndarray]:
    """A random tensor for each."""
    return {name: random_tensor(tensor, place) for place, (name, tensor) in enumerate(base.items())}


def random_tensor(base: np.ndarray, seed: int) -> np.ndarray:
    """A tensor that differs from the base so much that it alone, if it were stale, would show in the answer.

    Matrices are drawn at a scale that keeps a signal's size; norms and biases are shifted by about one.
    """
    # Uniform: of a large model, to draw them normally would take as long as a refit.
    noise = np.random.default_rng(seed).random(base.shape, dtype=np.float32)
    noise -= 0.5
    noise *= np.sqrt(12)  # so their variance is 1
    if base.ndim == 1:
        noise += base
    else:
        noise /= np.sqrt(np.prod(base.shape[1:]))
    return noise.astype(base.dtype, copy=False)


def reference_answer(graph: Path, spec: EngineSpec, tensors: Tensors) -> np.ndarray:
    """An exported graph's answer to the probe of BASE_PROBE_SEED with these tensors, without any optimisation."""
    arrays = {name: np.ascontiguousarray(tensor.to_graph(tensors[name])) for name, tensor in spec.tensors.items()}
    return _answer(spec, open_refitted(graph, session_options(0, "ORT_DISABLE_ALL"), arrays))


def _answer(spec: EngineSpec, session: Any, side: tuple[int, int] | None = None) -> np.ndarray:
    (answer,) = session.run(["out"], spec.inputs(*spec.question(BASE_PROBE_SEED, side)))
    return answer
