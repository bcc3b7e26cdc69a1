"""What is measured of the sampler's engines for a GPU, whichever the backend: build, runs, edits, refits, CUDA graph.

The self-test's two sets of weights are one here, drawn on the GPU; what an engine has to answer is PyTorch's there.
"""

import dataclasses
import time
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from bench.gpu.fp16_folder import GRAPH, distance, fill, question_of
from bench.gpu.model import other_weights
from bench.gpu.record import Found, Skipped, clocked, need_cuda, used_gb
from bench.gpu.stepping import EDIT_STEPS, EDITS, FEW_STEPS, GUIDANCE, ROUNDS, Predicted, answer_of, edit_of
from sampler_svc.build.builder import BackendBuilder
from sampler_svc.engines.engine import BASE, BackendMissing, Engine, EngineSpec, Probe, WeightSet
from sampler_svc.engines.self_test import MAX_ERROR
from tuner_svc.base_model import BaseModel
from unitune.diffusion.denoiser import Prediction, predict
from unitune.diffusion.guidance import classifier_free, guided
from unitune.diffusion.schedule import Latents
from unitune.fp16_graph import FP16_FOLDER, SELF_TEST_FILE, SELF_TEST_PROBE_SEED, Fp16Spec

REFITS = 2  # there and back; each takes seconds of the processor
OTHER = "other"


class FilledGraph:
    """The exported fp16 graph with the model's weights, and the sets of weights that engines are refitted with."""

    def __init__(self, model: BaseModel, folder: Path) -> None:
        """`folder` is what `fp16_folder.prepare` wrote."""
        self.model, self.folder = model, folder
        self.spec = EngineSpec.from_model(model.spec)
        self.sets: dict[str, WeightSet] = {}
        self.noise: dict[str, float] = {}

    @cached_property
    def fill_s(self) -> float:
        """Seconds of writing the weights; afterwards a build may begin. Raises Skipped without a graph."""
        if not (self.folder / GRAPH).is_file():
            raise Skipped(f"{self.folder} has no graph: python -m bench.gpu --prepare {self.folder}")
        filled = clocked(lambda: fill(self.folder, self.model), self.model.device)
        self._draw_sets()
        fp16 = Fp16Spec.load(self.folder / FP16_FOLDER)
        dataclasses.replace(fp16, noise=self.noise).save(self.folder / FP16_FOLDER)
        save_file({"base": self.sets[BASE].probe.expected}, self.folder / FP16_FOLDER / SELF_TEST_FILE)
        self.model.spec.save(self.folder)
        return float(filled["median"])

    def _draw_sets(self) -> None:
        base, other = self.model.tensors(), other_weights(self.model)
        answers = {BASE: answer_of(self.model, {}), OTHER: answer_of(self.model, other)}
        for name, tensors in ((BASE, base), (OTHER, other)):
            arrays = {each: tensor.cpu().numpy() for each, tensor in tensors.items()}
            probe = Probe(SELF_TEST_PROBE_SEED, answers[name], answers[BASE])
            self.sets[name] = WeightSet(name, arrays, probe)
            self.noise[name] = distance(answer_of(self.model, tensors, torch.float16), answers[name])


class MeasuredEngines(ABC):
    """What one process measures of a backend, in this order: `build`, `runs`, `cuda_graph`."""

    def __init__(self, graph: FilledGraph, folder: Path) -> None:
        """The engine is built into `folder`."""
        self._graph, self._folder = graph, folder
        self._model = graph.model
        self._is_built = False

    @abstractmethod
    def _builder(self) -> BackendBuilder:
        """The product's. Raises BackendMissing."""

    @abstractmethod
    def _open(self, *, use_cuda_graph: bool) -> Engine:
        """A new engine."""

    def _details(self, engine: Engine) -> Found:
        """What this backend alone has to tell of an engine, after its refits."""
        return {}

    def build(self) -> Found:
        """Weights into the graph, then the product's build: seconds of each; fp16's noise in PyTorch."""
        try:
            builder = self._builder()
        except BackendMissing as error:
            raise Skipped(str(error)) from error
        fill_s = self._graph.fill_s
        self._folder.mkdir(parents=True, exist_ok=True)
        built = clocked(lambda: builder.fill(self._folder, self._graph.folder, self._model.spec), self._model.device)
        self._is_built = True
        return {
            "fill_s": fill_s,
            "build_s": built["median"],
            "noise": self._graph.noise,
            "facts": dict(builder.facts),
        }

    def runs(self) -> Found:
        """Opening, runs, edits, refits with their proof."""
        return self._measured(use_cuda_graph=False)

    def cuda_graph(self) -> Found:
        """The same through a CUDA graph: does it see weights that were refitted after the capture?"""
        need_cuda(self._model.device, "a CUDA graph")
        return self._measured(use_cuda_graph=True)

    def _measured(self, *, use_cuda_graph: bool) -> Found:
        if not self._is_built:
            raise Skipped("the engine was not built")
        on_gpu = self._model.device.type == "cuda"
        before = used_gb() if on_gpu else 0.0
        began = time.perf_counter()
        engine = self._open(use_cuda_graph=use_cuda_graph)
        try:
            report = engine.refit(self._graph.sets[BASE])
            found: Found = {
                "open_s": time.perf_counter() - began,  # opening, check, rounding, first refit, first run
                "first_write_s": report.write_s,
                "first_run_s": report.probe_s,
            }
            found |= self._steps(engine)
            if on_gpu:
                found["device_gb"] = used_gb() - before
            return found | self._refits(engine, 1 if use_cuda_graph else REFITS) | self._details(engine)
        finally:
            engine.close()

    def _steps(self, engine: Engine) -> Found:
        given = tuple(question_of(self._model).values())
        predicted = predicted_by(engine, self._model)
        edit, quick = (edit_of(self._model, given[0][:1], predicted, steps) for steps in (EDIT_STEPS, FEW_STEPS))
        return {
            "step_s": clocked(lambda: engine.run(*given), self._model.device, ROUNDS, warm=3),
            "edit_s": clocked(edit, self._model.device, EDITS, warm=1),
            "few_steps_edit_s": clocked(quick, self._model.device, EDITS, warm=1),
            "error": distance(engine.run(*given), self._graph.sets[BASE].probe.expected),
            "rounds_differ": not np.array_equal(engine.run(*given), engine.run(*given)),
        }

    def _refits(self, engine: Engine, rounds: int) -> Found:
        """Refits there and back, each proven by the engine itself."""
        reports, taken, errors = [], [], {}
        said: dict[str, list[np.ndarray]] = {}
        given = tuple(question_of(self._model).values())
        for name in (OTHER, BASE) * rounds:
            began = time.perf_counter()
            reports.append(engine.refit(self._graph.sets[name]))
            taken.append(time.perf_counter() - began)
            answer = engine.run(*given)
            errors[name] = distance(answer, self._graph.sets[name].probe.expected)
            said.setdefault(name, []).append(answer)
        return {
            "refit_s": taken,
            "refit_write_s": [report.write_s for report in reports],
            "refit_probe_s": [report.probe_s for report in reports],
            "refit_probe_ratio": [report.probe_ratio for report in reports],
            "refit_mb": reports[-1].size_bytes / 1e6,
            "errors": errors,
            "allowed": {name: MAX_ERROR * noise for name, noise in self._graph.noise.items()},
            "differs_after_refit_there_and_back": [
                name for name, answers in said.items() if any(not np.array_equal(answers[0], each) for each in answers)
            ],
        }


def predicted_by(engine: Engine, model: BaseModel) -> Predicted:
    """As the sampler has it predicted."""
    _, _, contexts = question_of(model).values()
    rows = classifier_free(GUIDANCE, *contexts)

    def predicted(latent: Latents, timestep: int, level: float) -> Prediction:
        return predict(guided(engine.run, latent, timestep, rows), latent, level, model.schedule.prediction_type)

    return predicted
