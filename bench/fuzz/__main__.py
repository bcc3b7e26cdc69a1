"""Send every port of real services what nobody should send, and look at what they answer.

    make fuzz
    python -m bench.fuzz --requests 10000 --seed 7

Each call of each service gets changed requests: extreme fields, several at once, damaged bytes, noise. Every port gets
bytes that are no HTTP/2 or no gRPC, and the gateway a corpus of broken pictures. Prints what came back. The exit status
is not 0 if an answer was INTERNAL, UNKNOWN or without details, if a service ended or logged a traceback, if its memory
grew, or if an edit does not work afterwards. The same seed sends the same requests.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom

from bench.fuzz.fuzzing import SETTINGS, Report, fuzz
from bench.inputs import MODEL
from bench.program import say
from bench.soak.services import Services
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

SHOWN = 40  # faults


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, help="of the corpus, drawn by the seed; all by default")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31), help="drawn by default")
    parser.add_argument("--base-model", type=Path, default=MODEL)
    parser.add_argument("--home", type=Path, help="a folder for graphs and engine, kept; a temporary one by default")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = Home((options.home or Path(scratch) / "home").absolute())
        engine = LocalServices(str(options.base_model), home=home, log=say).build()
        with Services(options.base_model, engine, Path(scratch) / "data", Path(scratch) / "logs", SETTINGS) as services:
            began = time.monotonic()
            report = fuzz(services, options.requests, options.seed, say, pictures=options.pictures)
    show(report, time.monotonic() - began)
    return 1 if report.faults else 0


def show(report: Report, seconds: float) -> None:
    """Print it."""
    for port, codes in report.answers.items():
        told = ", ".join(f"{number} {code}" for code, number in codes.most_common())
        print(f"{port:10} {sum(codes.values()):6} answers: {told}")
    for name, memory in report.memory_mb.items():
        print(f"{name:10} private memory in MB: {', '.join(f'{each:.0f}' for each in memory)}")
    for fault in report.faults[:SHOWN]:
        print(f"FAULT: {fault}")
    print(f"{len(report.faults)} faults in {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
