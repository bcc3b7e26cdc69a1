"""Make the kit for a GPU machine without a network: code, graphs and wheels in pieces, and one script (`make gpu-kit`).

    python -m bench.gpu.kit --out out/gpu-kit --piece-mib 60        # minutes, 8 GB of memory, 450 MB to download

Copy the folder there, and run `python run.py` in it (bench/gpu/kit_run.py tells the rest). The model of random weights
is made there; nothing trained travels but stickerbook.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from bench.gpu.kit_run import KIT
from bench.gpu.model import SHAPES

ROOT = Path(__file__).resolve().parents[2]
TREE = ("bench", "gateway", "sampler_svc", "stickerbook", "tests", "tuner_svc", "unitune", "unitune_client")
README = ROOT / "bench" / "gpu" / "README.md"
# Archive: the packages whose wheels are in it, without what they depend on. The GPU machine has PyTorch, transformers
# and onnx, with theirs. tests/bench/test_gpu_kit.py holds the list to what the parts import.
WHEELS = {
    "base": (
        "certifi", "charset-normalizer", "cuda-bindings", "cuda-pathfinder", "diffusers", "flatbuffers",
        "googleapis-common-protos", "grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-status", "idna",
        "importlib-metadata", "iniconfig", "onnx-ir", "onnxruntime", "onnxscript", "opentelemetry-api",
        "opentelemetry-exporter-otlp-common", "opentelemetry-exporter-otlp-proto-common",
        "opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-proto", "opentelemetry-sdk",
        "opentelemetry-semantic-conventions", "pillow", "pluggy", "prometheus-client", "protobuf", "pygments", "pytest",
        "pytest-asyncio", "requests", "scipy", "urllib3", "zipp",
    ),
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
}  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.gpu.kit", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/gpu-kit"))
    parser.add_argument("--piece-mib", type=float, default=60.0, help="the largest size of a file (%(default)g)")
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="the GPU machine's (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        graphs = prepared_graphs(Path(scratch), options.shape)
        wheels = {name: downloaded(packages, Path(scratch) / name, options.python) for name, packages in WHEELS.items()}
        make_kit(options.out, int(options.piece_mib * 2**20), graphs, wheels)
    print(options.out)


def make_kit(out: Path, piece_bytes: int, graphs: dict[str, Path], wheels: dict[str, list[Path]]) -> Path:
    """Write the folder anew. `graphs` are folders by name. An archive without wheels is left out, but for the first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    archives = {}
    for name in WHEELS:
        entries = [(wheel, f"wheels/{wheel.name}") for wheel in wheels.get(name, [])]
        if name == "base":
            entries += [*tree(), *((folder, f"graphs-{each}") for each, folder in graphs.items())]
        if entries:
            archives[name] = packed(out, name, entries, piece_bytes)
    shutil.copy(Path(__file__).with_name("kit_run.py"), out / "run.py")
    (out / KIT).write_text(json.dumps({"archives": archives, "published": published_figures()}, indent=1) + "\n")
    return out


def tree() -> Iterator[tuple[Path, str]]:
    """Our files, without what Python leaves beside them."""
    yield ROOT / "pyproject.toml", "tree/pyproject.toml"
    for folder in TREE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, f"tree/{path.relative_to(ROOT)}"


def packed(out: Path, name: str, entries: Sequence[tuple[Path, str]], piece_bytes: int) -> dict[str, str]:
    """Pack entries into one archive, cut into files of at most this size: each piece's name and digest, in order."""
    with tempfile.TemporaryFile(dir=out) as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:  # wheels and weights hardly get smaller
            for path, arcname in entries:
                archive.add(path, arcname)
        whole.seek(0)
        return dict(cut(whole, out, name, piece_bytes))


def cut(whole: BinaryIO, out: Path, name: str, piece_bytes: int) -> Iterator[tuple[str, str]]:
    """Write the pieces of a file."""
    for number in range(1_000):
        content = whole.read(piece_bytes)
        if not content:
            return
        piece = f"{name}.tar.{number:03}"
        (out / piece).write_bytes(content)
        yield piece, hashlib.sha256(content).hexdigest()
    raise SystemExit(f"gpu-kit: more than 1,000 pieces of {name}: give a larger --piece-mib")


def prepared_graphs(scratch: Path, shape: str) -> dict[str, Path]:
    """The sampler's graph at this shape, and the graphs of the tests' tiny model. Each in a process of its own."""
    of_shape, model, of_tests = scratch / shape, scratch / "model", scratch / "tests"
    of_python("-m", "bench.gpu", "--prepare", str(of_shape), "--shape", shape)
    save = "import sys; from pathlib import Path; from tests.tiny_model import save_tiny_model; "
    of_python("-c", f"{save} save_tiny_model(Path(sys.argv[1]))", str(model))
    of_python("-m", "tuner_svc.export", "--base-model", str(model), "--out", str(of_tests), "--fp16")
    return {shape: of_shape, "tests": of_tests}


def downloaded(packages: Sequence[str], folder: Path, python: str) -> list[Path]:
    """The wheels of some packages for the GPU machine, where we have tested any in the versions that we have tested."""
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    target = ["--only-binary=:all:", "--python-version", python, *platforms]
    of_python(
        "-m", "pip", "download", "--quiet", "--no-deps", *target, "-c", "constraints.txt", "-d", str(folder), *packages
    )
    return sorted(folder.glob("*.whl"))


def of_python(*arguments: str) -> None:
    """Run Python on our tree. Ends this program with the other's exit code."""
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=sys.stderr)
    if ended.returncode != 0:
        raise SystemExit(ended.returncode)


def published_figures() -> list[dict[str, str]]:
    """The published figures of README.md: rows of figure, value, on what, source."""
    section = README.read_text().partition("## Published figures")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if row.startswith("| `")]
    return [{"figure": re.sub("`", "", row[0]), "value": row[1], "where": row[2], "source": row[3]} for row in rows]


if __name__ == "__main__":
    main()
