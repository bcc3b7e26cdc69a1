"""What the programs of this package share: options, and lines about their progress."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Protocol


class Measurement(Protocol):
    """Measures in a number of rounds, or quickly as a check; its figures by their names in the report."""

    def __call__(self, rounds: int, *, quick: bool) -> Mapping[str, object]: ...


def options_of(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options of every program; `rounds` is the default number."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it runs; its figures say nothing")
    return parser


def run(measurement: Measurement, description: str | None, rounds: int) -> None:
    """A program that makes one measurement and prints it."""
    options = options_of(description, rounds).parse_args()
    show(measurement(1 if options.quick else options.rounds, quick=options.quick))


def show(report: Mapping[str, object]) -> None:
    """A line for each figure."""
    for name, values in report.items():
        print(f"{name:36} {json.dumps(values)}")


def say(line: str) -> None:
    """Progress goes to standard error."""
    print(line, file=sys.stderr, flush=True)
