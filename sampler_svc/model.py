"""A base model, loaded to sample from: its graphs, its noise schedule, its weights and its engines."""

from dataclasses import asdict, dataclass
from pathlib import Path

from sampler_svc.base_graphs import BaseGraphs
from sampler_svc.config import AUTO
from sampler_svc.engine import EngineSpec, Weights
from sampler_svc.engine_folder import Manifest, UnusableEngine, open_folder
from sampler_svc.engine_pool import EnginePool
from sampler_svc.graph_layout import GraphLayout
from sampler_svc.in_place_engine import IN_PLACE, InPlaceEngine
from sampler_svc.ort_engine import NEW_SESSION, OrtEngine, backend
from sampler_svc.refit_weights import base_weights
from unitune.base_model import BaseModelSpec
from unitune.diffusion.schedule import Schedule

ENGINES = {NEW_SESSION: OrtEngine, IN_PLACE: InPlaceEngine}
IN_PLACE_BYTES = 16 << 20  # of weights: a new session costs a small model many of its steps, and a large one few


@dataclass(frozen=True)
class Model:
    """What one sampler process has loaded."""

    spec: BaseModelSpec
    schedule: Schedule
    graphs: BaseGraphs
    base: Weights
    pool: EnginePool
    engine: str  # the runtime in words

    @classmethod
    def open(cls, folder: Path, *, threads: int = 0, engines: int = 1, refit_mode: str = AUTO) -> "Model":
        """Load an engine folder; 0 threads means one for each core, `refit_mode` is one of REFIT_MODES.

        Raises UnusableEngine when it was built for another machine or runtime, is damaged or was not proven to be
        refitted in this mode, and DataLoss when the engine does not answer as it did when it was built.
        """
        runtime = backend()
        spec = open_folder(folder, runtime)
        base = base_weights(folder, spec)
        engine_spec = EngineSpec.of(spec)
        mode = _refit_mode(refit_mode, Manifest.load(folder), base)
        layout = GraphLayout(engine_spec, base.tensors)
        return cls(
            spec=spec,
            schedule=Schedule(**asdict(spec.schedule)),
            graphs=BaseGraphs(folder, spec, threads),
            base=base,
            pool=EnginePool(lambda: ENGINES[mode](folder, engine_spec, threads, layout), base, engines),
            engine=f"{runtime['runtime']} {runtime['version']} {runtime['device']}",
        )


def _refit_mode(wanted: str, manifest: Manifest, base: Weights) -> str:
    """Small models are refitted in place where the build has proven that (docs/decisions/refit-modes.md)."""
    if wanted == AUTO:
        size_bytes = sum(tensor.nbytes for tensor in base.tensors.values())
        return IN_PLACE if size_bytes <= IN_PLACE_BYTES and IN_PLACE in manifest.refit_modes else NEW_SESSION
    if wanted not in manifest.refit_modes:
        proven = ", ".join(manifest.refit_modes)
        raise UnusableEngine(f"UNITUNE_REFIT_MODE is {wanted!r}, which the build has not proven: use {proven}")
    return wanted
