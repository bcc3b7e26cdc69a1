"""The tensors of a refit that are not the base model's: arrays in memory, or in a file beside the base weights.

The file has each tensor at the place that it has in the file of base weights, and holes elsewhere. It is removed as
soon as the session is open, which goes on reading it. A sampler that is killed leaves it: the next one removes it.
"""

import contextlib
import fcntl
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.onnx_file import Initializer, read_from
from unitune import telemetry

logger = logging.getLogger(__name__)

PREFIX = ".refit-"
YOUNG_S = 60.0  # a file may be so young that its owner has not locked it yet


class ChangedTensors(dict[str, NDArray[Any]]):
    """Takes tensors one by one. As a dict it has those that are in memory."""

    def __init__(self, folder: Path, places: Mapping[str, Initializer]) -> None:
        """`places` are the graph's initializers if the tensors are to lie in a file in `folder`, else nothing.

        Where no file can be written, they stay in memory.
        """
        super().__init__()
        self._folder, self._places = folder, places
        self._file: IO[bytes] | None = None
        self._in_file: list[str] = []

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """Keep a tensor that is in the graph's layout."""
        place = self._places[name].outside if name in self._places else None
        if place is None or not self._is_written(place[0], tensor):
            self[name] = np.ascontiguousarray(tensor)
            return
        self._in_file.append(name)

    def graph(self, path: Path) -> Path | bytes:
        """The graph at `path`, which reads what is in the file from there."""
        if self._file is None:
            return path
        self._file.flush()
        return read_from(path.read_bytes(), Path(self._file.name).name, self._in_file)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_written(self, offset: int, tensor: NDArray[Any]) -> bool:
        try:
            if self._file is None:
                self._file = NamedTemporaryFile(prefix=PREFIX, dir=self._folder)  # noqa: SIM115  (close removes it)
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until its owner closes it, or ends
            self._file.seek(offset)
            self._file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        except OSError:  # a folder that can only be read, or a full disk
            telemetry.failure(logger, "weights of a refit stay in memory, as they cannot be written beside the engine")
            self._places = {}
            return False
        return True


def remove_left_over(folder: Path) -> list[str]:
    """Remove the files of refits whose sampler was killed; their names. Those of living samplers, which may share the
    folder, are locked, and stay; so do young ones."""
    removed = []
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), path.open("r+b") as file:  # locked, gone, or in a folder that is only read
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > YOUNG_S:
                path.unlink()
                removed.append(path.name)
    return removed
