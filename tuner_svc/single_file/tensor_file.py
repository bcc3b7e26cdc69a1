"""A safetensors file: its header without its tensors, its tensors through a memory map, and the writing of one.

Format: eight bytes with the header's length, little-endian; the header, JSON; then the tensors' bytes.
https://huggingface.co/docs/safetensors
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tuner_svc.model_folder import UnusableBaseModel

MAX_HEADER_BYTES = 100_000_000  # the limit of the library that writes such files
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
COUNTERS = ("I32", "BOOL", "U8")  # types of what a model counts with; nothing of it is kept
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PICKLES = (b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")  # first bytes of what torch.save writes
PICKLED_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass(frozen=True)
class FileHeader:
    """What a safetensors file says of itself."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]  # by tensor
    dtypes: Mapping[str, str]  # by tensor, in the format's words: F32, BF16 ...
    metadata: Mapping[str, str]


def read_header(path: Path) -> FileHeader:
    """The header. Raises UnusableBaseModel for a pickle, another kind of file and a file that is cut short."""
    if not path.is_file():
        raise UnusableBaseModel(f"{path} is not there, or is no file: give a .safetensors file")
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix.lower() in PICKLED_ENDINGS or start.startswith(PICKLES):
            raise UnusableBaseModel(
                f"{path} is not opened, since a pickled file can run any code: give the .safetensors file of the same "
                "model, or convert it on a machine that may be lost, as the checkpoint merger of a web UI does"
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise UnusableBaseModel(f"{path} is not a safetensors file: download it again, or give another")
        text = file.read(length)
    try:
        found = json.loads(text)
        metadata = {str(key): str(value) for key, value in found.pop("__metadata__", {}).items()}
        shapes = {name: tuple(entry["shape"]) for name, entry in found.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in found.items()}
        end = max((int(entry["data_offsets"][1]) for entry in found.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UnusableBaseModel(
            f"{path} is not a safetensors file, since its header cannot be read: download it again"
        ) from error
    missing = 8 + length + end - path.stat().st_size
    if missing > 0:
        raise UnusableBaseModel(f"{path} is cut short: {missing} bytes are missing; download it again")
    return FileHeader(path, shapes, dtypes, metadata)


def read_tensors(header: FileHeader, names: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The tensors of these names, all by default. They lie in the file's memory map until they are written to.

    Raises UnusableBaseModel for a dtype that no base model is computed in, such as the 8-bit floats.
    """
    wanted = [name for name in header.shapes if names(name)]
    for name in wanted:
        if header.dtypes[name] not in DTYPES and header.dtypes[name] not in COUNTERS:
            raise UnusableBaseModel(
                f"{header.path}: {name} is of type {header.dtypes[name]}; give a file in fp32, fp16 or bf16"
            )
    with safe_open(header.path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in wanted}


def write_tensors(path: Path, tensors: Mapping[str, Callable[[], Tensor]], like: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; each tensor is made by its function, written and dropped before the next one.

    `like` tells shape and dtype of each, and holds no memory of its own where it is a view of a map.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        size = like[name].numel() * like[name].element_size()
        entries[name] = {
            "dtype": NAMES[like[name].dtype],
            "shape": list(like[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(tensors):
            tensor = tensors[name]().contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # the folder gets its name after this
