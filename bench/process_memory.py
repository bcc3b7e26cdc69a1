"""The memory of a process of its own, seen from outside: what belongs to it alone, and what it has in RAM.

Pages of a mapped file are not private: the system can drop them, and shares them between processes.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

SAMPLED_EVERY_S = 0.1


@dataclass(frozen=True)
class Memory:
    """Bytes of a process at one time, or the largest of a span of time."""

    private: int  # `RssAnon`: heap, stacks and changed pages
    resident: int  # in RAM, mapped files included


def memory_of(pid: int) -> Memory:
    """The memory of a process now. Raises OSError if it has ended."""
    # The kernel's own counters. `smaps_rollup` visits every page, which for gigabytes takes half a core's time.
    kib = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, *value = line.split()
        if name in ("RssAnon:", "VmRSS:"):
            kib[name] = int(value[0])
    return Memory(kib["RssAnon:"] << 10, kib["VmRSS:"] << 10)


class MemoryWatch:
    """Samples a process from a thread, until it ends or the `with` block does; `peak` is the largest so far."""

    def __init__(self, pid: int) -> None:
        self.peak = Memory(0, 0)
        self._pid, self._ended = pid, Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLED_EVERY_S):
            try:
                now = memory_of(self._pid)
            except (OSError, KeyError):  # it has ended
                return
            self.peak = Memory(max(self.peak.private, now.private), max(self.peak.resident, now.resident))


def memory_with(modules: Sequence[str]) -> dict[str, Memory]:
    """The memory of one process that imports these modules one after the other, when it has each of them."""
    command = [sys.executable, "-c", _IMPORTS, *modules]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {name: Memory(*map(int, line.split())) for name, line in zip(modules, done.stdout.splitlines(), strict=True)}


_IMPORTS = """
import importlib, os, sys
from bench.process_memory import memory_of
for name in sys.argv[1:]:
    importlib.import_module(name)
    now = memory_of(os.getpid())
    print(now.private, now.resident)
"""


@dataclass(frozen=True)
class Measured:
    """A program that ran to its end."""

    seconds: float
    peak: Memory
    output: str  # its last line


def measure(program: Sequence[str], on_line: Callable[[str], None] = lambda line: None) -> Measured:
    """Run `python PROGRAM` and watch it; `on_line` gets what it says on standard error.

    Raises CalledProcessError if it fails.
    """
    began = time.monotonic()
    command = [sys.executable, *program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        with MemoryWatch(process.pid) as watch:
            for line in process.stderr:
                on_line(f"{time.monotonic() - began:7.1f} s  {line.rstrip()}")
            output = process.stdout.read()
            process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Measured(time.monotonic() - began, watch.peak, output.strip().rpartition("\n")[2])
