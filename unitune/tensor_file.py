"""A safetensors file without its library: written tensor by tensor, and read through a memory map.

Format: eight bytes with the header's length, little-endian; the header, JSON; then the tensors' bytes.
https://huggingface.co/docs/safetensors

Such a file is also external data of an ONNX graph: each tensor is at `Place.offset`. So a graph, an engine and its base
weights share one file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # bytes, the longest vector register: where the tensors begin, and most of them
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # from the file's first byte

    @property
    def size_bytes(self) -> int:
        """The tensor's bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def read_places(path: Path) -> dict[str, Place]:
    """All tensors of a file by name. Raises OSError, and ValueError for a damaged file or one of another kind."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file")
        text = file.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        places = {
            name: Place(np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
        }
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its header cannot be read") from error
    size = path.stat().st_size
    if any(
        place.offset < 8 + length or place.offset + place.size_bytes != ends[name] or ends[name] > size
        for name, place in places.items()
    ):
        raise ValueError(f"{path} is damaged: its header does not fit its tensors")
    return places


def map_tensors(path: Path) -> dict[str, NDArray]:
    """All tensors of a file by name, read-only. Their memory is the system's copy of the file, which it can drop.

    Raises as `read_places` does.
    """
    places = read_places(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    found: dict[str, NDArray] = {}
    for name, place in places.items():
        part = np.asarray(data[place.offset : place.offset + place.size_bytes])
        found[name] = np.ndarray(place.shape, place.dtype, part.data)
    return found


def write_tensors(
    path: Path, kinds: Mapping[str, tuple[DTypeLike, tuple[int, ...]]], value: Callable[[str], NDArray]
) -> dict[str, Place]:
    """Write a file with tensors of these dtypes and shapes; each value is asked for, written and dropped before the
    next. The same values give the same bytes. Returns where each lies. Raises ValueError for a value of another kind.
    """
    wanted = {name: Place(np.dtype(dtype), tuple(shape), 0) for name, (dtype, shape) in kinds.items()}
    order = sorted(wanted, key=lambda name: (wanted[name].size_bytes % ALIGNMENT != 0, name))
    entries: dict[str, object] = {}
    offset = 0
    for name in order:
        place = wanted[name]
        end = offset + place.size_bytes
        entries[name] = {"dtype": NAMES[place.dtype], "shape": list(place.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            tensor = value(name)
            if (tensor.dtype, tensor.shape) != (wanted[name].dtype, wanted[name].shape):
                raise ValueError(f"{name} is {tensor.dtype}{list(tensor.shape)}, which is not what was announced")
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return read_places(path)
