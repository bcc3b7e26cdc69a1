"""Runs a module as a program that ends when its parent ends, for whatever reason.

    python -P child_guard.py PARENT_PID GRACE_S MODULE [ARGUMENT ...]

Once a second it asks whether the parent is still there; if not, it sends itself SIGTERM and, should that not help in
GRACE_S seconds, SIGKILL. Linux could do this in the kernel (prctl), but only from code that runs between fork and exec,
which is not safe in a parent with threads; this works on every Unix. It imports no other module of
UniTune, so the program starts as it would without this one.
"""

import os
import runpy
import signal
import sys
import threading
import time

ASKS_EVERY_S = 1.0


def end_with(parent: int, grace_s: float) -> None:
    """Wait until `parent` is no longer this process's parent, then end this process."""
    while os.getppid() == parent:
        time.sleep(ASKS_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the module that the arguments name."""
    parent, grace_s, module = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    sys.argv[:] = sys.argv[3:]
    threading.Thread(target=end_with, args=(parent, grace_s), name="child guard", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
