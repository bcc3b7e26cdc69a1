"""Build for ONNX Runtime on this CPU.

The build applies the optimisations that hold for any weights on any CPU; the rest happens when the graph is loaded. A
second graph, for refits in place, has this CPU's layout of convolutions (sampler_svc/build/cpu_layout.py).
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sampler_svc.build.builder import DENOISER_DATA, EXPORT_AGAIN, BackendBuilder, BuildError, link_others
from sampler_svc.build.cpu_layout import lay_out
from sampler_svc.build.refit_check import check_refits, references
from sampler_svc.engines.cpu import (
    NEW_SESSION,
    OFFLINE_OPTIMISATION,
    OrtEngine,
    backend,
    open_session,
    session_options,
)
from sampler_svc.engines.cpu_in_place import IN_PLACE, InPlaceEngine
from sampler_svc.engines.engine import EngineSpec
from sampler_svc.engines.folder import PROBE_FILE
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.onnx_file import SMALL_BYTES, initializers, put_outside
from sampler_svc.engines.refit_modes import is_small
from unitune.base_model import SPEC_FILE, BaseModelSpec
from unitune.graph_files import DENOISER
from unitune.tensor_file import map_tensors, read_places


def onnxruntime_builder() -> BackendBuilder:
    """ONNX Runtime on this CPU."""
    return BackendBuilder(backend(), DENOISER, (SPEC_FILE,), check_graph, _fill, verify)


def check_graph(graphs: Path, spec: BaseModelSpec) -> None:
    """Raises BuildError unless every tensor of the specification is a weight of the denoiser that can be refitted."""
    found = initializers((graphs / DENOISER).read_bytes())
    for name, tensor in spec.tensors.items():
        if name not in found:
            raise BuildError(f"the denoiser has no weight called {name}; {EXPORT_AGAIN}")
        if found[name].outside is None:
            raise BuildError(
                f"{name} is stored inside the denoiser's graph, where it cannot be refitted; {EXPORT_AGAIN}"
            )
        if found[name].shape != tensor.shape_in_graph:
            shapes = f"{found[name].shape} in the graph and must be {tensor.shape_in_graph}"
            raise BuildError(f"{name} is {shapes}; {EXPORT_AGAIN}")
        if tensor.layout == "transposed":
            raise BuildError(f"{name} is transposed in the graph, unlike in the file of weights; {EXPORT_AGAIN}")


def verify(graphs: Path, engine_folder: Path, spec: BaseModelSpec) -> tuple[str, ...]:
    """The refit modes in which the engine answers like the exported graph without optimisation.

    Raises BuildError when not even a new session does.
    """
    engine_spec = EngineSpec.from_model(spec)
    weights, probe = engine_folder / spec.base_weights, engine_folder / PROBE_FILE
    with TemporaryDirectory(dir=engine_folder, prefix=".scratch-") as scratch:
        expected = references(graphs / DENOISER, engine_spec, weights, probe, Path(scratch))
        layout = GraphLayout(engine_spec, expected.base.tensors)
        check_refits(OrtEngine(engine_folder, engine_spec, layout=layout), expected)
        try:
            check_refits(InPlaceEngine(engine_folder, engine_spec, layout=layout), expected)
        except BuildError as error:
            print(f"build: {error}; every refit will open a new session", file=sys.stderr)
            return (NEW_SESSION,)
    return (NEW_SESSION, IN_PLACE)


def _fill(folder: Path, graphs: Path, spec: BaseModelSpec) -> None:
    """Write all files except manifest and probe: the denoiser's graph is optimised, the others are shared."""
    link_others(folder, graphs, spec)
    options = session_options(0, OFFLINE_OPTIMISATION, is_packed=False)
    options.optimized_model_filepath = str(folder / DENOISER)
    for setting, value in (("file_name", DENOISER_DATA), ("min_size_in_bytes", str(SMALL_BYTES))):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{setting}", value)
    open_session(graphs / DENOISER, options)
    try:
        weights = folder / spec.base_weights
        put_outside(folder, DENOISER, spec.tensors.keys(), (weights.name, read_places(weights)))
    except ValueError as error:
        raise BuildError(f"the optimised denoiser cannot be refitted: {error}") from error
    tensors = map_tensors(weights)
    if is_small(tensors):  # a larger model is refitted in place only on request, and its second graph is large, too
        lay_out(folder, spec, tensors)
