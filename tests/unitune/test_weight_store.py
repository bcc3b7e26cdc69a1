"""The store of pictures and weights: nothing half-written is ever read, nothing is overwritten, nothing is left."""

from pathlib import Path

import numpy as np
import pytest

from unitune import weights
from unitune.errors import DataLoss
from unitune.weight_store import WeightStore


def packed(value: float = 1.0) -> tuple[bytes, weights.Manifest]:
    """A small weights file."""
    return weights.pack(
        {"b": np.full((2, 3), value, np.float32), "a": np.arange(4, dtype=np.float32)},
        probe_tuned=np.ones((1, 2), np.float32),
        probe_base=np.zeros((1, 2), np.float32),
        key="key",
        base_model="base",
        method="unitune",
        rare_tokens="beikkpic",
        updates=3,
        probe_seed=0,
    )


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    """An empty folder."""
    return WeightStore(str(tmp_path / "store"))


@pytest.mark.parametrize("url", ["folder", "memory:///"])
def test_bytes_come_back(tmp_path: Path, url: str) -> None:
    """What is put is there, listed and got; what is deleted is gone, and deleting it again is fine."""
    store = WeightStore(str(tmp_path / url) if url == "folder" else url)
    store.put("a/b/c", b"123")
    store.put("a/bc", b"")
    assert store.get("a/b/c") == b"123" and store.get("a/bc") == b"" and store.has("a/b/c")
    assert store.list("a/b") == ["a/b/c"] and sorted(store.list("a")) == ["a/b/c", "a/bc"]
    store.delete("a/b/c")
    store.delete("a/b/c")
    assert not store.has("a/b/c") and store.list("a/b") == []
    with pytest.raises(FileNotFoundError):
        store.get("a/b/c")


def test_an_object_keeps_its_first_bytes(store: WeightStore) -> None:
    """Paths are unique or named by content: a second put is the same upload again."""
    store.put("x", b"first")
    store.put("x", b"second")
    assert store.get("x") == b"first"


def test_the_folder_is_its_owners(tmp_path: Path) -> None:
    """Weights encode somebody's picture."""
    WeightStore(str(tmp_path / "deep" / "store"))
    assert (tmp_path / "deep" / "store").stat().st_mode & 0o077 == 0


def test_weights_come_back_as_they_were(store: WeightStore) -> None:
    """Tensors, probes and manifest survive, bit by bit."""
    data, manifest = packed()
    store.put_weights("t/1", data, manifest)
    read = store.get_weights("t/1", manifest.digest)
    assert read.manifest == manifest and set(read.tensors) == {"a", "b"}
    assert np.array_equal(read.tensors["b"], np.ones((2, 3), np.float32)) and read.probe_tuned.sum() == 2


def test_weights_without_manifest_do_not_exist(store: WeightStore) -> None:
    """A tuner that was killed between the two files has made nothing."""
    data, manifest = packed()
    store.put("t/1/weights.safetensors", data)
    with pytest.raises(DataLoss) as caught:
        store.get_weights("t/1", manifest.digest)
    assert caught.value.reason == "WEIGHTS_MISSING"


@pytest.mark.parametrize("damage", ["flip", "cut", "other weights", "other digest", "no json", "other schema"])
def test_damaged_weights_are_data_loss(store: WeightStore, damage: str) -> None:
    """One flipped bit, a short file, another tuning's file or a broken manifest: never weights, always DATA_LOSS."""
    data, manifest = packed()
    digest = manifest.digest
    text = manifest.to_json()
    if damage == "flip":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif damage == "cut":
        data = data[:-7]
    elif damage == "other weights":
        data = packed(2.0)[0]
    elif damage == "other digest":
        digest = packed(2.0)[1].digest
    elif damage == "no json":
        text = text[:-20]
    else:
        text = text.replace(b'"schema": 1', b'"schema": 2')
    store.put("t/1/weights.safetensors", data)
    store.put("t/1/manifest.json", text)
    with pytest.raises(DataLoss) as caught:
        store.get_weights("t/1", digest)
    assert caught.value.reason == "WEIGHTS_CORRUPT"


def test_deleted_weights_leave_nothing(tmp_path: Path, store: WeightStore) -> None:
    """Both files go, the manifest first."""
    data, manifest = packed()
    store.put_weights("t/1", data, manifest)
    gone: list[str] = []
    delete = store.delete
    store.delete = lambda path: (gone.append(path), delete(path))[1]  # type: ignore[method-assign]
    store.delete_weights("t/1")
    assert gone == ["t/1/manifest.json", "t/1/weights.safetensors"]
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_packing_is_deterministic() -> None:
    """The same tensors give the same bytes in whatever order they come, and so the same digest."""
    data, manifest = packed()
    assert packed() == (data, manifest) and manifest.tensors == ("a", "b")
    assert weights.Manifest.from_json(manifest.to_json()) == manifest
