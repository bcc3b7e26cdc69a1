"""A base model that is loaded for sampling: its graphs, noise schedule, weights and engines."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sampler_svc.config import AUTO, BACKENDS
from sampler_svc.engines.backends import backend_of
from sampler_svc.engines.changed_tensors import remove_left_over
from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.cpu_super_resolution import SuperResolutionEngine
from sampler_svc.engines.engine import EngineSpec, WeightSet
from sampler_svc.engines.folder import open_folder
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.pool import EnginePool
from sampler_svc.engines.weights import FastLoraChanges, base_weights, super_resolution_weights
from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.clip_filter import ClipFilter
from sampler_svc.sampling.clipseg import ClipSeg
from sampler_svc.sampling.conditioning import Embed
from sampler_svc.sampling.content_filter import ContentFilter
from sampler_svc.sampling.picture_check import PictureCheck
from sampler_svc.sampling.tools import Tools
from unitune.base_model import BaseModelSpec, SuperResolutionSpec
from unitune.diffusion.guidance import Denoiser
from unitune.diffusion.schedule import Schedule
from unitune.known_pictures import KnownPictures


@dataclass(frozen=True)
class SuperResolutionStage:
    """One stage of a cascade: its specification, base weights and engines."""

    spec: SuperResolutionSpec
    base: WeightSet
    pool: EnginePool

    def base_weights(self) -> WeightSet:
        """As a lease asks for them."""
        return self.base


@dataclass(frozen=True)
class Model:
    """What one sampler process has loaded."""

    spec: BaseModelSpec
    schedule: Schedule
    graphs: BaseGraphs
    base: WeightSet
    pool: EnginePool
    controlled: EnginePool  # one engine with control over its attention, opened by its first lease
    engine: str  # runtime, version and device, in words
    super_resolution: tuple[SuperResolutionStage, ...] = ()  # the stages of a cascade
    fast_lora: FastLoraChanges | None = None  # if the base model has one
    clip_filter: ClipFilter | None = None  # if the base model has one
    clipseg: ClipSeg | None = None  # if the sampler has one
    content_filter: ContentFilter | None = None  # if the sampler has one
    picture_check: PictureCheck | None = None  # if the base model has known pictures and a CLIP filter

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        threads: int = 0,
        engines: int = 1,
        backend: str = BACKENDS[0],
        refit_mode: str = AUTO,
        clipseg: Path | None = None,
        content_filter: Path | None = None,
    ) -> "Model":
        """Load an engine folder; 0 threads means one for each core, `refit_mode` is one of REFIT_MODES.
        `clipseg` and `content_filter` are the folders of an exported one.

        Raises BackendMissing when this machine cannot run the backend. Raises UnusableEngine when the folder was built
        for another machine or runtime, is damaged, or has no proof of this refit mode. Raises DataLoss when the engine
        does not answer as it did when it was built.
        """
        runtime = backend_of(backend)
        spec = open_folder(folder, runtime.facts)
        remove_left_over(folder)
        if backend != BACKENDS[0]:
            spec = replace(spec, size_step=0)  # a GPU's engine is built for one size
        base = base_weights(folder, spec)
        graphs = BaseGraphs(folder, spec, threads, runtime.open_graph)
        engine_spec = EngineSpec.from_model(spec)

        def open_controlled() -> ControlledEngine:
            return ControlledEngine(folder, engine_spec, threads, GraphLayout(engine_spec, base.tensors))

        def stage_of(stage: SuperResolutionSpec) -> SuperResolutionStage:
            of_base, stage_spec = super_resolution_weights(folder, stage), SuperResolutionEngine.spec_of(spec, stage)
            layout = GraphLayout(stage_spec, of_base.tensors)

            def open_stage() -> SuperResolutionEngine:
                return SuperResolutionEngine(folder, stage.graph, stage_spec, threads, layout)

            return SuperResolutionStage(stage, of_base, EnginePool(open_stage, of_base, engines, is_lazy=True))

        clip_filter = ClipFilter.open(folder, spec.preset, graphs.round_trip_error, threads, runtime.open_graph)
        known = KnownPictures.load(folder)
        return cls(
            spec=spec,
            schedule=Schedule(**asdict(spec.schedule)),
            graphs=graphs,
            base=base,
            pool=EnginePool(runtime.opener(folder, engine_spec, base, threads, refit_mode), base, engines),
            controlled=EnginePool(open_controlled, base, is_lazy=True),
            engine=" ".join(runtime.facts[fact] for fact in ("runtime", "version", "device")),
            super_resolution=tuple(map(stage_of, spec.super_resolution)),
            fast_lora=FastLoraChanges.read(folder, spec),
            clip_filter=clip_filter,
            clipseg=ClipSeg(clipseg, threads) if clipseg is not None else None,
            content_filter=ContentFilter(content_filter, threads) if content_filter is not None else None,
            picture_check=PictureCheck(known, clip_filter, graphs)
            if known is not None and clip_filter is not None
            else None,
        )

    def tools(self, denoiser: Denoiser, *, embed: Embed | None = None, **more: Any) -> Tools:
        """The tools of an edit whose weights the denoiser holds; `more` are fields of Tools.

        `embed` takes the place of the base model's own text embedding.
        """
        return Tools(self.graphs, self.schedule, denoiser, embed or self.graphs.embed, **more)
