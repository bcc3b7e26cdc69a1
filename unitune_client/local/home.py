"""The cache folder of this machine's own services, UNITUNE_HOME, and the lock of the program that uses it.

    engines/  graphs/    made once per base model
    models/              base models that came as one file, as folders
    store/    state/     tuned weights and pictures; which tunings there are
    logs/                one folder per start, the newest ten
    builds.json          seconds that the last engine of each base model took
    reserve              removed on a full disk, so that tunings can be deleted
    lock                 locked by the one program that runs services here
    running.json         how to reach them, if that program shares them

The state is one SQLite file, so two gateways must never run on it: services start only under the Lock.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from unitune.system_errors import about
from unitune_client.local.machine import LocalError, disk_full

KEPT_LOGS = 10
LOCK_S = 2.0  # for a program that only looks, or ends, to let go of the lock
LOOKS_EVERY_S = 0.05
RESERVE_BYTES = 4 << 20  # logs of three services, and what they write when they delete
LEAST_FREE_BYTES = 1 << 20


@dataclass(frozen=True)
class Running:
    """Services that another program shares."""

    pid: int
    address: str
    base_model: str
    logs: str = ""  # the folder of their logs


@dataclass(frozen=True)
class Home:
    """The cache folder; nothing is made before `prepare`."""

    root: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """UNITUNE_HOME, or ~/.cache/unitune. Raises LocalError for a user who has no home directory."""
        try:
            return cls(Path(environ.get("UNITUNE_HOME") or "~/.cache/unitune").expanduser().absolute())
        except RuntimeError as error:  # no HOME, and a user whom the system does not know, as containers have them
            raise LocalError("this user has no home directory: set UNITUNE_HOME to a folder") from error

    @property
    def engines(self) -> Path:
        """Engine folders, by digest."""
        return self.root / "engines"

    @property
    def graphs(self) -> Path:
        """Exported graphs, by digest."""
        return self.root / "graphs"

    @property
    def models(self) -> Path:
        """Base models that came as one file, written as folders."""
        return self.root / "models"

    @property
    def store(self) -> Path:
        """The weight store."""
        return self.root / "store"

    @property
    def state(self) -> Path:
        """The gateway's SQLite file."""
        return self.root / "state" / "gateway.sqlite"

    def prepare(self) -> None:
        """Make the folders, closed to other users: tuned weights can show the pictures they were tuned on.

        Raises LocalError when the disk is so full that no service could write its log.
        """
        for folder in (
            self.root,
            self.engines,
            self.graphs,
            self.models,
            self.store,
            self.state.parent,
            self.root / "logs",
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_reserve()
        if shutil.disk_usage(self.root).free < LEAST_FREE_BYTES:
            raise disk_full(self.root)

    @contextmanager
    def space_to_delete(self) -> Iterator[None]:
        """On a full disk remove the reserve while the block lasts: services that delete need space, too."""
        if self.root.is_dir() and shutil.disk_usage(self.root).free < RESERVE_BYTES:
            self._reserve.unlink(missing_ok=True)
        try:
            yield
        finally:
            if self.root.is_dir():
                self._make_reserve()

    def _make_reserve(self) -> None:
        """Write the reserve, if enough is free beside it. Its bytes are random: some file systems store no zeros."""
        if self._reserve.exists() or shutil.disk_usage(self.root).free < 2 * RESERVE_BYTES:
            return
        try:
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))
        except OSError:  # somebody else was faster
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)

    @property
    def _reserve(self) -> Path:
        return self.root / "reserve"

    def new_logs(self) -> Path:
        """A new folder for logs; of the older ones the newest stay."""
        logs = self.root / "logs"
        for old in sorted(logs.iterdir())[: -KEPT_LOGS + 1]:
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=logs))

    def engine_names(self) -> list[str]:
        """The engines that were built here."""
        if not self.engines.is_dir():
            return []
        folders = [one for one in self.engines.iterdir() if one.is_dir() and not one.name.startswith(".")]
        return sorted(one.name for one in folders)

    def build_s(self, base_model: str) -> dict[str, float]:
        """Seconds of each stage of the last build for a base model, by its name; empty if that is not known."""
        try:
            return {stage: float(took_s) for stage, took_s in json.loads(self._builds.read_text())[base_model].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def note_build(self, base_model: str, took_s: Mapping[str, float]) -> None:
        """Keep the seconds that each stage took, so that the next build can tell them."""
        try:
            builds = dict(json.loads(self._builds.read_text()))
        except (OSError, ValueError, TypeError):
            builds = {}
        with suppress(OSError, TypeError):  # an estimate is worth no error
            unfinished = self.root / f".builds.{os.getpid()}"
            rounded = {stage: round(seconds, 1) for stage, seconds in took_s.items()}
            unfinished.write_text(json.dumps({**builds, base_model: rounded}))
            unfinished.replace(self._builds)

    def size_bytes(self) -> int:
        """What everything here takes on the disk."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())

    def lock(self) -> "Lock | None":
        """The lock under which services may run here; None while another program has it. It ends with this process."""
        file = (self.root / "lock").open("a+")
        gives_up_at = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > gives_up_at or self.holder() is not None:
                    file.close()
                    return None
                time.sleep(LOOKS_EVERY_S)
            else:
                return Lock(self, file)

    def running(self) -> Running | None:
        """The services that another program runs here and shares; None if there are none."""
        if not self.root.is_dir() or not self._is_locked():
            return None
        try:
            return Running(**json.loads(self._running.read_text()))
        except (OSError, ValueError, TypeError):  # it shares none, or not yet
            return None

    def holder(self) -> int | None:
        """The process that has the lock; None if none has, or it has not written its number yet."""
        if not self._is_locked():
            return None
        try:
            pid = int((self.root / "lock").read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def _is_locked(self) -> bool:
        try:
            lock = (self.root / "lock").open()
        except FileNotFoundError:
            return False
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who look are not in each other's way
            except BlockingIOError:
                return True
        return False

    @property
    def _builds(self) -> Path:
        return self.root / "builds.json"

    @property
    def _running(self) -> Path:
        return self.root / "running.json"


class Lock:
    """The lock of a cache folder, until it is released: only its holder runs services there."""

    def __init__(self, home: Home, file: IO[str]) -> None:
        self._home, self._file = home, file
        self._home._running.unlink(missing_ok=True)  # of one that was killed
        self._write_holder(str(os.getpid()))

    def share(self, address: str, base_model: str, logs: Path) -> None:
        """Tell other programs of this user where the services are."""
        unfinished = self._home.root / f".running.{os.getpid()}"
        with about(unfinished):
            unfinished.write_text(json.dumps(asdict(Running(os.getpid(), address, base_model, str(logs)))))
        unfinished.replace(self._home._running)

    def fileno(self) -> int:
        """The locked file; a process that inherits it holds the lock, too."""
        return self._file.fileno()

    def release(self) -> None:
        """Let others run services here."""
        self._home._running.unlink(missing_ok=True)
        self._write_holder("")
        self._file.close()

    def _write_holder(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()
