"""One worker process of EditBench: a tuner and a sampler of its own, as the services run them."""

import itertools
import math
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from bench.editbench.cases import Case, Picture
from bench.editbench.results import result_file, save
from bench.editbench.scores import score
from bench.editbench.settings import Setting
from bench.edits import edited
from sampler_svc.engines.engine import BASE, Engine, WeightSet
from sampler_svc.engines.weights import tuned_weights
from sampler_svc.model import Model
from sampler_svc.sampling.conditioning import REFITS_NOTHING, embedding
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.request import Request
from stickerbook.captions import caption
from stickerbook.judge import Judge
from stickerbook.render import render
from tuner_svc.base_model import load
from tuner_svc.config import DEFAULT_CODEC
from tuner_svc.methods import Tuned
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.choices import PROMPT_TO_PROMPT
from unitune.weights import TunedWeights, unpack


@dataclass(frozen=True)
class Made:
    """What a tuning left, what it took, and the engine's weights to sample with."""

    weights: WeightSet
    seconds: float = 0.0
    size_bytes: int = 0
    tuned: TunedWeights | None = None


class Worker:
    """Runs pictures one after another."""

    def __init__(self, base_model: Path, engine: Path, digest: str, out: Path) -> None:
        self._tuner = load(base_model)
        self._sampler = Model.open(engine, threads=1)
        self._judge = Judge.load()
        self._digest, self._out = digest, out

    def run(self, picture: Picture, settings: tuple[Setting, ...]) -> None:
        """All cases of a picture under all settings; each tuning is made once and thrown away."""
        todo = [
            (case, setting, path)
            for setting in settings
            for case in picture.cases
            if not (path := result_file(self._out, self._digest, case, setting)).exists()
        ]
        todo.sort(key=lambda work: repr(_engine_of(*work[:2])))
        tuned = lru_cache(maxsize=1)(partial(self._tuned, picture))
        for (config, codec, is_controlled), group in itertools.groupby(todo, key=lambda work: _engine_of(*work[:2])):
            made = Made(self._sampler.base)
            if config is not None:
                made = self._stored(picture, config, codec or DEFAULT_CODEC, *tuned(config))
            weights = made.weights
            pool = self._sampler.controlled if is_controlled else self._sampler.pool
            with pool.lease(weights.id, lambda weights=weights: weights) as lease:  # type: ignore[misc]
                for case, setting, path in group:
                    began = time.perf_counter()
                    pixels = self._edit(lease.engine, case, setting, made.tuned)
                    fields = {
                        "case": case.id,
                        "picture": picture.id,
                        "category": case.category,
                        "aligned": case.aligned,
                        "setting": setting.name,
                        "prompt": setting.prompt_of(case),
                        "edit_s": time.perf_counter() - began,
                        "tuning_s": made.seconds,
                        "artifact_bytes": made.size_bytes,
                    }
                    save(path, pixels, fields, score(case, pixels, self._judge))
            if weights.id != BASE:
                self._sampler.pool.evict(weights.id)

    def _tuned(self, picture: Picture, config: TuningConfig) -> tuple[Tuned, float]:
        """A tuning, and the seconds that it took."""
        began = time.perf_counter()
        tuned = tune(self._tuner, images.to_model(render(picture.scene), self._tuner.image_side), config)
        return tuned, time.perf_counter() - began

    def _stored(self, picture: Picture, config: TuningConfig, codec: str, trained: Tuned, seconds: float) -> Made:
        """The tuning as the sampler gets it: through a codec and back."""
        began = time.perf_counter()
        data, manifest = pack_tuned(self._tuner, trained, config, picture.id, codec)
        tuned, weights = unpack(data, manifest), self._sampler.base
        if config.method not in REFITS_NOTHING:
            weights = tuned_weights(tuned, weights, self._sampler.spec.digest)
        return Made(weights, seconds + time.perf_counter() - began, len(data), tuned)

    def _edit(self, engine: Engine, case: Case, setting: Setting, tuned: TunedWeights | None) -> np.ndarray:
        attention = _attention(setting)
        request = Request(
            image=images.encode_png(render(case.scene)),
            prompt=setting.prompt_of(case),
            scheduler=setting.scheduler,
            num_inference_steps=setting.num_inference_steps,
            guidance_scale=setting.guidance_scale,
            strength=setting.strength,
            seeds=(0,),
            interpolation=setting.interpolation,
            guidance_sigma_low=setting.guidance_sigma_low or 0.0,
            guidance_sigma_high=math.inf if setting.guidance_sigma_high is None else setting.guidance_sigma_high,
            base_prompt=caption(case.scene) if attention is not None else "",
            attention=attention,
        )
        embed = embedding(self._sampler.graphs, tuned, request.prompt, setting.eta) if tuned is not None else None
        return edited(self._sampler, engine, request, embed)


def _engine_of(case: Case, setting: Setting) -> tuple[TuningConfig | None, str | None, bool]:
    """The tuning whose weights an edit needs, how they are stored, and whether it needs control over attention."""
    return setting.tuning_of(case), setting.codec, setting.method == PROMPT_TO_PROMPT


def _attention(setting: Setting) -> AttentionEdit | None:
    """Prompt-to-Prompt's settings; None for other methods."""
    if setting.cross_replace is None or setting.self_replace is None:
        return None
    return AttentionEdit(setting.cross_replace, setting.self_replace)
