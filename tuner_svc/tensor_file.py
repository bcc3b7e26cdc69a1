"""A safetensors file of another program, as PyTorch has its tensors: what it may be, and the writing of one like it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tuner_svc.model_folder import UnusableBaseModel
from unitune import tensor_file
from unitune.tensor_file import FileHeader, Kind

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
COUNTERS = ("I32", "BOOL", "U8")  # types of what a model counts with; nothing of it is kept
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PICKLES = (b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")  # first bytes of what torch.save writes
PICKLED_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


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
    try:
        return tensor_file.read_header(path)
    except ValueError as error:
        raise UnusableBaseModel(f"{error}: download it again, or give another") from error


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
    kinds = {name: Kind(NAMES[one.dtype], tuple(one.shape), one.nbytes) for name, one in like.items()}

    def data(name: str) -> memoryview:
        return tensors[name]().contiguous().reshape(-1).view(torch.uint8).numpy().data

    tensor_file.write_file(path, {name: kinds[name] for name in tensors}, data, {"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())  # the folder gets its name after this
