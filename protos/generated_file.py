"""Writes a file that is made of the contract or of the configurations, or says whether it is fresh."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, fresh: str | bytes) -> int:
    """Write the file, or with --check on the command line compare it and change nothing. The program's exit status."""
    name = path.relative_to(ROOT)
    parser = argparse.ArgumentParser(description=f"Write {name} from what it is made of.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it is not fresh")
    is_check = parser.parse_args().check
    fresh = fresh.encode() if isinstance(fresh, str) else fresh
    if path.exists() and path.read_bytes() == fresh:
        return 0
    if is_check:
        print(f"{name} is not what it is made of says; run `make protos`", file=sys.stderr)
        return 1
    path.write_bytes(fresh)
    print(f"{name}: written")
    return 0
