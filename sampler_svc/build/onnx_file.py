"""Moves the weights of an ONNX file out of it into a data file beside it, and shapes back into it.

ONNX Runtime can only replace weights that are outside, and can only read shapes that are inside, but its writer decides
by size alone. So this module rewrites the file, at the level of protocol buffer fields, since the sampler does not
install the onnx package. Field numbers are those of onnx.proto.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MODEL_GRAPH, GRAPH_INITIALIZER = 7, 5
DIMS, FLOATS, NAME, RAW, EXTERNAL, LOCATION = 1, 4, 8, 9, 13, 14
DATA_FIELDS = {4, 5, 6, 7, RAW, 10, 11, EXTERNAL, LOCATION}
LOCATION_EXTERNAL = 1
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


def put_outside(folder: Path, file_name: str, names: Collection[str]) -> None:
    """Rewrite a model and its data file `{file_name}.data`: the named initializers outside, shapes inside.

    Raises ValueError when a named initializer is not there.
    """
    path, data_path = folder / file_name, folder / f"{file_name}.data"
    model = path.read_bytes()
    missing = set(names) - initializers(model).keys()
    if missing:
        raise ValueError(f"the graph has lost {len(missing)} of its weights, such as {min(missing)}")
    new_data_path = data_path.with_suffix(".new")
    data_path.touch()
    with open(data_path, "rb") as old, open(new_data_path, "wb") as new:
        moved = [_moved(field, old, new, data_path.name, names) for field in _graph_fields(model)]
    graph = b"".join(moved)
    others = b"".join(field.source for field in _fields(model) if field.number != MODEL_GRAPH)
    path.write_bytes(others + _tagged(MODEL_GRAPH, graph))
    new_data_path.replace(data_path)


def _moved(field: ProtoField, old: BinaryIO, new: BinaryIO, location: str, names: Collection[str]) -> bytes:
    """A field of the graph; an initializer is written again."""
    if field.number != GRAPH_INITIALIZER:
        return field.source
    initializer = _initializer(_bytes(field))
    data = initializer.inside
    if initializer.outside is not None:
        offset, length = initializer.outside
        old.seek(offset)
        data = old.read(length)
        if len(data) != length:
            raise ValueError(f"the data file ends within {initializer.name}")
    kept = b"".join(part.source for part in initializer.fields if part.number not in DATA_FIELDS)
    if initializer.name in names or (initializer.outside is not None and len(data or b"") > SHAPES_AT_MOST):
        if data is None:
            raise ValueError(f"{initializer.name} has no raw data")
        new.write(bytes(-new.tell() % ALIGNMENT))
        entries = {"location": location, "offset": str(new.tell()), "length": str(len(data))}
        new.write(data)
        kept += b"".join(
            _tagged(EXTERNAL, _tagged(1, key.encode()) + _tagged(2, value.encode())) for key, value in entries.items()
        )
        return _tagged(GRAPH_INITIALIZER, kept + _varint(LOCATION << 3) + _varint(LOCATION_EXTERNAL))
    if data is None:
        return field.source
    return _tagged(GRAPH_INITIALIZER, kept + _tagged(RAW, data))


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
