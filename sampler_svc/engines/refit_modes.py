"""The two refit modes of ONNX Runtime on the CPU, and the choice between them."""

from collections.abc import Callable
from pathlib import Path

from sampler_svc.config import AUTO
from sampler_svc.engines.cpu import NEW_SESSION, OrtEngine
from sampler_svc.engines.cpu_in_place import IN_PLACE, InPlaceEngine
from sampler_svc.engines.engine import Engine, EngineSpec, Tensors, WeightSet
from sampler_svc.engines.folder import EngineManifest, UnusableEngine
from sampler_svc.engines.layout import GraphLayout

ENGINES = {NEW_SESSION: OrtEngine, IN_PLACE: InPlaceEngine}
# Of weights. For stickerbook (35 MB) opening a session takes as long as four steps; larger models are not measured.
IN_PLACE_BYTES = 64 << 20


def ort_opener(folder: Path, spec: EngineSpec, base: WeightSet, threads: int, refit_mode: str) -> Callable[[], Engine]:
    """Opens engines that share the base weights. Raises UnusableEngine for a mode that the build has not proven."""
    engine, layout = ENGINES[_chosen(refit_mode, EngineManifest.load(folder), base)], GraphLayout(spec, base.tensors)
    return lambda: engine(folder, spec, threads, layout)


def is_small(tensors: Tensors) -> bool:
    """Whether a base model with these weights is refitted in place by default."""
    return sum(tensor.nbytes for tensor in tensors.values()) <= IN_PLACE_BYTES


def _chosen(wanted: str, manifest: EngineManifest, base: WeightSet) -> str:
    """By default, small models are refitted in place if the build has proven it (docs/decisions/refit-modes.md)."""
    if wanted == AUTO:
        return IN_PLACE if is_small(base.tensors) and IN_PLACE in manifest.refit_modes else NEW_SESSION
    if wanted not in manifest.refit_modes:
        proven = ", ".join(manifest.refit_modes)
        raise UnusableEngine(f"UNITUNE_REFIT_MODE is {wanted!r}, which the build has not proven: use {proven}")
    return wanted
