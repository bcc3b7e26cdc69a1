"""A base model's folder whose large weights are all in fp32: where they are not, in a copy.

The libraries read fp32 weights where the file is mapped, and all others into memory. The copy lies in the system's
folder for temporary files and loses its name once it is mapped: its space is free again when the program ends.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tuner_svc.model_folder import SECOND_TEXT_ENCODER, WEIGHTS, weight_files, weights_of
from tuner_svc.tensor_file import read_header, read_tensors
from unitune import telemetry, tensor_file
from unitune.base_model import is_large
from unitune.tensor_file import FileHeader, Kind

logger = logging.getLogger(__name__)

HALVES = ("F16", "BF16")
ROOM = 3  # times its size that a copy needs on the disk: an export writes the weights twice more, for a while


@contextmanager
def fp32_folder(folder: Path) -> Iterator[Path]:
    """The folder, or one like it until the `with` block ends. Where the disk has no room, or is none, the folder as it
    is.

    Raises UnusableBaseModel for weights that are no safetensors file.
    """
    shards = {part: _shards(folder, part) for part in (*WEIGHTS, SECOND_TEXT_ENCODER) if (folder / part).is_dir()}
    halves = {part: found for part, found in shards.items() if _is_to_be_copied(found)}
    size_bytes = sum(kind.size_bytes for found in halves.values() for kind in _kinds(found).values())
    if not halves:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="unitune-fp32-") as scratch:
        copy = Path(scratch)
        try:
            if is_in_memory(copy):
                raise OSError("the folder for temporary files is in memory")
            if shutil.disk_usage(copy).free < ROOM * size_bytes:
                raise OSError("the disk has no room")
            _write_copy(copy, folder, halves)
        except OSError as error:
            for part in halves:
                shutil.rmtree(copy / part, ignore_errors=True)
            what = "weights in fp32 stay in memory"
            telemetry.event(logger, what, level=logging.WARNING, detail=str(error), size_bytes=size_bytes)
            copy = folder
        yield copy


def is_in_memory(folder: Path) -> bool:
    """Whether files in a folder take memory in place of a disk's room."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:  # not Linux
        return False
    kinds = {Path(mount[1]): mount[2] for mount in mounts}
    where = next((at for at in (folder.resolve(), *folder.resolve().parents) if at in kinds), None)
    return where is not None and kinds[where] in ("tmpfs", "ramfs")


def _write_copy(copy: Path, folder: Path, halves: dict[str, list[FileHeader]]) -> None:
    for path in folder.iterdir():
        if path.name not in halves:
            (copy / path.name).symlink_to(path.resolve())
    for part, found in halves.items():
        (copy / part).mkdir()
        for path in (folder / part).glob("*.json"):
            if ".index." not in path.name:  # of shards
                shutil.copyfile(path, copy / part / path.name)
        _write_fp32(copy / part / weights_of(part), found)


def _shards(folder: Path, part: str) -> list[FileHeader]:
    """The headers of a part's weights."""
    found = [folder / path for path in weight_files(folder, part, weights_of(part))]
    return [read_header(path) for path in found if path.suffix == ".safetensors" and path.is_file()]


def _is_to_be_copied(shards: list[FileHeader]) -> bool:
    if not is_large(sum(shard.path.stat().st_size for shard in shards)):
        return False
    return any(dtype in HALVES for shard in shards for dtype in shard.dtypes.values())


def _kinds(shards: list[FileHeader]) -> dict[str, Kind]:
    """What is written of each tensor: fp32 for halves, and all else as it is."""
    found = {}
    for shard in shards:
        for name, shape in shard.shapes.items():
            dtype = "F32" if shard.dtypes[name] in HALVES else shard.dtypes[name]
            begin, end = shard.spans[name]
            found[name] = Kind(dtype, shape, (end - begin) * (2 if dtype != shard.dtypes[name] else 1))
    return found


def _write_fp32(path: Path, shards: list[FileHeader]) -> None:
    """One file of all shards, tensor by tensor."""
    tensors = {name: one for shard in shards for name, one in read_tensors(shard).items()}
    kinds = _kinds(shards)

    def data(name: str) -> memoryview:
        tensor = tensors[name]
        if kinds[name].dtype == "F32":
            tensor = tensor.float()
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data

    tensor_file.write_file(path, kinds, data, {"format": "pt"})
