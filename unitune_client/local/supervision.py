"""Services as child processes that are kept running: one that ends unasked is started again at its address.

The other services know that address. What fails again and again is given up: after RESTARTS restarts
within WITHIN_S seconds the next end of that service is the end of all. An end on a full disk does not count: then the
service is started again when there is space.
"""

import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from unitune.system_errors import FULL_BYTES, full_sentence, sentence
from unitune_client.local import programs
from unitune_client.local.machine import LocalError

RESTARTS, WITHIN_S = 5, 600.0
FIRST_WAIT_S = 0.5  # before a restart; twice as long before each further one
LOOKS_EVERY_S = 0.2
AGAIN_S = 2.0  # before a restart that could not be made
# Before the first look whether a full disk has space again; twice as long before each further one, up to the longest.
SPACE_WAIT_S, LONGEST_SPACE_WAIT_S = 2.0, 120.0
LISTENING = re.compile(rb"^listening (\S+:\d+)$", re.MULTILINE)

Say = Callable[[str], object]


class Service:
    """One program, its settings and its log. It tells where it listens by a line of its output."""

    def __init__(
        self, name: str, module: str, settings: dict[str, str], log: Path, *, keep_open: Sequence[int] = ()
    ) -> None:
        """`settings` name its own address under UNITUNE_NAME_ADDRESS; `keep_open` are files that it inherits."""
        self.name, self.log, self.address = name, log, ""
        self._module, self.settings, self._keep_open = module, settings, keep_open
        self._log_bytes = 0  # what earlier runs wrote
        self.process = self._start()
        self.began_s = time.monotonic()
        self.ended_s: deque[float] = deque()  # when it ended unasked, lately
        self.starts_at_s: float | None = None  # when it is to be started again
        self.is_awaited = False  # it was started again, and does not listen yet
        self.space_waits = 0  # how often it was waited for space on the disk, since it last ended with some

    def listens(self) -> bool:
        """Whether it has said so; `address` is then known."""
        with self.log.open("rb") as log:
            log.seek(self._log_bytes)
            found = LISTENING.search(log.read())
        if found is not None:
            self.address = found[1].decode()
        return found is not None

    def restart(self) -> None:
        """Start it again, at the same address."""
        if self.address:
            self.settings[f"UNITUNE_{self.name.upper()}_ADDRESS"] = self.address
        self.began_s = time.monotonic()
        self.process = self._start()
        self.starts_at_s, self.is_awaited = None, True

    def failure(self, more: str = "") -> LocalError:
        """The error that tells its end."""
        return programs.failure(f"the {self.name} ended with status {self.process.returncode}{more}", self.log)

    def _start(self) -> programs.Process:
        self.log.parent.mkdir(parents=True, exist_ok=True)  # somebody may have cleaned it away
        self._log_bytes = self.log.stat().st_size if self.log.exists() else 0
        return programs.start([self._module], self.settings, self.log, keep_open=self._keep_open)


class Supervisor:
    """Keeps services running, in a thread of its own, from `start` to `end`."""

    def __init__(self, services: Sequence[Service], say: Say, on_failure: Callable[[], object]) -> None:
        """`say` is told of every end and restart, in words; `on_failure` is called when a service is given up."""
        self._services, self._say, self._on_failure = services, say, on_failure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.failure: LocalError | None = None
        self.last_end: LocalError | None = None
        self._said: set[str] = set()

    def start(self) -> None:
        """Begin to watch the services."""
        self._thread.start()

    def end(self) -> None:
        """Stop watching: no service is started again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(LOOKS_EVERY_S):
            for service in self._services:
                try:
                    self._look_at(service)
                except OSError as error:  # such as a log folder that was cleaned, or no memory for a process
                    self._say_once(f"the {service.name} cannot be watched: {sentence(error)}")
                    service.starts_at_s = time.monotonic() + AGAIN_S if service.process.poll() is not None else None
                if self.failure is not None:
                    self._on_failure()
                    return

    def _say_once(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            self._say(problem)

    def _look_at(self, service: Service) -> None:
        now = time.monotonic()
        if service.starts_at_s is not None:
            if now < service.starts_at_s:
                return
            if service.space_waits and _is_full(service.log.parent):
                self._wait_for_space(service, now)
            else:
                service.restart()
        elif service.process.poll() is not None:
            self._note_end(service, now)
        elif service.is_awaited and service.listens():
            service.is_awaited = False
            self._say(f"the {service.name} listens again, after {now - service.began_s:.1f} s")

    def _note_end(self, service: Service, now: float) -> None:
        if _is_full(service.log.parent):  # a reason to end that no restart takes away
            self.last_end = service.failure(" and is started again when there is space")
            self._wait_for_space(service, now)
            return
        service.space_waits = 0
        while service.ended_s and service.ended_s[0] < now - WITHIN_S:
            service.ended_s.popleft()
        service.ended_s.append(now)
        number, minutes = len(service.ended_s), f"{WITHIN_S / 60:.0f} minutes"
        if number > RESTARTS:
            self.failure = service.failure(f", {number} times within {minutes}, and is given up")
            return
        self.last_end = service.failure(" and is started again: repeat the command")
        service.starts_at_s = now + FIRST_WAIT_S * 2 ** (number - 1)
        status = service.process.returncode
        self._say(
            f"the {service.name} ended with status {status}; it is started again "
            f"({number} of at most {RESTARTS} times within {minutes}); its log is {service.log}"
        )

    def _wait_for_space(self, service: Service, now: float) -> None:
        wait_s = min(SPACE_WAIT_S * 2**service.space_waits, LONGEST_SPACE_WAIT_S)
        service.space_waits += 1
        service.starts_at_s = now + wait_s
        full = full_sentence(service.log.parent)
        self._say(f"the {service.name} is not started again yet: {full}; the next try is in {wait_s:g} s")


def _is_full(folder: Path) -> bool:
    """Whether the folder's disk has so little free space that programs fail for want of it."""
    return folder.is_dir() and shutil.disk_usage(folder).free < FULL_BYTES
