"""The denoiser with control over its attention maps (unitune.attention), in ONNX Runtime on the CPU, fp32.

Its graph is not optimised offline, as few edits need it. It reads the same file of base weights as the plain one.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import Array, EngineSpec
from sampler_svc.engines.layout import GraphLayout
from unitune.attention import CONTROLLED_FILE, MAPS, OUT, Controls, no_controls
from unitune.errors import Internal


class Controlled(NamedTuple):
    """The results of a controlled run."""

    output: Array  # (n, channels, h, w), as for any engine
    maps: Array  # (n, tokens, h, w): cross-attention as it was used, mean over heads and layers; sums to 1 over tokens


class ControlledEngine(OrtEngine):
    """Refitted like every engine, with the same tensors under the same names. `run` changes no map."""

    halves_batches = False  # a row may take its maps from another one

    def __init__(self, folder: Path, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None) -> None:
        """As OrtEngine, on any backend's engine folder."""
        super().__init__(folder, spec, threads, layout)
        self._path = folder / CONTROLLED_FILE

    def run_controlled(
        self, latents: Array, timesteps: NDArray[np.int64], contexts: Array, controls: Controls
    ) -> Controlled:
        """Output and maps for a batch of n; `controls` has n rows. Raises what `run` raises."""
        self.spec.check_latents(latents)
        if self.weights is None:
            raise Internal("the engine holds unknown weights", reason="WEIGHTS_UNKNOWN")
        return self._compute_controlled(latents, timesteps, contexts, controls)

    def _compute(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        rows, _ = self.spec.context
        controls = no_controls(len(latents), rows - 1 if self.spec.pooled_width else rows)
        return self._compute_controlled(latents, timesteps, contexts, controls).output

    def _compute_controlled(
        self, latents: Array, timesteps: NDArray[np.int64], contexts: Array, controls: Controls
    ) -> Controlled:
        if self._session is None:
            raise RuntimeError("the engine is closed")
        feed = {**self.spec.inputs(latents, timesteps, contexts), **controls._asdict()}
        return Controlled(*self._session.run([OUT, MAPS], feed, self._run_options))
