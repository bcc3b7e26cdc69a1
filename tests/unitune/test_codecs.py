"""Codecs of tuned weights: what comes back, how exactly, in how many bytes, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from unitune.choices import CODECS
from unitune.codecs import SIGN_BITS, SIGN_RANK, decode, encode, low_rank, tensor_names
from unitune.errors import DataLoss

RNG = np.random.default_rng(0)
SHAPES = {"conv.weight": (24, 16, 3, 3), "linear.weight": (48, 33), "odd.weight": (3, 5), "norm.weight": (48,)}
BASE = {name: RNG.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}
DELTAS = {name: 1e-3 * RNG.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}
TUNED = {name: BASE[name] + DELTAS[name] for name in SHAPES}
CODED = tuple(codec for codec in CODECS if codec != "none")


def back(tensors: dict[str, np.ndarray], codec: str) -> dict[str, np.ndarray]:
    """Encoded and decoded again."""
    return decode(encode(tensors, BASE, codec), BASE, codec)


def size_bytes(stored: dict[str, np.ndarray]) -> int:
    """What is stored."""
    return sum(array.nbytes for array in stored.values())


def test_without_a_codec_every_bit_comes_back() -> None:
    """The tuned values themselves are stored."""
    for name, tensor in back(TUNED, "none").items():
        np.testing.assert_array_equal(tensor, TUNED[name])


@pytest.mark.parametrize(("codec", "largest"), [("int8", 127), ("int4", 7)])
def test_whole_numbers_are_off_by_half_a_step_at_most(codec: str, largest: int) -> None:
    """In a row whose largest change is d, no value is off by more than d / largest / 2, and the sign of d is kept."""
    for name, tensor in back(TUNED, codec).items():
        rows, error = DELTAS[name].reshape(len(DELTAS[name]), -1), np.abs(tensor - TUNED[name])
        step = np.abs(rows).max(axis=1) / largest
        rounding = 4 * np.finfo(np.float32).eps * np.abs(BASE[name]).max()  # of base + delta

        assert tensor.dtype == np.float32 and tensor.shape == SHAPES[name]
        assert (error.reshape(rows.shape) <= 0.5 * step[:, None] + rounding).all(), name


@pytest.mark.parametrize("codec", CODED)
def test_codecs_keep_what_they_promise_of_the_whole(codec: str) -> None:
    """Relative error of the delta over all tensors, which is noise here: no directions hold it, so lora loses most."""
    decoded = back(TUNED, codec)
    error = np.sqrt(sum(np.sum((decoded[name] - TUNED[name]).astype(float) ** 2) for name in SHAPES))
    effect = np.sqrt(sum(np.sum(delta.astype(float) ** 2) for delta in DELTAS.values()))

    assert error / effect < {"int8": 0.01, "int4": 0.125, "sign": 0.5, "lora": 0.8}[codec]


def test_bytes() -> None:
    """A byte and half a byte for each value of a matrix, two for each of a norm, four for a row's scale; for `sign` a
    bit for each value, and half a byte for each of the factors."""
    values = sum(np.prod(shape) for name, shape in SHAPES.items() if name != "norm.weight")
    scales = 4 * (24 + 48 + 3)

    assert size_bytes(encode(TUNED, BASE, "int8")) == values - 15 + scales - 12 + 2 * 15 + 2 * 48 - 3
    assert size_bytes(encode(TUNED, BASE, "int4")) == (values + 1) // 2 + scales + 2 * 48
    signs = (values - 15) // 8 + scales + 8 + 2 * 48  # the smallest matrix is in int4
    factors = SIGN_RANK * (24 + 144 + 48 + 33) // 2 + 2 * 4 * SIGN_RANK
    assert size_bytes(encode(TUNED, BASE, "sign")) == signs + factors


def test_what_errors_count_in_most_is_in_int4_as_far_as_the_bytes_go() -> None:
    """Of matrices that are alike the most sensitive, of those that count alike the one with the largest changes; and
    all together never take more than SIGN_BITS a value."""
    names = [f"{letter}.weight" for letter in "abcdefghijklmnop"]
    base = {name: np.zeros((256, 256), np.float32) for name in names}
    tuned = {name: 1e-3 * RNG.standard_normal((256, 256), dtype=np.float32) for name in names}
    tuned["k.weight"] *= 2
    count = sum(tensor.size for tensor in tuned.values())

    def finer(sensitivity: dict[str, float]) -> set[str]:
        stored = encode(tuned, base, "sign", None, sensitivity)
        found = {key.removesuffix("#int4") for key in stored if key.endswith("#int4")}
        extra = size_bytes(encode({"a.weight": tuned["a.weight"]}, base, "int4")) - size_bytes(
            {key: array for key, array in stored.items() if key.startswith("b.")}
        )
        assert SIGN_BITS / 8 * count - extra < size_bytes(stored) <= SIGN_BITS / 8 * count
        return found

    assert finer({**dict.fromkeys(names, 1.0), "d.weight": 50.0, "n.weight": 60.0}) == {"d.weight", "n.weight"}
    assert "k.weight" in finer({})


def test_signs_make_no_effect_smaller() -> None:
    """What the main directions leave of a row has the same product with its code as with itself, other errors aside."""
    stored = encode(TUNED, BASE, "sign")
    for name in ("conv.weight", "linear.weight"):
        scale = f"{name}#scale"
        directions = decode({**stored, scale: np.zeros_like(stored[scale])}, BASE, "sign")[name] - BASE[name]
        rest = (DELTAS[name] - directions).reshape(len(stored[scale]), -1).astype(float)
        coded = (decode(stored, BASE, "sign")[name] - BASE[name] - directions).reshape(rest.shape).astype(float)

        np.testing.assert_allclose((coded * rest).sum(axis=1), (rest * rest).sum(axis=1), rtol=1e-2)
        assert (np.abs(coded) > 0).all()


def test_rows_of_few_large_values_lose_no_more_than_they_hold() -> None:
    """A row with one value in 400 that no main direction has: signs of its size everywhere would be far worse."""
    base = {"sparse.weight": np.zeros((400, 400), np.float32)}

    decoded = decode(encode({"sparse.weight": np.eye(400, dtype=np.float32)}, base, "sign"), base, "sign")

    error = decoded["sparse.weight"] - np.eye(400)
    assert (np.linalg.norm(error, axis=1) < 1.05).all()


def test_main_directions_are_kept_of_a_large_delta() -> None:
    """A change of a few directions, as tunings make them, comes back nearly whole, however unlike its rows are."""
    up, down = (RNG.standard_normal(shape, dtype=np.float32) for shape in ((300, 8), (8, 500)))
    base = {"large.weight": np.zeros((300, 500), np.float32)}

    decoded = decode(encode({"large.weight": up @ down}, base, "sign"), base, "sign")["large.weight"]

    assert np.linalg.norm(decoded - up @ down) < 0.15 * np.linalg.norm(up @ down)


def test_a_tiny_matrix_is_stored_whole_where_that_is_smaller() -> None:
    """A scale for each row of one value costs more than it saves."""
    base = {"tiny.weight": np.zeros((8, 2), np.float32)}
    stored = encode({"tiny.weight": base["tiny.weight"] + 0.5}, base, "int8")

    assert {name: array.dtype for name, array in stored.items()} == {"tiny.weight": np.float16}


@pytest.mark.parametrize("size", [1e-9, 1e5])
def test_what_fp16_cannot_hold_is_stored_in_fp32(size: float) -> None:
    """Changes below fp16's smallest numbers or beyond its largest are not rounded to zero or to infinity."""
    tuned = {"norm.weight": np.zeros(48, np.float32) + np.float32(size)}
    base = {"norm.weight": np.zeros(48, np.float32)}

    stored = encode(tuned, base, "int8")

    assert stored["norm.weight"].dtype == np.float32
    np.testing.assert_array_equal(decode(stored, base, "int8")["norm.weight"], tuned["norm.weight"])


@pytest.mark.parametrize("codec", CODED)
def test_a_zero_delta_is_the_base_to_the_bit(codec: str) -> None:
    """Tensors that a tuning left alone are not stored at all, negative zeros included (check U1)."""
    unchanged = {name: tensor.copy() for name, tensor in BASE.items()}
    unchanged["norm.weight"][0] = -0.0
    base = {**BASE, "norm.weight": unchanged["norm.weight"].copy()}

    assert encode(unchanged, base, codec) == {}
    assert decode({}, base, codec) == {}


@pytest.mark.parametrize("codec", CODED)
def test_rows_of_zeros_stay_as_they_are(codec: str) -> None:
    """A row without change has no scale to divide by, and comes back exactly."""
    tuned = {"linear.weight": TUNED["linear.weight"].copy()}
    tuned["linear.weight"][7] = BASE["linear.weight"][7]

    decoded = back(tuned, codec)["linear.weight"]

    np.testing.assert_allclose(decoded[7], BASE["linear.weight"][7], rtol=0, atol=1e-6 if codec == "lora" else 0)


def test_own_factors_are_stored_as_they_are() -> None:
    """A LoRA tuning comes back from its factors, in their bytes, to the rounding of fp16."""
    up, down = (RNG.standard_normal(shape, dtype=np.float32) for shape in ((48, 4), (4, 33)))
    tuned = {"linear.weight": BASE["linear.weight"] + 1e-2 * up @ down}

    stored = encode(tuned, BASE, "lora", {"linear.weight": (1e-2 * up, down)})

    assert {name: array.shape for name, array in stored.items()} == {
        "linear.weight#up": (48, 4),
        "linear.weight#down": (4, 33),
    }
    np.testing.assert_allclose(
        decode(stored, BASE, "lora")["linear.weight"], tuned["linear.weight"], rtol=0, atol=2e-3 * 0.1
    )


def test_low_rank_is_exact_for_a_matrix_of_that_rank() -> None:
    """And the nearest one otherwise: its error is the norm of the singular values left out (Eckart and Young, 1936)."""
    full = RNG.standard_normal((20, 12), dtype=np.float32)
    exact = full[:, :3] @ full[:3]
    up, down = low_rank(exact, 3)
    np.testing.assert_allclose(up @ down, exact, atol=1e-4)

    up, down = low_rank(full, 5)
    left_out = np.linalg.svd(full.astype(float), compute_uv=False)[5:]
    assert np.linalg.norm(full - up @ down) == pytest.approx(np.linalg.norm(left_out), rel=1e-4)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_encoded(codec: str, value: float) -> None:
    """The error names the tensor."""
    tuned = {name: tensor.copy() for name, tensor in TUNED.items()}
    tuned["odd.weight"][1, 1] = value

    with pytest.raises(ValueError, match=r"odd\.weight"):
        encode(tuned, BASE, codec)


def test_an_unknown_codec_is_refused() -> None:
    """By the one who writes as a mistake, by the one who reads as weights that cannot be used."""
    with pytest.raises(ValueError, match=r"'zip'.*int8"):
        encode(TUNED, BASE, "zip")
    with pytest.raises(DataLoss, match="'zip'") as loss:
        decode({}, BASE, "zip")

    assert loss.value.reason == "WEIGHTS_CORRUPT"


@pytest.mark.parametrize("codec", CODED)
def test_parts_that_do_not_fit_are_data_loss(codec: str) -> None:
    """A part that is missing, of another dtype, cut short or not finite, and a tensor that the model lacks."""
    stored = encode(TUNED, BASE, codec)
    damages = [{**stored, "another.weight": np.zeros(3, np.float16)}, {**stored, "conv.weight#what": np.zeros(3)}]
    for key, array in stored.items():
        damages += [{**stored, key: array[:-1]}, {**stored, key: array.astype(np.int64)}]
        if "#" in key:
            damages.append({name: other for name, other in stored.items() if name != key})
        if array.dtype.kind == "f":
            damages.append({**stored, key: np.full_like(array, np.nan)})

    for damaged in damages:
        with pytest.raises(DataLoss) as loss:
            decode(damaged, BASE, codec)
        assert loss.value.reason == "WEIGHTS_CORRUPT"


def test_parts_belong_to_their_tensor() -> None:
    """Whatever the parts, the manifest lists tensors."""
    assert tensor_names(encode(TUNED, BASE, "int4")) == set(SHAPES)


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=1, max_dims=4, max_side=9),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False),
    ),
    st.sampled_from(CODED),
)
def test_any_delta_comes_back_within_its_bound(delta: np.ndarray, codec: str) -> None:
    """Any shape and any mixture of large, small and zero values: a bound of the largest change holds for each."""
    base = {"some.weight": np.zeros(delta.shape, np.float32)}

    decoded = decode(encode({"some.weight": delta}, base, codec), base, codec).get("some.weight", base["some.weight"])

    largest = np.abs(delta).max()
    share = {"int8": 0.51 / 127, "int4": 0.51 / 7, "sign": 0.5, "lora": 4e-3}[codec]  # no matrix has more than 9 rows
    assert np.abs(decoded - delta).max() <= share * largest
