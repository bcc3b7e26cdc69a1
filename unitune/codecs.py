"""How tuned tensors are stored: as they are, or as a delta to the base model that takes fewer bytes.

    none   fp32 values, no delta
    int8   the delta, one byte a value, a scale for each output row (axis 0), symmetric
    int4   the same in half a byte, two values to a byte, the first in the low half
    lora   two factors of the delta: a LoRA tuning's own, else the largest LORA_RANK singular values of each matrix

A tensor `name` is stored under `name`, or in parts `name#int8`, `name#scale` and so on. Where parts would take more
bytes (norms and biases) the plain delta is stored, in fp16 if that is exact enough; a tensor that the tuning left alone
is not stored. An fp32 delta is not exact to the last bit, so only `none` brings back the tuned values to the bit.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from unitune.choices import CODECS
from unitune.errors import DataLoss

Array = NDArray[np.float32]
Parts = dict[str, NDArray]  # by the part's name, "" for a delta that is stored whole
Factors = tuple[NDArray, NDArray]  # (rows, rank) and (rank, columns), whose product is the delta

LORA_RANK = 16
HALF_ERROR = 1e-3  # of a tensor's largest value: more than fp16 loses unless the values are too small or large for it


def encode(
    tensors: Mapping[str, NDArray],
    base: Mapping[str, NDArray],
    codec: str,
    factors: Mapping[str, Factors] | None = None,
) -> dict[str, NDArray]:
    """What to store of tuned tensors, fp32. Raises ValueError for a codec unknown, and values that are not finite."""
    if codec not in CODECS:
        raise ValueError(f"the codec is {codec!r}: it must be one of {', '.join(CODECS)}")
    broken = sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all())
    if broken:
        raise ValueError(f"{broken[0]} holds values that are not finite, and cannot be stored")
    if codec == "none":
        return dict(tensors)
    stored = {}
    for name, tensor in tensors.items():
        delta = np.subtract(tensor, base[name], dtype=np.float32)
        if delta.any():
            parts = _smallest(delta, codec, (factors or {}).get(name))
            stored.update({f"{name}#{part}" if part else name: array for part, array in parts.items()})
    return stored


def decode(stored: Mapping[str, NDArray], base: Mapping[str, NDArray], codec: str) -> dict[str, NDArray]:
    """The tuned tensors, fp32, that were changed.

    Raises DataLoss (WEIGHTS_CORRUPT) for a codec that is unknown here and for parts that do not fit the base model.
    """
    if codec not in CODECS:
        raise DataLoss(f"the weights are stored as {codec!r}, unknown here", reason="WEIGHTS_CORRUPT")
    if codec == "none":
        return dict(stored)
    tensors: dict[str, Parts] = {}
    for key, array in stored.items():
        name, _, part = key.partition("#")
        tensors.setdefault(name, {})[part] = array
    decoded = {}
    for name, parts in tensors.items():
        try:
            wanted = base[name]
            delta = _DECODERS[frozenset(parts)](parts, wanted.shape)
            # Of whole numbers the scales tell; what overflows all the same is refused with the tensors, by the engine.
            is_finite = all(np.isfinite(part).all() for part in parts.values() if part.dtype.kind == "f")
            if delta.shape != wanted.shape or not is_finite:
                raise ValueError("its delta has another shape or is not finite")
        except (KeyError, ValueError, TypeError) as error:
            raise DataLoss(f"the stored weights cannot be decoded ({name})", reason="WEIGHTS_CORRUPT") from error
        decoded[name] = np.add(wanted, delta, out=delta)
    return decoded


def tensor_names(stored: Mapping[str, NDArray]) -> set[str]:
    """The tensors that parts belong to."""
    return {key.partition("#")[0] for key in stored}


def _smallest(delta: Array, codec: str, factors: Factors | None) -> Parts:
    """The codec's parts of a delta, or the whole delta where that is smaller."""
    whole = {"": _half(delta)}
    if delta.ndim < 2:
        return whole
    if factors is not None:
        parts = {"up": _half(factors[0]), "down": _half(factors[1])}
    else:
        parts = _ENCODERS[codec](delta.reshape(len(delta), -1))
        if "int8" in parts:
            parts["int8"] = parts["int8"].reshape(delta.shape)
    return min(whole, parts, key=lambda form: sum(array.nbytes for array in form.values()))


def _half(array: NDArray) -> NDArray:
    """In fp16 where that is as good as fp16 can be, else as it is."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    error = np.abs(half.astype(np.float32) - array).max(initial=0)
    return half if error <= HALF_ERROR * np.abs(array).max(initial=0) else array.astype(np.float32)


def _quantised(rows: Array, largest: int) -> tuple[NDArray[np.int8], Array]:
    """Whole numbers up to `largest` and the scale of each row; a row of zeros has the scale 0."""
    scale = np.abs(rows).max(axis=1) / np.float32(largest)
    steps = np.divide(rows, scale[:, None], out=np.zeros_like(rows), where=scale[:, None] > 0)
    return np.clip(np.rint(steps), -largest, largest).astype(np.int8), scale


def _encode_int8(rows: Array) -> Parts:
    values, scale = _quantised(rows, 127)
    return {"int8": values, "scale": scale}


def _encode_int4(rows: Array) -> Parts:
    values, scale = _quantised(rows, 7)
    nibbles = (values.reshape(-1) + 8).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(8))
    return {"int4": nibbles[::2] | nibbles[1::2] << 4, "scale": scale}


def _encode_lora(rows: Array) -> Parts:
    up, down = low_rank(rows, LORA_RANK)
    return {"up": _half(up), "down": _half(down)}


def low_rank(rows: Array, rank: int) -> Factors:
    """The nearest product of (rows, rank) and (rank, columns), the roots of the singular values on both sides."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _scaled(values: NDArray, scale: NDArray, shape: tuple[int, ...]) -> Array:
    if scale.dtype != np.float32 or scale.shape != shape[:1]:
        raise ValueError("its scales do not fit")
    delta: Array = values.reshape(len(scale), -1).astype(np.float32)  # at once: a product of mixed types is slower
    delta *= scale[:, None]
    return delta.reshape(shape)


def _decode_whole(parts: Parts, shape: tuple[int, ...]) -> Array:
    return _float32(parts[""])


def _decode_int8(parts: Parts, shape: tuple[int, ...]) -> Array:
    if parts["int8"].dtype != np.int8 or parts["int8"].shape != shape:
        raise ValueError("its values do not fit")
    return _scaled(parts["int8"], parts["scale"], shape)


def _decode_int4(parts: Parts, shape: tuple[int, ...]) -> Array:
    packed, count = parts["int4"], int(np.prod(shape))
    if packed.dtype != np.uint8 or packed.shape != ((count + 1) // 2,):
        raise ValueError("its values do not fit")
    values = np.empty(2 * len(packed), dtype=np.int8)
    values[::2], values[1::2] = packed & 15, packed >> 4
    values -= 8
    return _scaled(values[:count], parts["scale"], shape)


def _decode_lora(parts: Parts, shape: tuple[int, ...]) -> Array:
    return (_float32(parts["up"]) @ _float32(parts["down"])).reshape(shape)


def _float32(array: NDArray) -> Array:
    if array.dtype not in (np.float16, np.float32):
        raise ValueError("its values are neither fp16 nor fp32")
    return array.astype(np.float32)


_ENCODERS: dict[str, Callable[[Array], Parts]] = {"int8": _encode_int8, "int4": _encode_int4, "lora": _encode_lora}
_DECODERS: dict[frozenset[str], Callable[[Parts, tuple[int, ...]], Array]] = {
    frozenset({""}): _decode_whole,
    frozenset({"int8", "scale"}): _decode_int8,
    frozenset({"int4", "scale"}): _decode_int4,
    frozenset({"up", "down"}): _decode_lora,
}
