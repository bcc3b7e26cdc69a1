"""Checks that an engine on the CPU answers like the exported graph, with the base weights and with others."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from sampler_svc.build.builder import BuildError
from sampler_svc.engines.cpu import open_refitted, session_options
from sampler_svc.engines.engine import Engine, EngineSpec, Probe, Tensors, WeightSet
from sampler_svc.engines.folder import BASE_PROBE_SEED
from unitune.errors import DataLoss

MAX_REFIT_RATIO = 1e-3  # of the effect of random weights; fp32 gives about 1e-5, one stale tensor 3e-3 and more


def base_and_random_weights(graph: Path, spec: EngineSpec, weights: Path, probe: Path) -> tuple[WeightSet, WeightSet]:
    """The base weights, read-only, and random ones, each with the exported graph's answer. Writes that of the base to
    `probe`."""
    tensors = load_file(weights)
    drawn = random_weights(tensors)
    of_base, of_drawn = (reference_answer(graph, spec, each) for each in (tensors, drawn))
    save_file({"base": of_base}, probe)
    for tensor in tensors.values():
        tensor.flags.writeable = False
    base = WeightSet("base", tensors, Probe(BASE_PROBE_SEED, of_base, of_base))
    return base, WeightSet("other", drawn, Probe(BASE_PROBE_SEED, of_drawn, of_base))


def check_refits(engine: Engine, base: WeightSet, other: WeightSet) -> None:
    """Refits the engine twice with each set. Raises BuildError unless its answers are right and bit-equal both times.

    `other` differs from `base` so much in every tensor that a single stale one shows. Closes the engine.
    """
    answers = []
    try:
        for weights in (base, other, base, other):
            ratio = engine.refit(weights).probe_ratio
            answers.append(engine.run(*engine.spec.question(BASE_PROBE_SEED)))
            if weights is other and not 0 <= ratio < MAX_REFIT_RATIO:
                raise BuildError(f"the built engine is not refitted well enough: its probe ratio is {ratio:.3g}")
    except DataLoss as error:
        raise BuildError(f"the built engine does not answer like the exported graph: {error.message}") from error
    finally:
        engine.close()
    if not (np.array_equal(answers[0], answers[2]) and np.array_equal(answers[1], answers[3])):
        raise BuildError("the built engine does not come back to the same answers after a refit")


def random_weights(base: Tensors) -> dict[str, np.ndarray]:
    """Weights that differ from the base so much in every tensor that a single stale one shows in the answer.

    Matrices are drawn at a scale that keeps a signal's size; norms and biases are shifted by about one.
    """
    rng = np.random.default_rng(0)
    drawn = {}
    for name, tensor in base.items():
        noise = rng.standard_normal(tensor.shape)
        value = np.add(tensor, noise) if tensor.ndim == 1 else noise / np.sqrt(np.prod(tensor.shape[1:]))
        drawn[name] = value.astype(tensor.dtype)
    return drawn


def reference_answer(graph: Path, spec: EngineSpec, tensors: Tensors) -> np.ndarray:
    """An exported graph's answer to the probe of BASE_PROBE_SEED with these tensors, without any optimisation."""
    arrays = {name: np.ascontiguousarray(tensor.to_graph(tensors[name])) for name, tensor in spec.tensors.items()}
    session = open_refitted(graph, session_options(0, "ORT_DISABLE_ALL"), arrays)
    (answer,) = session.run(["out"], spec.inputs(*spec.question(BASE_PROBE_SEED)))
    return answer
