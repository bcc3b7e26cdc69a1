"""Build an engine for ONNX Runtime on CUDA from the fp16 graph, optimised offline as far as no weight is lost."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from sampler_svc.build.builder import DENOISER_DATA, BackendBuilder, BuildError
from sampler_svc.build.fp16 import FP16_DENOISER, copy_all_but_the_denoiser, fp16_builder
from sampler_svc.engines.cpu import session_options
from sampler_svc.engines.cuda import CUDA, OFFLINE_OPTIMISATIONS, OrtCudaEngine, cuda_facts, fixed_batch, open_on
from sampler_svc.engines.engine import BackendMissing, EngineSpec
from sampler_svc.engines.onnx_file import SMALL_BYTES, put_outside
from sampler_svc.engines.self_test import SelfTest, SelfTestFailed
from sampler_svc.engines.weights import base_weights
from unitune.base_model import BaseModelSpec
from unitune.errors import UniTuneError
from unitune.graph_files import DENOISER


def cuda_builder(provider: str = CUDA) -> BackendBuilder:
    """ONNX Runtime on this GPU. Raises BackendMissing."""
    here = cuda_facts(provider)
    return fp16_builder(here, partial(_fill, provider=provider), partial(verify, provider=provider, here=here))


def verify(graphs: Path, engine_folder: Path, spec: BaseModelSpec, *, provider: str, here: Mapping[str, str]) -> None:
    """Run the self-test with weights written in place, or else in new sessions; then through a CUDA graph.

    Raises BuildError.
    """
    base = base_weights(engine_folder, spec)
    try:
        self_test = SelfTest(engine_folder)
        in_place = _passes(self_test, engine_folder, spec, provider)
        if not in_place:
            self_test = SelfTest(engine_folder)
            _run_self_test(self_test, engine_folder, spec, provider, in_place=False)
        cuda_graph = in_place and provider == CUDA and _sees_refits(engine_folder, spec)
        self_test.found(here, cuda_graph=cuda_graph, in_place=in_place).save(engine_folder)
        engine = OrtCudaEngine.open_tested(engine_folder, EngineSpec.from_model(spec), provider)
        engine.refit(base)
        engine.close()
    except SelfTestFailed as error:
        raise BuildError(f"the engine does not compute what PyTorch does: {error}") from error
    except (BackendMissing, UniTuneError) as error:
        raise BuildError(f"the engine cannot be used: {error}") from error


def _passes(self_test: SelfTest, folder: Path, spec: BaseModelSpec, provider: str) -> bool:
    try:
        _run_self_test(self_test, folder, spec, provider, in_place=True)
    except SelfTestFailed:
        return False
    return True


def _run_self_test(self_test: SelfTest, folder: Path, spec: BaseModelSpec, provider: str, *, in_place: bool) -> None:
    engine = OrtCudaEngine(folder, EngineSpec.from_model(spec), provider=provider, in_place=in_place)
    try:
        engine._write(base_weights(folder, spec).tensors)  # opens the session
        self_test.run(engine)
    finally:
        engine.close()


def _sees_refits(folder: Path, spec: BaseModelSpec) -> bool:
    engine = OrtCudaEngine(folder, EngineSpec.from_model(spec), use_cuda_graph=True)
    try:
        return SelfTest(folder).sees_refits(engine)
    except Exception:  # there are many errors for a graph that cannot be captured
        return False
    finally:
        engine.close()


def _fill(folder: Path, graphs: Path, spec: BaseModelSpec, *, provider: str) -> None:
    for level in OFFLINE_OPTIMISATIONS:
        options = fixed_batch(session_options(0, level))
        options.optimized_model_filepath = str(folder / DENOISER)
        for setting, value in (("file_name", DENOISER_DATA), ("min_size_in_bytes", str(SMALL_BYTES))):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{setting}", value)
        try:
            open_on(provider, graphs / FP16_DENOISER, options)
            put_outside(folder, DENOISER, spec.tensors.keys())
        except ValueError as error:  # a tensor was lost
            lost = error
            continue
        except BackendMissing as error:
            raise BuildError(str(error)) from error
        break
    else:
        raise BuildError(f"the optimised denoiser cannot be refitted: {lost}")
    copy_all_but_the_denoiser(folder, graphs, spec)
