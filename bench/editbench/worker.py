"""One worker process of EditBench: a tuner and a sampler of its own, as the services run them."""

import itertools
import time
from pathlib import Path

import numpy as np

from bench.editbench.cases import Case, Picture
from bench.editbench.results import result_file, save
from bench.editbench.scores import score
from bench.editbench.settings import Setting, Tuning
from sampler_svc.engine import BASE, Weights
from sampler_svc.model import Model
from sampler_svc.refit_weights import tuned_weights
from sampler_svc.sample import EditedImage, Request, sample
from stickerbook.judge import Judge
from stickerbook.render import render
from tuner_svc.base_model import load
from tuner_svc.config import DEFAULT_CODEC
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.prompts import with_rare_tokens
from unitune.weights import unpack


class Worker:
    """Runs pictures one after another."""

    def __init__(self, base_model: Path, engine: Path, digest: str, out: Path) -> None:
        self._tuner = load(base_model)
        self._sampler = Model.open(engine, threads=1)
        self._judge = Judge.load()
        self._digest, self._out = digest, out

    def run(self, picture: Picture, settings: tuple[Setting, ...]) -> None:
        """All cases of a picture under all settings; each tuning is made once and thrown away."""
        ordered = sorted(settings, key=lambda setting: repr(setting.tuning))
        for tuning, group in itertools.groupby(ordered, key=lambda setting: setting.tuning):
            todo = [
                (case, setting, path)
                for setting in group
                for case in picture.cases
                if not (path := result_file(self._out, self._digest, case, setting)).exists()
            ]
            if not todo:
                continue
            began = time.perf_counter()
            weights = self._tuned(picture, tuning) if tuning else self._sampler.base
            tuning_s = time.perf_counter() - began if tuning else 0.0
            with self._sampler.pool.lease(weights.id, lambda weights=weights: weights) as lease:  # type: ignore[misc]
                for case, setting, path in todo:
                    began = time.perf_counter()
                    pixels = self._edit(lease.engine.run, case, setting)
                    fields = {
                        "case": case.id,
                        "picture": picture.id,
                        "category": case.category,
                        "aligned": case.aligned,
                        "setting": setting.name,
                        "prompt": case.prompt,
                        "edit_s": time.perf_counter() - began,
                        "tuning_s": tuning_s,
                    }
                    save(path, pixels, fields, score(case, pixels, self._judge))
            if weights.id != BASE:
                self._sampler.pool.evict(weights.id)

    def _tuned(self, picture: Picture, tuning: Tuning) -> Weights:
        config = TuningConfig(mode=tuning.mode, updates=tuning.updates, learning_rate=tuning.learning_rate)
        image = images.to_model(render(picture.scene), self._tuner.image_side)
        data, manifest = pack_tuned(self._tuner, tune(self._tuner, image, config), config, picture.id, DEFAULT_CODEC)
        return tuned_weights(unpack(data, manifest), self._sampler.base, self._sampler.spec.digest)

    def _edit(self, denoiser: object, case: Case, setting: Setting) -> np.ndarray:
        rare_tokens = self._sampler.spec.preset.rare_tokens
        request = Request(
            image=images.encode_png(render(case.scene)),
            prompt=with_rare_tokens(rare_tokens, case.prompt) if setting.rare_tokens else case.prompt,
            scheduler="ddim",
            num_inference_steps=setting.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            strength=setting.strength,
            seeds=(0,),
            interpolation=setting.interpolation,
        )
        events = sample(self._sampler.graphs, self._sampler.schedule, denoiser, request, lambda: False)  # type: ignore[arg-type]
        (png,) = (event.png for event in events if isinstance(event, EditedImage))
        return images.decode(png)
