"""Super-resolution in ONNX Runtime on the CPU, fp32, whatever backend runs the denoiser.

It is refitted like every engine. Its graph is not optimised offline, since it is small and seldom opened.
"""

from pathlib import Path

from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import EngineSpec
from sampler_svc.engines.layout import GraphLayout
from unitune.base_model import BaseModelSpec
from unitune.graph_files import SUPER_RESOLUTION_GRAPH


class SuperResolutionEngine(OrtEngine):
    """Latents are the noisy picture and the noised upsampled one, in blocks; each timestep has a noise level, too."""

    def __init__(self, folder: Path, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None) -> None:
        """As OrtEngine, on any backend's engine folder."""
        super().__init__(folder, spec, threads, layout)
        self._path = folder / SUPER_RESOLUTION_GRAPH

    @staticmethod
    def spec_of(model: BaseModelSpec) -> EngineSpec:
        """The specification of its engine. Raises ValueError for a base model without super-resolution."""
        stage = model.super_resolution
        if stage is None:
            raise ValueError(f"{model.name} has no super-resolution")
        channels, height, width = stage.blocks
        context = (model.context_tokens, model.context_width)
        step = stage.side_of((model.size_step, model.size_step))[0] // stage.block
        return EngineSpec((2 * channels, height, width), context, stage.tensors, has_noise_level=True, step=step)
