"""A super-resolution stage in ONNX Runtime on the CPU, fp32, whatever backend runs the denoiser.

It is refitted like every engine. Its graph is not optimised offline, since it is small and seldom opened.
"""

from pathlib import Path

from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import EngineSpec
from sampler_svc.engines.layout import GraphLayout
from unitune.base_model import BaseModelSpec, SuperResolutionSpec


class SuperResolutionEngine(OrtEngine):
    """Latents are the noisy picture and the noised upsampled one, in blocks; each timestep has a noise level, too."""

    halves_batches = False  # without guidance, the default, there is one row, which then has all threads

    def __init__(
        self, folder: Path, graph: str, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None
    ) -> None:
        """As OrtEngine, on any backend's engine folder, of the graph of this name."""
        super().__init__(folder, spec, threads, layout)
        self._path = folder / graph

    @staticmethod
    def spec_of(model: BaseModelSpec, stage: SuperResolutionSpec) -> EngineSpec:
        """The specification of a stage's engine."""
        context = (model.context_tokens, model.context_width)
        latent = (2 * stage.channels, *stage.checked_side)
        return EngineSpec(latent, context, stage.tensors, has_noise_level=True, step=stage.step)
