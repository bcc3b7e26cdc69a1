"""The denoiser's graph with convolutions in this CPU's own layout, for engines that are refitted in place.

ONNX Runtime's fastest convolutions work on blocks of channels, as many as a vector register holds. It reorders their
weights when it opens a session, and renames them, so that a refit does not find them. So the build has it reorder them
offline, and finds each tensor among the reordered ones by its values. A refit then reorders in the same way. If a
tensor is not found, the graph is deleted.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np

from sampler_svc.engines.cpu import OPTIMISATION, open_session, session_options
from sampler_svc.engines.cpu_layout import LAID_OUT, LAYOUT_FILE, Blocked
from sampler_svc.engines.engine import Array
from sampler_svc.engines.onnx_file import SMALL_BYTES, Initializer, initializers, put_outside
from unitune.base_model import BaseModelSpec
from unitune.graph_files import DENOISER

LAID_OUT_DATA = f"{LAID_OUT}.data"
BLOCKS = (16, 8, 4)  # channels: fp32 lanes of AVX-512, of AVX, of NEON


def lay_out(folder: Path, spec: BaseModelSpec, tensors: Mapping[str, Array]) -> None:
    """Write graph and layouts into an engine folder that has the denoiser with these weights; nothing if a tensor is
    not found."""
    options = session_options(0, OPTIMISATION)
    options.optimized_model_filepath = str(folder / LAID_OUT)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", LAID_OUT_DATA)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(SMALL_BYTES)
    )
    open_session(folder / DENOISER, options)
    found = initializers((folder / LAID_OUT).read_bytes())
    data = (folder / LAID_OUT_DATA).read_bytes() if (folder / LAID_OUT_DATA).exists() else b""
    kept = {name for name in spec.tensors if name in found}
    others = {(one.shape, _digest(_values(one, data))): name for name, one in found.items() if name not in kept}
    forms: dict[str, Blocked] = {}
    for name in sorted(spec.tensors.keys() - kept):
        tensor = spec.tensors[name].view_in_graph(tensors[name])
        is_convolution = spec.tensors[name].layout != "transposed" and tensor.ndim in (1, 4)  # its bias or its kernel
        form = _found(tensor, others) if is_convolution else None
        if form is not None:
            forms[name] = form
    names = kept | {form.initializer for form in forms.values()}
    if len(names) == len(spec.tensors):  # all were found, each in a place of its own
        put_outside(folder, LAID_OUT, names)
        (folder / LAYOUT_FILE).write_text(json.dumps({name: asdict(form) for name, form in forms.items()}, indent=1))
    else:
        (folder / LAID_OUT).unlink()
        (folder / LAID_OUT_DATA).unlink(missing_ok=True)


def _found(tensor: Array, others: Mapping[tuple[tuple[int, ...], bytes], str]) -> Blocked | None:
    """How a tensor lies among the other initializers, by shape and digest."""
    for block in BLOCKS:
        for inputs in (block, 1) if tensor.ndim == 4 and tensor.shape[1] % block == 0 else (1,):
            form = Blocked("", block, inputs)
            values = np.ascontiguousarray(form.view(tensor)).tobytes()
            name = others.get((form.shape_in_graph(tensor.shape), _digest(values)))
            if name is not None:
                return Blocked(name, block, inputs)
    return None


def _values(initializer: Initializer, data: bytes) -> bytes:
    if initializer.outside is None:
        return initializer.inside or b""
    offset, length = initializer.outside
    return data[offset : offset + length]


def _digest(values: bytes) -> bytes:
    return sha256(values).digest()
