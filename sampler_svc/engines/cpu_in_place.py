"""ONNX Runtime on the CPU, refitted in place: the session reads the engine's buffers, and a refit copies into them.

There is no new session, so a refit costs little more than its probe. But the session must derive nothing from the
weights when it opens, or its answers would silently mix old and new ones. So there is no optimisation (which folds
constants) and no prepacking (which packs matrices). The CPU's layout of convolutions is already in the graph, where the
build found it (cpu_layout.py). The buffers of a large model are a map of its weights' file (base_map.py). A run takes a
little longer than in `OrtEngine`: docs/decisions/refit-modes.md compares the two. The runtime does not promise that
writes are seen: the build tests every tensor before it allows this mode, and the probe tests every refit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sampler_svc.engines.base_map import BaseMap
from sampler_svc.engines.cpu import OrtEngine, open_session, session_options
from sampler_svc.engines.cpu_layout import LAID_OUT, Blocked, read_layouts
from sampler_svc.engines.engine import Array, Engine, EngineSpec, Tensors, check_tensors
from sampler_svc.engines.layout import GraphLayout
from unitune.base_model import BaseModelSpec

IN_PLACE = "in_place"


class InPlaceEngine(OrtEngine):
    """The denoiser in ONNX Runtime, fp32, over buffers that belong to this engine alone."""

    _buffers: dict[str, Array] | None = None
    _session_values: list[onnxruntime.OrtValue] | None = None

    def __init__(self, folder: Path, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None) -> None:
        """As OrtEngine. Raises OSError and ValueError for layouts that cannot be read."""
        super().__init__(folder, spec, threads, layout)
        blocked = read_layouts(folder)
        if blocked is not None:
            self._path = folder / LAID_OUT
        self._blocked: dict[str, Blocked] = blocked or {}
        self._base_file = folder / BaseModelSpec.base_weights
        self._map: BaseMap | None = None

    def close(self) -> None:
        """Free the session, then the buffers that it reads."""
        super().close()
        self._session_values = self._buffers = self._map = None

    def _checked(self, tensors: Tensors) -> Tensors:
        """The tensors after their checks. Those of a large model are decoded once more to be written, and not kept."""
        if not self._is_large:
            return Engine._checked(self, tensors)
        check_tensors(self.spec, tensors, self._known)
        return tensors

    def _write(self, tensors: Tensors) -> None:
        if self._buffers is None:
            self._buffers = self._opened_buffers(tensors)
        for name, buffer in self._buffers.items():
            tensor = tensors[name]
            is_base = self._layout.is_base(name, tensor)
            if is_base and name not in self._not_base:
                continue  # an earlier refit copied it, and nothing was written since
            self._not_base.add(name)
            if is_base and self._map is not None:
                self._map.restore(name, tensor)
            else:
                view = self._view(name, self._layout.view(name, tensor))
                if view.shape != buffer.shape:  # numpy would broadcast it
                    raise ValueError(f"{name} is {view.shape} in the graph and must be {buffer.shape}")
                np.copyto(buffer, view, casting="no")
            if is_base:
                self._not_base.discard(name)
        if self._session is None:
            # An OrtValue on the CPU is a view of its array: this engine depends on that.
            self._session_values, options = [], self._options()
            for name, buffer in self._buffers.items():
                form = self._blocked.get(name)
                shape = self.spec.tensors[name].shape_in_graph
                shape = form.shape_in_graph(shape) if form is not None else shape
                value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer.reshape(shape))
                options.add_initializer(form.initializer if form is not None else name, value)
                self._session_values.append(value)
            self._session = open_session(self._path, options)

    def _opened_buffers(self, tensors: Tensors) -> dict[str, Array]:
        """Buffers for all tensors in this engine's layout: of a large model, which has only that of the file, the map
        of the base weights; else empty ones."""
        if self._is_large and not self._blocked and self._layout.base:
            self._map, self._not_base = BaseMap(self._base_file), set()
            return {name: spec.view_in_graph(self._map.tensor(name)) for name, spec in self.spec.tensors.items()}
        self._not_base = set(self.spec.tensors)
        return {
            name: np.empty(self._view(name, spec.view_in_graph(tensors[name])).shape, dtype=spec.dtype)
            for name, spec in self.spec.tensors.items()
        }

    def _view(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """A tensor of the denoiser's graph as this engine's graph has it."""
        form = self._blocked.get(name)
        return tensor if form is None else form.view(tensor)

    def _options(self) -> onnxruntime.SessionOptions:
        return session_options(self._threads, "ORT_DISABLE_ALL", is_packed=False)
