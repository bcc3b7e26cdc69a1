"""Measure UniTune on this machine's GPU, without a network. Beside this kit it needs PyTorch, transformers and onnx.

    python run.py                              # everything, in order of worth; results in the folder `results`
    python run.py --parts tuner steps          # some of it
    python run.py --seconds 900                # begins no part that has not a minute left, and ends all by then
    python run.py --device cpu --shape tiny    # shows that it runs

A run may be cut off at any moment: each part writes its results at once, and the next run goes on with those that are
missing. `--again` measures anew.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KIT = "kit.json"
# Part: the archives that it needs, how long it may take (seconds), and its command below the tree of UniTune.
PARTS: dict[str, tuple[tuple[str, ...], float, tuple[str, ...]]] = {
    "tuner": (("base",), 420, ("bench.gpu", "--only", "tuning.eager", "tuning.graph", "tuning.compiled")),
    "steps": (("base",), 300, ("bench.gpu", "--only", "peak_rates", "step")),
    "onnxruntime": (("base", "onnxruntime"), 420, ("bench.gpu", "--only", "onnxruntime")),
    "tensorrt-rtx": (("base", "tensorrt-rtx"), 600, ("bench.gpu", "--only", "tensorrt-rtx")),
    "tests": (
        ("base", "onnxruntime", "tensorrt-rtx"),
        420,
        ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"),
    ),
    "stickerbook": (("base",), 600, ("stickerbook.train",)),
}
LEAST_S = 60  # a part is not begun with less time left


class Missing(Exception):
    """A part cannot be run. The message says what is missing."""


def main() -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where the pieces are joined and unpacked")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=3600.0, help="for everything (%(default)g)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="sd15")
    parser.add_argument("--again", action="store_true", help="also what has results already")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    options.out, options.work = options.out.resolve(), options.work.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    kit = json.loads((HERE / KIT).read_text())
    for name in options.parts:
        result = options.out / f"{name}.json"
        if result.exists() and not options.again and "skipped" not in json.loads(result.read_text()):
            print(f"{name}: has results; --again measures anew", flush=True)
            continue
        write(result, run_part(name, kit, options, ends))
        print(table(kit["published"], options.out), flush=True)
    return 0


def run_part(name: str, kit: dict, options: argparse.Namespace, ends: float) -> dict:
    """The results of one part: how its program ended, and what it measured. Raises nothing."""
    archives, limit_s, program = PARTS[name]
    began, left_s = time.monotonic(), ends - time.monotonic()
    folder = options.out / name
    limit_s = left_s if options.device == "cpu" else min(limit_s, left_s)  # a dry run is as slow as the processor
    found: dict[str, Any] = {"part": name, "limit_s": limit_s}
    try:
        if left_s < LEAST_S:
            raise Missing(f"{left_s:.0f} s were left")
        if name == "tests":  # each of them skips what there is no library for
            archives = tuple(archive for archive in archives if archive in kit["archives"])
        for archive in archives:
            unpack(archive, kit["archives"], options.work)
        command = [sys.executable, "-m", *program, *extra_arguments(name, folder, limit_s, options)]
        print(f"{name}: {' '.join(command[1:])} (at most {limit_s:.0f} s)", flush=True)
        found |= ended(command, limit_s, folder, environment(options.work, archives, folder))
    except (Missing, OSError) as error:
        found["skipped"] = str(error)
    measured = folder / "gpu.json"
    if measured.is_file():
        found["measured"] = json.loads(measured.read_text())
    found["took_s"] = round(time.monotonic() - began, 1)
    told = found.get("skipped") or f"exit code {found.get('rc')}"
    print(f"{name}: {told} after {found['took_s']} s", flush=True)
    return found


def extra_arguments(name: str, folder: Path, limit_s: float, options: argparse.Namespace) -> list[str]:
    """What depends on this run."""
    tree = options.work / "base" / "tree"
    if PARTS[name][2][0] == "bench.gpu":
        graphs = options.work / "base" / f"graphs-{options.shape}"
        own = ["--out", str(folder), "--device", options.device, "--shape", options.shape, "--graphs", str(graphs)]
        return [*own, "--seconds", f"{max(1.0, limit_s - 15):.0f}"]
    if name == "stickerbook":
        own = ["--work", str(folder), "--start-from", str(tree / "stickerbook" / "model"), "--device", options.device]
        return [*own, "--scenes", "6000", "--updates", "2000"]
    return []


def ended(command: list[str], limit_s: float, folder: Path, environ: dict[str, str]) -> dict:
    """Exit code and last lines of a program, which gets at most so many seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("wb") as file:
        program = subprocess.Popen(
            command, cwd=environ["UNITUNE_TREE"], env=environ, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            program.wait(limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    tail = log.read_bytes()[-6000:].decode(errors="replace")
    return {"rc": program.returncode, "timed_out": program.returncode == -signal.SIGKILL, "tail": tail}


def environment(work: Path, archives: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Our tree first, then what each archive brings, then what the machine has."""
    tree = work / "base" / "tree"
    path = [str(tree), *(str(work / archive / "site") for archive in reversed(archives))]
    if given := os.environ.get("PYTHONPATH"):
        path.append(given)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "UNITUNE_TREE": str(tree),
        "UNITUNE_GRAPHS": str(work / "base" / "graphs-tests"),
        "UNITUNE_GPU_OUT": str(folder),
    }


def unpack(name: str, archives: dict, work: Path) -> None:
    """Join an archive's pieces and unpack it, once. Raises Missing for a piece that is not there or is damaged."""
    folder = work / name
    if folder.exists():
        return
    if name not in archives:
        raise Missing(f"this kit was made without {name}")
    work.mkdir(parents=True, exist_ok=True)
    partial, joined = work / f"{name}.partial", work / f"{name}.tar"
    shutil.rmtree(partial, ignore_errors=True)
    with joined.open("wb") as file:
        for piece, digest in archives[name].items():
            content = (HERE / piece).read_bytes() if (HERE / piece).is_file() else None
            if content is None or hashlib.sha256(content).hexdigest() != digest:
                raise Missing(f"{HERE / piece} is {'missing' if content is None else 'damaged'}: copy it again")
            file.write(content)
    with tarfile.open(joined) as archive:
        archive.extractall(partial, filter="data")
    joined.unlink()
    for wheel in sorted((partial / "wheels").glob("*.whl")):
        # ONNX Runtime for a GPU must come before the one for CPUs in `base`, which has another name.
        if name == "onnxruntime" or not has_as_new(wheel):
            with zipfile.ZipFile(wheel) as content:
                content.extractall(partial / "site")
    partial.rename(folder)


def has_as_new(wheel: Path) -> bool:
    """Whether this machine has a wheel's package, as new as that."""
    name, version = wheel.name.split("-")[:2]
    try:
        return numbers(importlib.metadata.version(name)) >= numbers(version)
    except importlib.metadata.PackageNotFoundError:
        return False


def numbers(version: str) -> list[int]:
    """1.26.4 as [1, 26, 4]; what is no number ends it."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return found


def table(published: list[dict], results: Path) -> str:
    """All figures so far, each with the published ones that it is to be held against."""
    rows = [("figure", "here", "elsewhere")]
    for key, value in figures(results):
        told = [f"{each['value']} ({each['where']})" for each in published if each["figure"] == key.rpartition(".")[2]]
        rows.append((key, value, "; ".join(told)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}".rstrip() for row in rows)


def figures(results: Path) -> Iterator[tuple[str, str]]:
    """Names and values: medians in ms, or s from 1 s on; memory in GB."""
    for name in PARTS:
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        result = json.loads(path.read_text())
        if "skipped" in result or result.get("rc"):
            yield name, result.get("skipped", f"exit code {result.get('rc')}")[:60]
        for measurement, found in result.get("measured", {}).items():
            if reason := found.get("skipped") or found.get("failed"):
                yield measurement, f"none: {reason}"[:60]
            for key, value in found.items():
                if key.endswith("_s") and isinstance(value, dict) and "median" in value:
                    yield f"{measurement}.{key}", seconds(value["median"])
                elif key in ("build_s", "open_s"):
                    yield f"{measurement}.{key}", seconds(value)
                elif key in ("device_gb", "peak_torch_gb"):
                    yield f"{measurement}.{key}", f"{value:.2f} GB"


def seconds(value: float) -> str:
    """In words."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.2f} ms"


def write(path: Path, content: dict) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
