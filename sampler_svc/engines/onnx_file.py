"""Moves the weights of an ONNX file out of it into a data file beside it, and shapes back into it.

ONNX Runtime can only replace weights that are outside, and can only read shapes that are inside, but its writer decides
by size alone. So this module rewrites the file, at the level of protocol buffer fields, since the sampler does not
install the onnx package. Field numbers are those of onnx.proto.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unitune.tensor_file import Place

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MODEL_GRAPH, GRAPH_INITIALIZER = 7, 5
DIMS, DATA_TYPE, FLOATS, NAME, RAW, EXTERNAL, LOCATION = 1, 2, 4, 8, 9, 13, 14
DATA_FIELDS = {4, 5, 6, 7, RAW, 10, 11, EXTERNAL, LOCATION}
LOCATION_EXTERNAL = 1
FLOAT16 = 10  # a data type
ALIGNMENT = 64  # bytes, so that a runtime may map the data file
SMALL_BYTES = 64  # ONNX Runtime's writer leaves this inside; put_outside then tells weights from shapes
SHAPES_AT_MOST = 1024  # bytes; a larger constant is no shape and may stay outside


@dataclass(frozen=True)
class ProtoField:
    """One field of a message: its number, its value, and the bytes it came from."""

    number: int
    value: int | bytes
    source: bytes


@dataclass(frozen=True)
class Initializer:
    """A named weight of a graph: `inside` holds its bytes, or `outside` is (offset, length) in the data file."""

    name: str
    shape: tuple[int, ...]
    fields: tuple[ProtoField, ...]
    inside: bytes | None
    outside: tuple[int, int] | None

    @property
    def data_type(self) -> int | bytes:
        """As onnx.proto numbers them; 0 if the file does not say."""
        return next((field.value for field in self.fields if field.number == DATA_TYPE), 0)


def initializers(model: bytes) -> dict[str, Initializer]:
    """The initializers of a model by name. Raises ValueError when a name occurs twice."""
    found: dict[str, Initializer] = {}
    for field in _graph_fields(model):
        if field.number == GRAPH_INITIALIZER:
            initializer = _initializer(_bytes(field))
            if initializer.name in found:
                raise ValueError(f"the graph has two initializers called {initializer.name}")
            found[initializer.name] = initializer
    return found


def structure_digest(model: bytes) -> str:
    """sha256 of a model without the weights that lie outside: nodes, names, shapes and dtypes."""
    digest = hashlib.sha256()
    for field in _graph_fields(model):
        if field.number != GRAPH_INITIALIZER:
            digest.update(field.source)
            continue
        initializer = _initializer(_bytes(field))
        skipped = DATA_FIELDS if initializer.outside is not None else set()
        for part in initializer.fields:
            if part.number not in skipped:
                digest.update(part.source)
    return digest.hexdigest()


def put_outside(
    folder: Path, file_name: str, names: Collection[str], shared: tuple[str, Mapping[str, Place]] | None = None
) -> None:
    """Rewrite a model and its data file `{file_name}.data`: the named initializers outside, shapes inside.

    With `shared`, a file of weights in the same folder and the tensors' places there, the named ones are read from
    that, and the data file keeps only the others; it is removed if there are none. Raises ValueError when a named
    initializer is not there, or has other values than the shared file.
    """
    path, data_path = folder / file_name, folder / f"{file_name}.data"
    model = path.read_bytes()
    missing = set(names) - initializers(model).keys()
    if missing:
        raise ValueError(f"the graph has lost {len(missing)} of its weights, such as {min(missing)}")
    new_data_path = data_path.with_suffix(".new")
    data_path.touch()
    with contextlib.ExitStack() as files:
        old, new = files.enter_context(open(data_path, "rb")), files.enter_context(open(new_data_path, "wb"))
        shared_file = files.enter_context(open(folder / shared[0], "rb")) if shared is not None else None
        places = shared[1] if shared is not None else {}

        def moved(initializer: Initializer) -> bytes | None:
            data = initializer.inside
            if initializer.outside is not None:
                data = _read(old, *initializer.outside, initializer.name)
            if initializer.name in names or (initializer.outside is not None and len(data or b"") > SHAPES_AT_MOST):
                if data is None:
                    raise ValueError(f"{initializer.name} has no raw data")
                if initializer.name in names and shared is not None and shared_file is not None:
                    place = places[initializer.name]
                    if _read(shared_file, place.offset, place.size_bytes, initializer.name) != data:
                        raise ValueError(f"{initializer.name} has other values than {shared[0]}")
                    return _outside(initializer, shared[0], place.offset, place.size_bytes)
                new.write(bytes(-new.tell() % ALIGNMENT))
                offset = new.tell()
                new.write(data)
                return _outside(initializer, data_path.name, offset, len(data))
            return None if data is None else _tagged(GRAPH_INITIALIZER, _kept(initializer) + _tagged(RAW, data))

        path.write_bytes(_rewritten(model, moved))
    new_data_path.replace(data_path)
    if shared is not None and not data_path.stat().st_size:
        data_path.unlink()


def read_from(model: bytes, location: str, names: Collection[str]) -> bytes:
    """A model whose initializers of these names, which lie outside, are read from another file, at the same place."""

    def moved(initializer: Initializer) -> bytes | None:
        if initializer.name not in names or initializer.outside is None:
            return None
        return _outside(initializer, location, *initializer.outside)

    return _rewritten(model, moved)


def _rewritten(model: bytes, change: Callable[[Initializer], bytes | None]) -> bytes:
    """The model with its initializers changed; None keeps one as it is."""
    graph = []
    for field in _graph_fields(model):
        changed = change(_initializer(_bytes(field))) if field.number == GRAPH_INITIALIZER else None
        graph.append(field.source if changed is None else changed)
    others = b"".join(field.source for field in _fields(model) if field.number != MODEL_GRAPH)
    return others + _tagged(MODEL_GRAPH, b"".join(graph))


def _outside(initializer: Initializer, location: str, offset: int, length: int) -> bytes:
    """The field of an initializer whose data lies in a file."""
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    external = b"".join(
        _tagged(EXTERNAL, _tagged(1, key.encode()) + _tagged(2, value.encode())) for key, value in entries.items()
    )
    return _tagged(
        GRAPH_INITIALIZER, _kept(initializer) + external + _varint(LOCATION << 3) + _varint(LOCATION_EXTERNAL)
    )


def _kept(initializer: Initializer) -> bytes:
    return b"".join(part.source for part in initializer.fields if part.number not in DATA_FIELDS)


def _read(file: BinaryIO, offset: int, length: int, name: str) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ValueError(f"the data file ends within {name}")
    return data


def _initializer(message: bytes) -> Initializer:
    fields = tuple(_fields(message))
    inside, entries, external = None, {}, False
    name, shape = "", []
    for field in fields:
        if field.number == NAME:
            name = _bytes(field).decode()
        elif field.number == DIMS:
            shape += list(_varints(field.value)) if isinstance(field.value, bytes) else [field.value]
        elif field.number in (RAW, FLOATS) and isinstance(field.value, bytes):  # packed floats are raw data
            inside = field.value
        elif field.number == EXTERNAL:
            entry = {part.number: _bytes(part).decode() for part in _fields(_bytes(field))}
            entries[entry[1]] = entry.get(2, "")
        elif field.number == LOCATION:
            external = field.value == LOCATION_EXTERNAL
    outside = (int(entries.get("offset", 0)), int(entries["length"])) if external else None
    return Initializer(name, tuple(shape), fields, None if external else inside, outside)


def _graph_fields(model: bytes) -> Iterator[ProtoField]:
    for field in _fields(model):
        if field.number == MODEL_GRAPH:
            yield from _fields(_bytes(field))


def _fields(message: bytes) -> Iterator[ProtoField]:
    at = 0
    while at < len(message):
        began = at
        tag, at = _read_varint(message, at)
        value: int | bytes
        if tag & 7 == VARINT:
            value, at = _read_varint(message, at)
        elif tag & 7 == BYTES:
            length, at = _read_varint(message, at)
            value, at = message[at : at + length], at + length
        elif tag & 7 in (FIXED64, FIXED32):
            length = 8 if tag & 7 == FIXED64 else 4
            value, at = message[at : at + length], at + length
        else:
            raise ValueError(f"not an ONNX file: wire type {tag & 7}")
        if at > len(message):
            raise ValueError("not an ONNX file: it ends within a field")
        yield ProtoField(tag >> 3, value, message[began:at])


def _bytes(field: ProtoField) -> bytes:
    if not isinstance(field.value, bytes):
        raise ValueError(f"not an ONNX file: field {field.number} is a number")
    return field.value


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("not an ONNX file: it ends within a number")
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        yield value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _tagged(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value
