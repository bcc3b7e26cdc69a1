"""Files of tensors: read and written as the safetensors library does, and shared between folders."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unitune.base_model import SETTLED_NS, file_digest
from unitune.hard_link import link_or_copy
from unitune.tensor_file import map_tensors, read_places, write_tensors

SHAPES = {"matrix": (3, 4), "scalar": (), "odd": (5,), "kernel": (2, 8, 3, 3), "empty": (0, 3)}


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Random ones of several shapes and dtypes."""
    rng = np.random.default_rng(0)
    kinds = {name: np.float16 if name == "odd" else np.float32 for name in SHAPES}
    return {name: np.asarray(rng.standard_normal(shape)).astype(kinds[name]) for name, shape in SHAPES.items()}


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """All of them."""
    write_tensors(path, {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


def test_the_library_reads_what_is_written_and_we_read_what_it_writes(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    """Values, shapes and dtypes are equal to the bit, both ways; ours begin at a multiple of 64 bytes."""
    write(tmp_path / "ours.safetensors", tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")

    for found in (load_file(tmp_path / "ours.safetensors"), map_tensors(tmp_path / "theirs.safetensors")):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name], tensor)
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
    assert min(place.offset for place in read_places(tmp_path / "ours.safetensors").values()) % 64 == 0


def test_mapped_tensors_cannot_be_written_to(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    """They are the file."""
    write(tmp_path / "a.safetensors", tensors)

    with pytest.raises(ValueError, match="read-only"):
        map_tensors(tmp_path / "a.safetensors")["matrix"][0, 0] = 1


@pytest.mark.parametrize("damage", ["cut short", "no header", "another kind", "header of nothing"])
def test_a_damaged_file_is_refused_before_it_is_mapped(
    tmp_path: Path, tensors: dict[str, np.ndarray], damage: str
) -> None:
    """The error names the file."""
    path = tmp_path / "a.safetensors"
    write(path, tensors)
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut short": data[:-1],
            "no header": data[:4],
            "another kind": b"PK\3\4" + data,
            "header of nothing": (2).to_bytes(8, "little") + b"[]",
        }[damage]
    )

    with pytest.raises(ValueError, match=r"a\.safetensors"):
        map_tensors(path)


def test_a_value_of_another_shape_is_refused(tmp_path: Path) -> None:
    """What was announced in the header is what must come."""
    with pytest.raises(ValueError, match="not what was announced"):
        write_tensors(tmp_path / "a", {"x": (np.float32, (2,))}, lambda name: np.zeros(3, np.float32))


def test_a_file_is_shared_within_a_file_system_and_copied_to_another(tmp_path: Path) -> None:
    """One inode where that can be, the same bytes where it cannot."""
    source = tmp_path / "a"
    source.write_bytes(b"bytes")
    link_or_copy(source, tmp_path / "b")
    assert os.path.samefile(source, tmp_path / "b")

    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system at /dev/shm")
    other = elsewhere / f"unitune-test-{os.getpid()}"
    try:
        link_or_copy(source, other)
        assert other.read_bytes() == b"bytes" and not os.path.samefile(source, other)
    finally:
        other.unlink(missing_ok=True)


def test_a_digest_follows_a_change_in_place(tmp_path: Path) -> None:
    """A file is digested once, under all of its names, until it is changed, of the same size or not."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    old = path.stat().st_mtime_ns - 2 * SETTLED_NS
    os.utime(path, ns=(old, old))
    first = file_digest(path)
    os.link(path, tmp_path / "b")
    assert file_digest(tmp_path / "b") == first

    path.write_bytes(b"two")

    assert file_digest(path) != first and file_digest(tmp_path / "b") == file_digest(path)
