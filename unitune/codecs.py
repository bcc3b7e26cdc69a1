"""Stores tuned tensors: as they are, or as a smaller delta to the base model.

    none   fp32 values, no delta
    int8   the delta, one byte a value, a scale for each output row (axis 0), symmetric
    int4   the same in half a byte, two values to a byte, the first in the low half
    sign   SIGN_RANK main directions of the delta, as factors in int4, and the signs of the rest, one bit a value, with
           a scale for each row; the matrices that gain most from int4 are in int4, as many as SIGN_BITS allow
    lora   two factors of the delta: a LoRA tuning's own, else the largest LORA_RANK singular values of each matrix

A tensor `name` is stored under `name`, or in parts `name#int8`, `name#scale` and so on. If the parts take more bytes
(norms and biases), the plain delta is stored, in fp16 if that is exact enough. A tensor that the tuning did not change
is not stored. An fp32 delta is not exact to the last bit, so only `none` restores the tuned values bit for bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from unitune.choices import CODECS
from unitune.errors import DataLoss

Array = NDArray[np.float32]
Parts = dict[str, NDArray]  # by the part's name; "" is the plain delta
Factors = tuple[NDArray, NDArray]  # (rows, rank) and (rank, columns), whose product is the delta

LORA_RANK = 16
SIGN_RANK = 12  # a higher rank leaves fewer bytes for int4; this one loses least for stickerbook
SIGN_BITS = 1.875  # per value, in all parts; with header and probe less than 2 bits, an eighth of fp16
SWEEPS = 2  # of subspace iteration: the rest is a twentieth larger than with exact directions
FP16_ERROR = 1e-3  # of a tensor's largest value; fp16 loses less unless values are out of its range


def encode(
    tensors: Mapping[str, NDArray],
    base: Mapping[str, NDArray],
    codec: str,
    factors: Mapping[str, Factors] | None = None,
    sensitivity: Mapping[str, float] | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> dict[str, NDArray]:
    """The arrays to store for tuned tensors, fp32. Raises ValueError for an unknown codec and for values not finite.

    `sensitivity` weighs the squared error of each tensor when `sign` chooses what is in int4; the default is equal
    weights. `before_each` may raise before each tensor, since encoding may take minutes.
    """
    if codec not in CODECS:
        raise ValueError(f"the codec is {codec!r}: it must be one of {', '.join(CODECS)}")
    broken = sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all())
    if broken:
        raise ValueError(f"{broken[0]} holds values that are not finite, and cannot be stored")
    if codec == "none":
        return dict(tensors)
    forms: dict[str, Parts] = {}
    finer: dict[str, Parts] = {}
    gains: dict[str, float] = {}
    count = 0
    for name, tensor in tensors.items():
        before_each()
        delta = np.subtract(tensor, base[name], dtype=np.float32)
        if delta.any():
            count += delta.size
            forms[name] = _smallest(delta, codec, (factors or {}).get(name))
            if "sign" in forms[name]:
                finer[name] = _encode_int4(delta.reshape(len(delta), -1))
                gain = _squared_error(forms[name], delta) - _squared_error(finer[name], delta)
                gains[name] = gain * (sensitivity or {}).get(name, 1.0)
    _refine(forms, finer, gains, most_bytes=SIGN_BITS / 8 * count)
    return {f"{name}#{part}" if part else name: array for name, parts in forms.items() for part, array in parts.items()}


def encode_coarse(tensors: Mapping[str, NDArray], base: Mapping[str, NDArray], step: float) -> dict[str, NDArray]:
    """Like `encode` with `int4`, but rounded to multiples of `step` root mean squares of a row. `decode` takes it.

    Most values then are among a few, so that a compressor makes less of them: about 2.5 bits of each at a step of 0.85,
    where the error is 6 % of the change, in squares.
    """
    stored: dict[str, NDArray] = {}
    for name, tensor in tensors.items():
        delta = np.subtract(tensor, base[name], dtype=np.float32)
        if not delta.any():
            continue
        if delta.ndim < 2:
            stored[name] = _fp16(delta)
            continue
        rows = delta.reshape(len(delta), -1)
        scale = (step * np.sqrt(np.square(rows, dtype=np.float64).mean(axis=1))).astype(np.float32)
        stored |= {f"{name}#int4": _packed_nibbles(_rounded(rows, scale, 7)), f"{name}#scale": scale}
    return stored


def decode(stored: Mapping[str, NDArray], base: Mapping[str, NDArray], codec: str) -> dict[str, NDArray]:
    """The tuned tensors, fp32, that were changed.

    Raises DataLoss (WEIGHTS_CORRUPT) for a codec that is unknown here and for parts that do not fit the base model.
    """
    return dict(DecodedTensors(stored, base, codec))


class DecodedTensors(Mapping[str, NDArray]):
    """The same, each decoded anew whenever it is asked for, and not kept. Raises as `decode`, then."""

    def __init__(self, stored: Mapping[str, NDArray], base: Mapping[str, NDArray], codec: str) -> None:
        if codec not in CODECS:
            raise DataLoss(f"the weights are stored as {codec!r}, unknown here", reason="WEIGHTS_CORRUPT")
        self._base, self._codec = base, codec
        self._parts: dict[str, Parts] = {}
        for key, array in stored.items():
            name, _, part = (key, "", "") if codec == "none" else key.partition("#")
            self._parts.setdefault(name, {})[part] = array

    def __getitem__(self, name: str) -> NDArray:
        parts = self._parts[name]
        if self._codec == "none":
            return parts[""]
        try:
            wanted = self._base[name]
            delta = _DECODERS[frozenset(parts)](parts, wanted.shape)
            # Integers are finite if their scales are. The engine refuses tensors that still overflow.
            is_finite = all(np.isfinite(part).all() for part in parts.values() if part.dtype.kind == "f")
            if delta.shape != wanted.shape or not is_finite:
                raise ValueError("its delta has another shape or is not finite")
        except (KeyError, ValueError, TypeError) as error:
            raise DataLoss(f"the stored weights cannot be decoded ({name})", reason="WEIGHTS_CORRUPT") from error
        return np.add(wanted, delta, out=delta)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts  # Mapping's own would decode the tensor


def tensor_names(stored: Mapping[str, NDArray]) -> set[str]:
    """The tensors that parts belong to."""
    return {key.partition("#")[0] for key in stored}


def _smallest(delta: Array, codec: str, factors: Factors | None) -> Parts:
    """The codec's parts of a delta, or the plain delta if that is smaller."""
    whole = {"": _fp16(delta)}
    if delta.ndim < 2:
        return whole
    if factors is not None:
        parts = {"up": _fp16(factors[0]), "down": _fp16(factors[1])}
    else:
        parts = _ENCODERS[codec](delta.reshape(len(delta), -1))
        if "int8" in parts:
            parts["int8"] = parts["int8"].reshape(delta.shape)
    if "sign" in parts and _size(parts) >= _size(whole):  # factors are large beside a small matrix
        parts = _encode_int4(delta.reshape(len(delta), -1))
    return min(whole, parts, key=_size)


def _size(parts: Parts) -> int:
    return sum(array.nbytes for array in parts.values())


def _squared_error(parts: Parts, delta: Array) -> float:
    error = _DECODERS[frozenset(parts)](parts, delta.shape) - delta
    return float(np.vdot(error, error))


def _refine(forms: dict[str, Parts], finer: Mapping[str, Parts], gains: Mapping[str, float], most_bytes: float) -> None:
    """Replace parts by finer ones, by gain per byte, while all fit into `most_bytes`."""
    costs = {name: _size(parts) - _size(forms[name]) for name, parts in finer.items()}
    bytes_left = most_bytes - sum(map(_size, forms.values()))
    for name in sorted(finer, key=lambda name: gains[name] / max(costs[name], 1), reverse=True):
        if gains[name] > 0 and costs[name] <= max(bytes_left, 0):
            forms[name] = finer[name]
            bytes_left -= costs[name]


def _fp16(array: NDArray) -> NDArray:
    """In fp16 if its error is small enough, else in fp32."""
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    error = np.abs(rounded.astype(np.float32) - array).max(initial=0)
    return rounded if error <= FP16_ERROR * np.abs(array).max(initial=0) else array.astype(np.float32)


def _quantised(rows: Array, largest: int) -> tuple[NDArray[np.int8], Array]:
    """Integers up to `largest`, and the scale of each row; a row of zeros has scale 0."""
    scale = np.abs(rows).max(axis=1) / np.float32(largest)
    return _rounded(rows, scale, largest), scale


def _rounded(rows: Array, scale: Array, largest: int) -> NDArray[np.int8]:
    """The nearest multiples of each row's scale, up to `largest`; zeros where that is 0."""
    steps = np.divide(rows, scale[:, None], out=np.zeros_like(rows), where=scale[:, None] > 0)
    return np.clip(np.rint(steps), -largest, largest).astype(np.int8)


def _encode_int8(rows: Array) -> Parts:
    values, scale = _quantised(rows, 127)
    return {"int8": values, "scale": scale}


def _encode_int4(rows: Array) -> Parts:
    values, scale = _quantised(rows, 7)
    return {"int4": _packed_nibbles(values), "scale": scale}


def _packed_nibbles(values: NDArray[np.int8]) -> NDArray:
    """Values of -8 to 7, two to a byte."""
    nibbles = (values.reshape(-1) + 8).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(8))
    return nibbles[::2] | nibbles[1::2] << 4


def _encode_sign(rows: Array) -> Parts:
    """Like BitDelta (Liu et al., 2024), but after removing the main directions, and with another scale."""
    up, down = _main_directions(rows, SIGN_RANK)
    (up, up_scale), (down, down_scale) = _quantised(up.T, 7), _quantised(down, 7)
    parts = {"factors": _packed_nibbles(np.concatenate([up, down], axis=1)), "factors_scale": up_scale * down_scale}
    rest = rows - _product(parts, rows.shape)
    mean, square = np.abs(rest).mean(axis=1), np.square(rest, dtype=np.float64).mean(axis=1)
    # With this scale <signs, rest> = <rest, rest>. BitDelta's scale, the mean, is nearest to the rest, but makes all
    # its effects a third smaller, and they add up. Above twice the mean the error is larger than the rest.
    scale = np.minimum(np.divide(square, mean, out=np.zeros_like(square), where=mean > 0), 2 * mean)
    return {"sign": np.packbits(rest > 0), "scale": scale.astype(np.float32), **parts}


def _main_directions(rows: Array, rank: int) -> Factors:
    """Approximates `low_rank` in much less time, by subspace iteration (Halko et al., 2011, algorithm 4.4)."""
    basis = np.random.default_rng(0).standard_normal((rows.shape[1], rank), dtype=np.float32)
    for _ in range(SWEEPS):
        basis = np.linalg.qr(rows.T @ np.linalg.qr(rows @ basis).Q).Q
    basis = np.linalg.qr(rows @ basis).Q
    up, down = low_rank(basis.T @ rows, rank)
    return basis @ up, down


def _encode_lora(rows: Array) -> Parts:
    up, down = low_rank(rows, LORA_RANK)
    return {"up": _fp16(up), "down": _fp16(down)}


def low_rank(rows: Array, rank: int) -> Factors:
    """The nearest product of (rows, rank) and (rank, columns); both have the roots of the singular values."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _scaled(values: NDArray, scale: NDArray, shape: tuple[int, ...]) -> Array:
    """Integers times the scale of their row; float32 values are overwritten."""
    if scale.dtype != np.float32 or scale.shape != shape[:1]:
        raise ValueError("its scales do not fit")
    # In float32: a product of mixed types is slower.
    delta: Array = values.reshape(len(scale), -1).astype(np.float32, copy=False)
    delta *= scale[:, None]
    return delta.reshape(shape)


def _decode_whole(parts: Parts, shape: tuple[int, ...]) -> Array:
    return _float32(parts[""])


def _decode_int8(parts: Parts, shape: tuple[int, ...]) -> Array:
    if parts["int8"].dtype != np.int8 or parts["int8"].shape != shape:
        raise ValueError("its values do not fit")
    return _scaled(parts["int8"], parts["scale"], shape)


def _decode_int4(parts: Parts, shape: tuple[int, ...]) -> Array:
    return _scaled(_unpacked_nibbles(parts["int4"], math.prod(shape)), parts["scale"], shape)


def _unpacked_nibbles(packed: NDArray, count: int) -> NDArray[np.int8]:
    if packed.dtype != np.uint8 or packed.shape != ((count + 1) // 2,):
        raise ValueError("its values do not fit")
    values = np.empty(2 * len(packed), dtype=np.int8)
    values[::2], values[1::2] = packed & 15, packed >> 4
    values -= 8
    return values[:count]


def _decode_sign(parts: Parts, shape: tuple[int, ...]) -> Array:
    packed, count = parts["sign"], math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != ((count + 7) // 8,):
        raise ValueError("its signs do not fit")
    # mode="clip" skips the check for bytes out of range: there are none, and it takes most of the time.
    signs = np.take(_SIGNS, packed, axis=0, mode="clip")
    delta = _scaled(signs.reshape(-1)[:count], parts["scale"], shape)
    delta += _product(parts, (shape[0], math.prod(shape[1:]))).reshape(shape)
    return delta


def _product(parts: Parts, shape: tuple[int, int]) -> Array:
    """The product of the factors. Each row is one direction: first the factor of the delta's rows, then the other."""
    scale, (rows, columns) = parts["factors_scale"], shape
    factors = _unpacked_nibbles(parts["factors"], len(scale) * (rows + columns)).reshape(len(scale), -1)
    up, down = factors[:, :rows].astype(np.float32), factors[:, rows:]
    return up.T @ _scaled(down, scale, down.shape)


def _decode_lora(parts: Parts, shape: tuple[int, ...]) -> Array:
    return (_float32(parts["up"]) @ _float32(parts["down"])).reshape(shape)


def _float32(array: NDArray) -> Array:
    if array.dtype not in (np.float16, np.float32):
        raise ValueError("its values are neither fp16 nor fp32")
    return array.astype(np.float32)


_SIGNS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), 1, -1).astype(np.float32)  # of a byte

_ENCODERS: dict[str, Callable[[Array], Parts]] = {
    "int8": _encode_int8,
    "int4": _encode_int4,
    "sign": _encode_sign,
    "lora": _encode_lora,
}
_DECODERS: dict[frozenset[str], Callable[[Parts, tuple[int, ...]], Array]] = {
    frozenset({""}): _decode_whole,
    frozenset({"int8", "scale"}): _decode_int8,
    frozenset({"int4", "scale"}): _decode_int4,
    frozenset({"sign", "scale", "factors", "factors_scale"}): _decode_sign,
    frozenset({"up", "down"}): _decode_lora,
}
