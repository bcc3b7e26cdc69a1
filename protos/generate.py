"""Generate `unitune/v1` from `protos/unitune/v1`: messages, their type stubs and the gRPC stubs; and from them what
the SDK has of every option, `unitune_client/options.py` and `configs.py`.

    python -m protos.generate          # write them
    python -m protos.generate --check  # say whether they are fresh

The compiler is the one of grpcio-tools, in the version that constraints.txt pins.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

from protos.generated_file import ROOT

# Include paths, nearest first. The last one holds google/protobuf, which the compiler's own package ships.
INCLUDES = (ROOT / "protos", ROOT / "third_party" / "googleapis", Path(str(files("grpc_tools"))) / "_proto")


def generate(into: Path) -> None:
    """Write the generated modules under `into`.

    Proto path, package and import path are one string, `unitune/v1`, so the compiler's imports need no rewriting.
    Raises RuntimeError when the compiler refuses a file; it has printed why.
    """
    sources = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").glob("unitune/v1/*.proto"))
    if not sources:
        raise RuntimeError(f"no .proto files under {ROOT / 'protos' / 'unitune' / 'v1'}")
    arguments = ["protoc", *(f"-I{include}" for include in INCLUDES)]
    arguments += [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main([*arguments, *sources])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


def generated_modules(root: Path) -> list[Path]:
    """Every generated file under `root`, current or left over."""
    return sorted(path for path in (root / "unitune" / "v1").glob("*_pb2*") if path.suffix in {".py", ".pyi"})


def stale(root: Path, fresh: Path) -> list[Path]:
    """What differs between the generated files of two folders: changed, missing or left over."""
    names = {path.relative_to(folder) for folder in (root, fresh) for path in generated_modules(folder)}
    return sorted(name for name in names if _content(root / name) != _content(fresh / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def sdk_modules(*arguments: str) -> int:
    """Run client_options.py and client_configs.py, in processes of their own, which import what was just written.

    The exit status of the first that fails.
    """
    programs = ("protos.client_options", "protos.client_configs")
    codes = [subprocess.run([sys.executable, "-m", one, *arguments], cwd=ROOT).returncode for one in programs]
    return next((code for code in codes if code != 0), 0)


def main() -> int:
    """Generate into a scratch folder, then compare or replace: a proto that does not compile changes nothing."""
    parser = argparse.ArgumentParser(description="Generate unitune/v1 from protos/unitune/v1.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if unitune/v1 is not what would be generated"
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        generate(scratch)
        names = stale(ROOT, scratch)
        if check:
            for name in names:
                print(f"{name} is not what protos/ says; run `make protos`", file=sys.stderr)
            return 1 if names else sdk_modules("--check")
        for name in names:
            if (scratch / name).exists():
                (ROOT / name).write_bytes((scratch / name).read_bytes())
            else:
                (ROOT / name).unlink()
            print(f"{name}: {'written' if (ROOT / name).exists() else 'removed'}")
    print(f"unitune/v1 is fresh; {len(names)} files changed")
    return sdk_modules()


if __name__ == "__main__":
    sys.exit(main())
