"""The store of pictures and weights: nothing half-written is ever read, nothing is overwritten, nothing is left."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.full_disk import mounted, read_only
from unitune import object_store, weights
from unitune.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from unitune.object_store import ObjectStore


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


def test_bytes_come_back(store: ObjectStore) -> None:
    """What is put is there, listed and got; what is deleted is gone, and deleting it again is fine."""
    store.put("a/b/c", b"123")
    store.put("a/bc", b"")
    assert store.get("a/b/c") == b"123" and store.get("a/bc") == b"" and store.has("a/b/c")
    assert store.list("a/b") == ["a/b/c"] and sorted(store.list("a")) == ["a/b/c", "a/bc"]
    store.delete("a/b/c")
    store.delete("a/b/c")
    assert not store.has("a/b/c") and store.list("a/b") == []
    with pytest.raises(FileNotFoundError):
        store.get("a/b/c")


def test_an_object_keeps_its_first_bytes(store: ObjectStore) -> None:
    """Paths are unique or named by content: a second put is the same upload again."""
    store.put("x", b"first")
    store.put("x", b"second")
    assert store.get("x") == b"first"


def test_the_folder_is_its_owners(tmp_path: Path) -> None:
    """Weights encode somebody's picture."""
    ObjectStore(str(tmp_path / "deep" / "store"))
    assert (tmp_path / "deep" / "store").stat().st_mode & 0o077 == 0


def test_weights_come_back_as_they_were(store: ObjectStore) -> None:
    """Tensors, probes and manifest survive, bit by bit."""
    data, manifest = packed()
    store.put_weights("t/1", data, manifest)
    read = store.get_weights("t/1", manifest.digest)
    assert read.manifest == manifest and set(read.tensors) == {"a", "b"}
    assert np.array_equal(read.tensors["b"], np.ones((2, 3), np.float32)) and read.probe_tuned.sum() == 2


def test_weights_without_manifest_do_not_exist(store: ObjectStore) -> None:
    """A tuner that was killed between the two files has made nothing."""
    data, manifest = packed()
    store.put("t/1/weights.safetensors", data)
    with pytest.raises(DataLoss) as caught:
        store.get_weights("t/1", manifest.digest)
    assert caught.value.reason == "WEIGHTS_MISSING"


@pytest.mark.parametrize("damage", ["flip", "cut", "other weights", "other digest", "no json", "other schema"])
def test_damaged_weights_are_data_loss(store: ObjectStore, damage: str) -> None:
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


def test_deleted_weights_leave_nothing(store: ObjectStore) -> None:
    """Both files go, the manifest first."""
    data, manifest = packed()
    store.put_weights("t/1", data, manifest)
    gone: list[str] = []
    delete = store.delete
    store.delete = lambda path: (gone.append(path), delete(path))[1]  # type: ignore[method-assign]
    store.delete_weights("t/1")
    assert gone == ["t/1/manifest.json", "t/1/weights.safetensors"]
    assert store.list("") == []


def test_a_full_store_is_store_full_and_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No half of an object is left, the error names no path, the log does not keep the reason to itself (r6)."""
    with mounted(tmp_path / "disk", "1m") as disk:
        store = ObjectStore(str(disk / "store"))
        store.put("small", b"1")
        with pytest.raises(ResourceExhausted) as full:
            store.put("a/large", bytes(2 << 20))
        assert full.value.reason == "STORE_FULL" and full.value.retry_after_s and str(tmp_path) not in str(full.value)
        assert "No space left on device" in caplog.records[-1].__dict__["fields"]["detail"]
        assert store.get("small") == b"1" and store.list("a") == []
        store.put("a/large", bytes(100))  # the space is there again


def test_a_store_that_cannot_be_written_is_store_down(tmp_path: Path) -> None:
    """A file system that can only be read: writing and deleting are UNAVAILABLE, reading goes on (r6)."""
    store = ObjectStore(str(tmp_path / "store"))
    store.put("a", b"1")
    with read_only(tmp_path / "store"):
        for call in (lambda: store.put("b", b"2"), lambda: store.delete("a"), lambda: store.discard("a")):
            with pytest.raises(Unavailable) as down:
                call()
            assert down.value.reason == "STORE_DOWN" and down.value.retry_after_s
        assert store.get("a") == b"1"


def test_an_object_store_that_is_not_there_is_store_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nobody listens at, asked again for 20 seconds at most (r6)."""
    monkeypatch.setattr(object_store, "RETRIES_S", 0.5)
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ALLOW_HTTP": "true", "REGION": "r"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable) as down:
        ObjectStore("s3://bucket/").get("a")
    assert down.value.reason == "STORE_DOWN" and "127.0.0.1" not in down.value.message


async def test_a_folder_that_hangs_is_store_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading what never answers, as a lost network disk does, ends with UNAVAILABLE (r6)."""
    monkeypatch.setattr(object_store, "ANSWER_S", 0.5)
    store = ObjectStore(str(tmp_path / "store"))
    os.mkfifo(tmp_path / "store" / "pipe")
    with pytest.raises(Unavailable) as down:
        await store.answer(store.get, "pipe")
    assert down.value.reason == "STORE_DOWN"
    (tmp_path / "store" / "pipe").write_bytes(b"")  # lets the thread go


@pytest.mark.parametrize("part", ["manifest.json", "weights.safetensors"])
def test_weights_that_are_a_circle_of_links_are_data_loss(tmp_path: Path, part: str) -> None:
    """What cannot be a file of ours is DATA_LOSS, and can still be discarded (r16)."""
    store = ObjectStore(str(tmp_path / "store"))
    data, manifest = packed()
    store.put_weights("t/1", data, manifest)
    path = tmp_path / "store" / "t" / "1" / part
    path.unlink()
    path.symlink_to(part)
    with pytest.raises(DataLoss) as damaged:
        store.get_weights("t/1", manifest.digest)
    assert damaged.value.reason == "STORE_CORRUPT" and str(tmp_path) not in damaged.value.message
    store.discard("t")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b"[]",
        b"3",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"tensors": [["a"]]}',
        lambda whole: whole.replace(b'"updates": 3', b'"updates": "3"'),
        lambda whole: whole.replace(b'"method": "unitune"', b'"method": 3'),
        lambda whole: whole.replace(b'"a",', b'["a"],'),
    ],
    ids=lambda text: text[:20].decode(errors="replace") if isinstance(text, bytes) else "wrong type",
)
def test_a_manifest_that_is_none_is_data_loss(store: ObjectStore, text: Any) -> None:
    """Whatever JSON, or no JSON, lies there (r16)."""
    data, manifest = packed()
    whole = manifest.to_json()
    changed = text if isinstance(text, bytes) else text(whole)
    assert changed != whole
    store.put("t/1/weights.safetensors", data)
    store.put("t/1/manifest.json", changed)
    with pytest.raises(DataLoss) as caught:
        store.get_weights("t/1", manifest.digest)
    assert caught.value.reason == "WEIGHTS_CORRUPT"


def test_what_is_discarded_leaves_nothing_but_what_is_kept(tmp_path: Path) -> None:
    """Also what a killed process left half-written, which a bucket does not list (r9)."""
    store = ObjectStore(str(tmp_path / "store"))
    for path in ("t/1/a", "t/2/manifest.json", "t/2/b", "u/c"):
        store.put(path, b"1")
    (tmp_path / "store" / "t" / "1" / "weights.safetensors#1").write_bytes(b"half")
    store.discard("t", keep="t/2")
    left = sorted(str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("*"))
    assert left == ["t", "t/2", "t/2/b", "t/2/manifest.json", "u", "u/c"]
    with pytest.raises(InvalidArgument):
        store.discard("../store")


@pytest.mark.parametrize("path", ["../a", "a\0b", "x" * 5000, "/../../etc/passwd"])
def test_a_path_that_is_none_is_refused(store: ObjectStore, path: str) -> None:
    """It is the caller's mistake, not the store's: INVALID_ARGUMENT, and nothing outside of the store is touched."""
    for call in (
        lambda: store.get(path),
        lambda: store.put(path, b"1"),
        lambda: store.delete(path),
        lambda: store.has(path),
    ):
        with pytest.raises(InvalidArgument) as refused:
            call()
        assert refused.value.reason == "INVALID_FIELD"


def test_packing_is_deterministic() -> None:
    """The same tensors give the same bytes in whatever order they come, and so the same digest."""
    data, manifest = packed()
    assert packed() == (data, manifest) and manifest.tensors == ("a", "b")
    assert weights.Manifest.from_json(manifest.to_json()) == manifest
