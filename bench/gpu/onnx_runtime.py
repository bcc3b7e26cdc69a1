"""The sampler's own engine for ONNX Runtime on CUDA: build, session, runs, refits in place, CUDA graph.

The self-test's two sets of weights are one here, drawn on the GPU; what an engine has to answer is PyTorch's there.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from bench.gpu.fp16_folder import GRAPH, distance, fill, question_of
from bench.gpu.model import other_weights
from bench.gpu.record import Found, Skipped, clocked, need_cuda, used_gb
from bench.gpu.stepping import EDITS, GUIDANCE, ROUNDS, Predicted, answer_of, edit_of
from sampler_svc.build.builder import BackendBuilder
from sampler_svc.build.cuda import cuda_builder
from sampler_svc.engines.cuda import CPU, CUDA, OrtCudaEngine
from sampler_svc.engines.engine import BASE, EngineSpec, Probe, WeightSet
from sampler_svc.engines.fp16_weights import rounded
from sampler_svc.engines.self_test import MAX_ERROR
from tuner_svc.base_model import BaseModel
from unitune.diffusion.denoiser import Prediction, predict
from unitune.diffusion.guidance import classifier_free, guided
from unitune.diffusion.schedule import Latents
from unitune.fp16_graph import FP16_FOLDER, SELF_TEST_FILE, SELF_TEST_PROBE_SEED, Fp16Spec

REFITS = 2  # there and back; each takes seconds of the processor
OTHER = "other"


class Engines:
    """What one process measures of ONNX Runtime, in this order: `build`, `runs`, `cuda_graph`."""

    def __init__(self, model: BaseModel, graphs: Path, scratch: Path) -> None:
        """`graphs` is what `fp16_folder.prepare` wrote."""
        self._model, self._graphs, self._folder = model, graphs, scratch / "engine"
        self._spec = EngineSpec.from_model(model.spec)
        self._provider = CUDA if model.device.type == "cuda" else CPU  # the processor's, to see that it all runs
        self._sets: dict[str, WeightSet] = {}
        self._noise: dict[str, float] = {}

    def build(self) -> Found:
        """Weights into the graph, then the offline optimisation: seconds of each; fp16's noise in PyTorch."""
        if not (self._graphs / GRAPH).is_file():
            raise Skipped(f"{self._graphs} has no graph: python -m bench.gpu --prepare {self._graphs}")
        builder: BackendBuilder = cuda_builder(self._provider)
        filled = clocked(lambda: fill(self._graphs, self._model), self._model.device)
        self._draw_sets()
        fp16 = Fp16Spec.load(self._graphs / FP16_FOLDER)
        dataclasses.replace(fp16, noise=self._noise).save(self._graphs / FP16_FOLDER)
        save_file({"base": self._sets[BASE].probe.expected}, self._graphs / FP16_FOLDER / SELF_TEST_FILE)
        spec = self._model.spec
        spec.save(self._graphs)
        self._folder.mkdir(parents=True, exist_ok=True)
        built = clocked(lambda: builder.fill(self._folder, self._graphs, spec), self._model.device)
        return {
            "fill_s": filled["median"],
            "build_s": built["median"],
            "noise": self._noise,
            "facts": dict(builder.facts),
        }

    def runs(self) -> Found:
        """Session, runs, an edit, refits in place with their proof."""
        return self._measured(use_cuda_graph=False)

    def cuda_graph(self) -> Found:
        """The same through ONNX Runtime's CUDA graph: does it see weights that were refitted after the capture?"""
        need_cuda(self._model.device, "a CUDA graph")
        return self._measured(use_cuda_graph=True)

    def _measured(self, *, use_cuda_graph: bool) -> Found:
        if not self._sets:
            raise Skipped("the engine was not built")
        before = used_gb() if self._provider == CUDA else 0.0
        engine = OrtCudaEngine(
            self._folder, self._spec, provider=self._provider, in_place=True, use_cuda_graph=use_cuda_graph
        )
        try:
            began = time.perf_counter()
            report = engine.refit(self._sets[BASE])
            found: Found = {
                "open_s": time.perf_counter() - began,  # check, rounding, session, first run
                "session_s": report.write_s,
                "first_run_s": report.probe_s,
            }
            found |= self._steps(engine)
            if self._provider == CUDA:
                found["device_gb"] = used_gb() - before
            return found | self._refits(engine, 1 if use_cuda_graph else REFITS)
        finally:
            engine.close()

    def _steps(self, engine: OrtCudaEngine) -> Found:
        given = tuple(question_of(self._model).values())
        edit = edit_of(self._model, given[0][:1], predicted_by(engine, self._model))
        return {
            "step_s": clocked(lambda: engine.run(*given), self._model.device, ROUNDS, warm=3),
            "edit_s": clocked(edit, self._model.device, EDITS, warm=1),
            "error": distance(engine.run(*given), self._sets[BASE].probe.expected),
            "rounds_differ": not np.array_equal(engine.run(*given), engine.run(*given)),
        }

    def _refits(self, engine: OrtCudaEngine, rounds: int) -> Found:
        """Refits there and back, each proven by the engine itself; then what a refit's seconds are made of."""
        reports, taken, errors = [], [], {}
        said: dict[str, list[np.ndarray]] = {}
        given = tuple(question_of(self._model).values())
        for name in (OTHER, BASE) * rounds:
            began = time.perf_counter()
            reports.append(engine.refit(self._sets[name]))
            taken.append(time.perf_counter() - began)
            answer = engine.run(*given)
            errors[name] = distance(answer, self._sets[name].probe.expected)
            said.setdefault(name, []).append(answer)
        return {
            "refit_s": taken,
            "refit_write_s": [report.write_s for report in reports],
            "refit_probe_s": [report.probe_s for report in reports],
            "refit_probe_ratio": [report.probe_ratio for report in reports],
            "refit_mb": reports[-1].size_bytes / 1e6,
            "in_place_seen": engine._in_place,  # else the engine itself has gone over to new sessions
            "errors": errors,
            "allowed": {name: MAX_ERROR * noise for name, noise in self._noise.items()},
            "differs_after_refit_there_and_back": [
                name for name, answers in said.items() if any(not np.array_equal(answers[0], each) for each in answers)
            ],
            **self._parts(engine),
        }

    def _parts(self, engine: OrtCudaEngine) -> Found:
        """Seconds of rounding to fp16 on the processor, and of writing to the device."""
        began = time.perf_counter()
        arrays = rounded(engine._fp16.tensors, self._sets[BASE].tensors)
        written = time.perf_counter()
        for name, array in arrays.items():
            engine._weights[name].update_inplace(array)
        return {"refit_rounding_s": written - began, "refit_copy_s": time.perf_counter() - written}

    def _draw_sets(self) -> None:
        base, other = self._model.tensors(), other_weights(self._model)
        answers = {BASE: answer_of(self._model, {}), OTHER: answer_of(self._model, other)}
        for name, tensors in ((BASE, base), (OTHER, other)):
            arrays = {each: tensor.cpu().numpy() for each, tensor in tensors.items()}
            probe = Probe(SELF_TEST_PROBE_SEED, answers[name], answers[BASE])
            self._sets[name] = WeightSet(name, arrays, probe)
            self._noise[name] = distance(answer_of(self._model, tensors, torch.float16), answers[name])


def predicted_by(engine: OrtCudaEngine, model: BaseModel) -> Predicted:
    """As the sampler has it predicted."""
    _, _, contexts = question_of(model).values()
    rows = classifier_free(GUIDANCE, *contexts)

    def predicted(latent: Latents, timestep: int, level: float) -> Prediction:
        return predict(guided(engine.run, latent, timestep, rows), latent, level, model.schedule.prediction_type)

    return predicted
