"""ONNX Runtime on the CPU, refitted in place: the session reads buffers of ours, and a refit copies into them.

No new session, so a refit costs little more than its probe. In return nothing may be made from the weights when the
session opens, or it would answer with a silent mixture of old and new ones: no optimisation (constants are folded), no
prepacking (matrices are packed), no layout of the CPU's own. So a run takes longer than in `OrtEngine`;
docs/decisions/refit-modes.md weighs the two. No document of the runtime promises that writes are seen: build.py tries
every tensor before an engine may be refitted so, and the probe tries every refit.
"""

import numpy as np
import onnxruntime

from sampler_svc.engine import Array, Tensors
from sampler_svc.ort_engine import OrtEngine, open_session, session_options

IN_PLACE = "in_place"


class InPlaceEngine(OrtEngine):
    """The denoiser in ONNX Runtime, fp32, over buffers that belong to this engine alone."""

    _buffers: dict[str, Array] | None = None
    _session_values: list[onnxruntime.OrtValue] | None = None

    def close(self) -> None:
        """Free the session, then the buffers it reads."""
        super().close()
        self._session_values = self._buffers = None

    def _write(self, tensors: Tensors) -> None:
        if self._buffers is None:
            self._buffers = {
                name: np.empty(spec.view_in_graph(tensors[name]).shape, dtype=spec.dtype)
                for name, spec in self.spec.tensors.items()
            }
            self._not_base = set(self._buffers)
        for name, buffer in self._buffers.items():
            is_base = self._layout.is_base(name, tensors[name])
            if is_base and name not in self._not_base:
                continue  # it was copied by an earlier refit, and nothing else since
            self._not_base.add(name)
            view = self._layout.view(name, tensors[name])
            if view.shape != buffer.shape:  # numpy would broadcast it
                raise ValueError(f"{name} is {view.shape} in the graph and must be {buffer.shape}")
            np.copyto(buffer, view, casting="no")
            if is_base:
                self._not_base.discard(name)
        if self._session is None:
            # An OrtValue on the CPU is a view of its array, which is what this engine lives by.
            self._session_values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._buffers.values()]
            options = self._options()
            for name, value in zip(self._buffers, self._session_values, strict=True):
                options.add_initializer(name, value)
            self._session = open_session(self._path, options)

    def _options(self) -> onnxruntime.SessionOptions:
        options = session_options(self._threads, "ORT_DISABLE_ALL")
        options.add_session_config_entry("session.disable_prepacking", "1")
        return options
