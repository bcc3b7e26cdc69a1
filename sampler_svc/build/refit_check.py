"""Checks that an engine on the CPU answers like the exported graph, with the base weights and with others."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sampler_svc.build.builder import BuildError
from sampler_svc.engines.cpu import open_plain, open_refitted, session_options
from sampler_svc.engines.engine import Engine, EngineSpec, Probe, Tensors, WeightSet, size_of
from sampler_svc.engines.folder import BASE_PROBE_SEED
from unitune.base_model import is_large
from unitune.errors import DataLoss
from unitune.hard_link import link_or_copy
from unitune.tensor_file import map_tensors, write_tensors

MAX_REFIT_RATIO = 1e-3  # of the effect of random weights; fp32 gives about 1e-5, one stale tensor 3e-3 and more


def base_and_random_weights(
    graph: Path, spec: EngineSpec, weights: Path, probe: Path, scratch: Path
) -> tuple[WeightSet, WeightSet]:
    """The base weights and random ones, each with the exported graph's answer. Both are read-only and lie in a file,
    the random ones in one in `scratch`. Writes the answer of the base weights to `probe`."""
    tensors = map_tensors(weights)
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    places = {name: place for place, name in enumerate(tensors)}
    write_tensors(scratch / weights.name, kinds, lambda name: random_tensor(tensors[name], places[name]))
    link_or_copy(graph, scratch / graph.name)
    of_base, of_drawn = (_answer(spec, open_plain(path)) for path in (graph, scratch / graph.name))
    save_file({"base": of_base}, probe)
    base = WeightSet("base", tensors, Probe(BASE_PROBE_SEED, of_base, of_base))
    return base, WeightSet("other", map_tensors(scratch / weights.name), Probe(BASE_PROBE_SEED, of_drawn, of_base))


def check_refits(engine: Engine, base: WeightSet, other: WeightSet) -> None:
    """Refits the engine with each set in turn, twice; a large engine with the other set once. Raises BuildError unless
    its answers are right, and bit-equal each time.

    `other` differs from `base` so much in every tensor that a single stale one shows. Closes the engine.
    """
    sets = (base, other, base) if is_large(size_of(base.tensors)) else (base, other, base, other)
    answers = []
    try:
        for weights in sets:
            ratio = engine.refit(weights).probe_ratio
            answers.append(np.asarray(engine.probe_answer))
            if weights is other and not 0 <= ratio < MAX_REFIT_RATIO:
                raise BuildError(f"the built engine is not refitted well enough: its probe ratio is {ratio:.3g}")
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
    noise = np.random.default_rng(seed).standard_normal(base.shape, dtype=np.float32)
    if base.ndim == 1:
        noise += base
    else:
        noise /= np.sqrt(np.prod(base.shape[1:]))
    return noise.astype(base.dtype, copy=False)


def reference_answer(graph: Path, spec: EngineSpec, tensors: Tensors) -> np.ndarray:
    """An exported graph's answer to the probe of BASE_PROBE_SEED with these tensors, without any optimisation."""
    arrays = {name: np.ascontiguousarray(tensor.to_graph(tensors[name])) for name, tensor in spec.tensors.items()}
    return _answer(spec, open_refitted(graph, session_options(0, "ORT_DISABLE_ALL"), arrays))


def _answer(spec: EngineSpec, session: Any) -> np.ndarray:
    (answer,) = session.run(["out"], spec.inputs(*spec.question(BASE_PROBE_SEED)))
    return answer
