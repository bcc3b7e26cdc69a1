"""UniTune's other programs as child processes: they end with this process, and none is left after a stop."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from unitune.drain import KILLED_AFTER_S
from unitune.system_errors import FULL_BYTES, full_sentence
from unitune_client.local import child_guard
from unitune_client.local.machine import LocalError
from unitune_client.local.stage_log import StageLog

LOOKS_EVERY_S = 0.2
TAIL_LINES = 8
TELLS_AFTER_S = 1.0  # most programs end sooner, and then there is nothing to tell
FIRST_S = 1.0  # that a program has to end before the others are told to
STAGE = re.compile(r"^.+ \.\.\.$", re.MULTILINE)

REFUSAL = re.compile(r"(?:build|export|import): (.+)")

# Of the caller's environment: its own settings, and ports that three services cannot share, unless they are 0.
NOT_INHERITED = {"UNITUNE_ADDRESS", "UNITUNE_CA", "UNITUNE_HOME", "UNITUNE_KEY", "UNITUNE_KEY_FILE"}
OF_ONE_SERVICE = {"UNITUNE_HEALTH_ADDRESS", "UNITUNE_METRICS_ADDRESS"}

Process = subprocess.Popen[bytes]


def start(
    program: Sequence[str],
    settings: Mapping[str, str],
    log: Path,
    *,
    read_output: bool = False,
    keep_open: Sequence[int] = (),
) -> Process:
    """Start `python -m PROGRAM` with these settings added to the environment. It writes into the log, its standard
    output too unless that is to be read. It inherits the open files `keep_open`.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            # -P: a folder called `gateway` where the user happens to stand is not our gateway.
            [sys.executable, "-P", str(Path(child_guard.__file__)), str(os.getpid()), str(KILLED_AFTER_S), *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if read_output else file,
            stderr=file,
            env=_environment(settings),
            pass_fds=keep_open,
            start_new_session=True,  # Ctrl-C is for us: we cancel what runs and stop them after
        )


def run(program: Sequence[str], log: Path, stages: StageLog) -> Path:
    """Run `python -m PROGRAM` to its end; the folder that its last line of output names.

    Its stages are the lines of its log that end in dots, as in `export: loading the base model ...`.
    Raises LocalError when the program fails.
    """
    told = 0
    with start(program, {}, log, read_output=True) as process:
        try:
            while process.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=LOOKS_EVERY_S)
                found = STAGE.findall(log.read_text(errors="replace"))
                for stage in found[told:]:
                    stages.begin(stage)
                told = len(found)
                stages.tick()
        finally:
            stages.end()
            stop([process], signal.SIGINT)  # an interrupt lets it throw away what it has half made
    last = os.fsdecode(output).strip().rpartition("\n")[2]
    if process.returncode != 0 or not Path(last).is_dir():
        if refusal := _refusal(log):
            raise LocalError(f"{refusal}\n  (its log is {log})")
        raise failure(f"python -m {program[0]} ended with status {process.returncode}", log)
    return Path(last)


def stop(
    processes: Iterable[Process],
    number: signal.Signals = signal.SIGTERM,
    *,
    first: Process | None = None,
    on_wait: Callable[[], object] = lambda: None,
) -> None:
    """Signal all; SIGKILL to what is still there after KILLED_AFTER_S seconds, or at once on another Ctrl-C.

    `first` is signalled before the others, and has a moment to tell them. `on_wait` is called once if they do not end
    within a second.
    """
    running = [process for process in processes if process.poll() is None]
    try:
        if first in running:
            first.send_signal(number)
            _wait([first], time.monotonic() + FIRST_S)
        for process in running:
            if process is not first:
                process.send_signal(number)
        began = time.monotonic()
        _wait(running, began + TELLS_AFTER_S)
        if any(process.poll() is None for process in running):
            on_wait()
            _wait(running, began + KILLED_AFTER_S)
    finally:
        for process in running:
            _kill(process)


def _wait(running: Sequence[Process], until_s: float) -> None:
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until_s - time.monotonic()))


def failure(what: str, log: Path) -> LocalError:
    """The error of a program that did not do its work, with the end of its log."""
    if shutil.disk_usage(log.parent).free < FULL_BYTES:  # then its log may say nothing
        return LocalError(f"{what}: {full_sentence(log.parent)}")
    tail = log.read_text(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
    return LocalError("\n  ".join([f"{what}; the end of its log, {log}:", *(tail or ["(it is empty)"])]))


def _refusal(log: Path) -> str:
    """What a program of ours refused, in its own words: its last line, after its name. Empty for any other end."""
    last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    found = REFUSAL.fullmatch(last)
    return found[1] if found and not STAGE.fullmatch(last) else ""


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if _is_inherited(name, value)} | dict(settings)
    # Programs print paths, which are bytes to the system and need not be text in the encoding of the terminal.
    encoding = sys.getfilesystemencoding()
    environment["PYTHONIOENCODING"] = f"{'utf-8' if encoding == 'ascii' else encoding}:surrogateescape"
    root = Path(__file__).resolve().parents[2]  # where our packages lie
    if root.name not in ("site-packages", "dist-packages"):  # a source tree that may not be installed
        paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment["PYTHONPATH"] = os.pathsep.join([*paths, str(root)])
    return environment


def _is_inherited(name: str, value: str) -> bool:
    return name not in NOT_INHERITED and (name not in OF_ONE_SERVICE or value.endswith(":0"))


def _kill(process: Process) -> None:
    """Send SIGKILL to a process that still runs, and to whatever it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
