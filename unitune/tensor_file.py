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
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # bytes, the longest vector register: where the tensors begin, and most of them
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class FileHeader:
    """What a file says of itself."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]  # by tensor
    dtypes: Mapping[str, str]  # by tensor, in the format's words: F32, BF16 ...
    spans: Mapping[str, tuple[int, int]]  # by tensor: its first byte in the file, and the one after its last
    metadata: Mapping[str, str]


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


class Kind(NamedTuple):
    """What a header announces of a tensor."""

    dtype: str  # in the format's words
    shape: tuple[int, ...]
    size_bytes: int


def read_header(path: Path) -> FileHeader:
    """The header, without the tensors. Raises OSError; ValueError for another kind of file and a missing end."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file")
        text = file.read(length)
    try:
        found = json.loads(text)
        metadata = {str(key): str(value) for key, value in found.pop("__metadata__", {}).items()}
        shapes = {name: tuple(entry["shape"]) for name, entry in found.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in found.items()}
        spans = {name: _span(*entry["data_offsets"], after=8 + length) for name, entry in found.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file, since its header cannot be read") from error
    missing = max((end for _, end in spans.values()), default=0) - path.stat().st_size
    if missing > 0:
        raise ValueError(f"{path} is cut short: {missing} bytes are missing")
    return FileHeader(path, shapes, dtypes, spans, metadata)


def _span(begin: int, end: int, *, after: int) -> tuple[int, int]:
    """Places in the file, of places after the header. Raises ValueError for what is none."""
    if not 0 <= begin <= end:
        raise ValueError(f"a tensor from {begin} to {end}")
    return after + begin, after + end


def read_places(path: Path) -> dict[str, Place]:
    """All tensors of a file by name. Raises OSError, and ValueError for a damaged file or one of another kind."""
    header = read_header(path)
    try:
        places = {
            name: Place(np.dtype(DTYPES[header.dtypes[name]]), shape, header.spans[name][0])
            for name, shape in header.shapes.items()
        }
    except KeyError as error:
        raise ValueError(f"{path} has tensors of type {error.args[0]}, which are not read here") from error
    if any(place.offset + place.size_bytes != header.spans[name][1] for name, place in places.items()):
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

    def data(name: str) -> memoryview:
        tensor = value(name)
        if (tensor.dtype, tensor.shape) != (wanted[name].dtype, wanted[name].shape):
            raise ValueError(f"{name} is {tensor.dtype}{list(tensor.shape)}, which is not what was announced")
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data

    told = {name: Kind(NAMES[one.dtype], one.shape, one.size_bytes) for name, one in wanted.items()}
    write_file(path, told, data)
    return read_places(path)


def write_file(
    path: Path,
    kinds: Mapping[str, Kind],
    data: Callable[[str], memoryview],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a header that announces these tensors, then each one's bytes, as `data` gives them, one after the other."""
    order = sorted(kinds, key=lambda name: (kinds[name].size_bytes % ALIGNMENT != 0, name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        dtype, shape, size_bytes = kinds[name]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            file.write(data(name))
