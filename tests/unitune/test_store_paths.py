"""Paths of the store: one form for weights, and no object outside of it."""

from pathlib import Path

import pytest

from unitune import store_paths
from unitune.errors import InvalidField
from unitune.object_store import ObjectStore

WRONG = [
    "",
    "images/alice",
    "weights/t/1",
    "tunings/alice",
    "tunings/alice/t-001",
    "tunings/alice/t-001/0",
    "tunings/alice/t-001/1/",
    "tunings/alice/t-001/1/2",
    "tunings/alice/t-001/-1",
    "tunings/Alice/t-001/1",
    "tunings/alice/../1",
    "tunings/../alice/t-001/1",
    "/tunings/alice/t-001/1",
    "tunings//t-001/1",
    "tunings/alice/t-001\x00/1",
    "tunings/alice/t-001/1\n",
    "tunings\\alice\\t-001\\1",
    "tunings/alice/t-001/1#2",
    f"tunings/alice/t-{'x' * 700}/1",
]


def test_weights_have_one_form() -> None:
    """What the gateway makes is right, and is read as what it was made of."""
    path = store_paths.weights_path("alice", "t-0123", 12)
    store_paths.check_weights(path, "path")
    store_paths.check_object(f"{path}/weights.safetensors")
    assert store_paths.read_weights(path) == ("alice", "t-0123", 12)
    assert store_paths.read_image(store_paths.image_path("alice", "0" * 64) + "/file") == ("alice", "0" * 64)


@pytest.mark.parametrize("path", WRONG)
def test_any_other_path_of_weights_is_refused(path: str) -> None:
    """Naming the field, the path and the form that is right (r17)."""
    with pytest.raises(InvalidField) as caught:
        store_paths.check_weights(path, "weights.path")
    assert caught.value.field == "weights.path" and "tunings/{tenant}/{tuning}/{attempt}" in caught.value.message


@pytest.mark.parametrize(
    "path", ["", "/etc/x", "../x", "a/../b", "a/..", "./a", "a//b", "a/", "a\x00b", "a b", "a#1", "é"]
)
def test_the_store_refuses_what_is_no_path(path: str, tmp_path: Path) -> None:
    """To write, read, look for, delete and list alike, and nothing is made anywhere (r17)."""
    store = ObjectStore(str(tmp_path / "store"))
    calls = (store.get, store.has, store.delete, store.renew, lambda path: store.put(path, b"x"))
    for call in calls:
        with pytest.raises(InvalidField):
            call(path)
    if path:
        with pytest.raises(InvalidField):
            store.list(path)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []
