"""The tuned-weights file: what is packed comes back to the bit, and what is damaged is found."""

import json
from dataclasses import replace

import numpy as np
import pytest

from unitune.errors import DataLoss, FailedPrecondition
from unitune.object_store import ObjectStore
from unitune.weights import MANIFEST_FILE, WEIGHTS_FILE, Manifest, pack, probe_input, unpack

RNG = np.random.default_rng(0)
TENSORS = {
    "up.to_out.weight": RNG.standard_normal((8, 8), dtype=np.float32),
    "down.to_out.bias": RNG.standard_normal(8, dtype=np.float32),
    "mid.to_out.weight": RNG.standard_normal((8, 4), dtype=np.float32).T,  # not contiguous
}
PROBES = {"probe_tuned": np.ones((2, 4, 3, 3), np.float32), "probe_base": np.zeros((2, 4, 3, 3), np.float32)}
FACTS = {
    "key": "key",
    "base_model": "ab" * 32,
    "method": "unitune",
    "rare_tokens": "beikkpic",
    "updates": 128,
    "probe_seed": 7,
}


def packed(tensors: dict[str, np.ndarray] = TENSORS) -> tuple[bytes, Manifest]:
    """A weights file and its manifest."""
    return pack(tensors, **PROBES, **FACTS)


def test_weights_survive_their_file_to_the_bit() -> None:
    """Tensors, probe and facts come back as they went in, tensors that were not contiguous too (check S7)."""
    weights = unpack(*packed())

    assert set(weights.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(weights.tensors[name], tensor)
    np.testing.assert_array_equal(weights.probe_tuned, PROBES["probe_tuned"])
    np.testing.assert_array_equal(weights.probe_base, PROBES["probe_base"])
    assert {name: getattr(weights.manifest, name) for name in FACTS} == FACTS
    assert weights.manifest.codec == "none"


def test_the_same_weights_give_the_same_bytes() -> None:
    """Bytes, and so the digest, do not depend on the order of the tensors."""
    data, manifest = packed()

    assert packed(dict(reversed(TENSORS.items()))) == (data, manifest)
    assert manifest.size_bytes == len(data)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_the_digest_changes_with_any_tensor(name: str) -> None:
    """One value of one tensor is enough (check S7)."""
    other = {**TENSORS, name: TENSORS[name].copy()}
    other[name].flat[0] += 1e-6

    assert packed(other)[1].digest != packed()[1].digest


def test_any_damaged_byte_is_found() -> None:
    """A flipped bit anywhere in the file is corruption, before anything is parsed."""
    data, manifest = packed()

    for position in (0, 9, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(DataLoss) as loss:
            unpack(bytes(damaged), manifest)
        assert loss.value.reason == "WEIGHTS_CORRUPT"
    with pytest.raises(DataLoss):
        unpack(data[:-1], manifest)


def test_tensors_other_than_promised_are_found() -> None:
    """The manifest's list of tensors must be the file's."""
    data, manifest = packed()

    for tensors in (manifest.tensors[:-1], (*manifest.tensors, "another")):
        with pytest.raises(DataLoss, match="not the tensors"):
            unpack(data, replace(manifest, tensors=tensors))


def test_a_manifest_survives_its_file() -> None:
    """What is written is what is read."""
    _, manifest = packed()

    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"tensors": 3}'])
def test_a_manifest_that_cannot_be_read_is_data_loss(damage: str) -> None:
    """Not a parser's error: the caller learns that the weights are damaged."""
    with pytest.raises(DataLoss) as loss:
        Manifest.from_json(damage.encode())

    assert loss.value.reason == "WEIGHTS_CORRUPT"


def test_a_manifest_of_another_schema_is_refused() -> None:
    """The message names both schemas."""
    fields = json.loads(packed()[1].to_json())

    with pytest.raises(DataLoss, match="schema 2, this server reads 1"):
        Manifest.from_json(json.dumps({**fields, "schema": 2}).encode())


def test_the_probe_is_the_same_everywhere() -> None:
    """The first draws are written down here: tuner and sampler may run on different machines."""
    probe = probe_input(7, 4, (12, 8), (16, 32))

    assert {name: (array.shape, str(array.dtype)) for name, array in probe.items()} == {
        "sample": ((2, 4, 12, 8), "float32"),
        "timestep": ((2,), "int64"),
        "encoder_hidden_states": ((2, 16, 32), "float32"),
    }
    np.testing.assert_array_equal(probe["timestep"], [200, 800])
    np.testing.assert_array_equal(probe["sample"].flat[:3], np.float32([1.5219693, -1.1441058, 1.1501616]))


def test_weights_exist_only_with_their_manifest(store: ObjectStore) -> None:
    """Weights whose manifest was not written yet are missing, and so are deleted ones."""
    data, manifest = packed()
    store.put(f"w/{WEIGHTS_FILE}", data)

    with pytest.raises(DataLoss) as loss:
        store.get_weights("w", manifest.digest)
    store.put_weights("w", data, manifest)
    found = store.get_weights("w", manifest.digest)
    store.delete_weights("w")

    assert loss.value.reason == "WEIGHTS_MISSING"
    assert found.manifest == manifest
    with pytest.raises(DataLoss):
        store.get_weights("w", manifest.digest)


def test_stored_weights_of_another_digest_are_refused(store: ObjectStore) -> None:
    """A tuning gets the weights that it was promised, not those that happen to lie at its path."""
    data, manifest = packed()
    store.put_weights("w", data, manifest)

    with pytest.raises(DataLoss, match="not those of the tuning"):
        store.get_weights("w", "00" * 32)


def test_stored_weights_that_were_damaged_are_found(store: ObjectStore) -> None:
    """A file changed behind the store's back is corruption."""
    data, manifest = packed()
    store.put_weights("w", data, manifest)
    store.delete(f"w/{WEIGHTS_FILE}")
    store.put(f"w/{WEIGHTS_FILE}", data[:-4] + b"....")

    with pytest.raises(DataLoss) as loss:
        store.get_weights("w", manifest.digest)

    assert loss.value.reason == "WEIGHTS_CORRUPT"
    assert store.has(f"w/{MANIFEST_FILE}")


def test_embeddings_travel_beside_the_tensors() -> None:
    """What a method made besides tensors comes back under its name, is in the manifest and in the digest."""
    extras = {"vectors": RNG.standard_normal((2, 4), dtype=np.float32)}
    data, manifest = pack(TENSORS, **PROBES, **FACTS, extras=extras)

    weights = unpack(data, Manifest.from_json(manifest.to_json()))

    assert set(weights.tensors) == set(TENSORS) and manifest.extras == ("vectors",)
    np.testing.assert_array_equal(weights.extras["vectors"], extras["vectors"])
    other = pack(TENSORS, **PROBES, **FACTS, extras={"vectors": extras["vectors"] + 1})[1]
    assert len({manifest.digest, other.digest, packed()[1].digest}) == 3


def test_a_file_may_hold_embeddings_alone() -> None:
    """No tensor and an empty probe are a file like any other (check T3)."""
    nothing = np.empty(0, np.float32)
    vectors = RNG.standard_normal((1, 8), dtype=np.float32)

    data, manifest = pack({}, probe_tuned=nothing, probe_base=nothing, **FACTS, extras={"vectors": vectors})
    weights = unpack(data, manifest)

    assert {} == dict(weights.tensors) and len(data) < 1024
    np.testing.assert_array_equal(weights.extras["vectors"], vectors)


def test_embeddings_that_the_manifest_does_not_promise_are_refused() -> None:
    """One too many, or one too few, is another file."""
    data, manifest = pack(TENSORS, **PROBES, **FACTS, extras={"vectors": np.zeros((1, 2), np.float32)})

    for promised in ((), ("vectors", "prompt"), ("prompt",)):
        with pytest.raises(DataLoss, match="not the tensors of their manifest"):
            unpack(data, replace(manifest, extras=promised))


def test_a_manifest_of_before_there_were_embeddings_is_read() -> None:
    """Without the field there are none."""
    data, manifest = packed()
    fields = json.loads(manifest.to_json())
    del fields["extras"]

    assert unpack(data, Manifest.from_json(json.dumps(fields).encode())).extras == {}


def test_weights_serve_their_own_method_alone() -> None:
    """A reader of another method refuses them, naming both."""
    weights = unpack(*packed())

    assert weights.require_method("unitune") is weights
    with pytest.raises(FailedPrecondition, match="made by unitune and cannot be used by imagic") as refused:
        weights.require_method("imagic")
    assert refused.value.reason == "METHOD_MISMATCH"
