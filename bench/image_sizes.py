"""How large the services' images are, estimated from what is installed here: `python -m bench.image_sizes`.

Of each image: the packages that its Dockerfile installs, with all that those need, by the sizes that their wheels tell
of their files, and our own files. The system below (python:3.11-slim), compiled bytecode and exported graphs are not
counted. torch is the build that is installed here.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = {"gateway": "gateway", "tuner": "tuner_svc", "sampler": "sampler_svc"}
OWN = "unitune"
LARGEST = 5


def extras(image: str) -> list[str]:
    """The extras of our own package that the image has in the end."""
    stage = _last_build(image)
    defaults = dict(re.findall(r"^ARG (\w+)=(\S*)$", stage, re.MULTILINE))
    (found,) = re.findall(r'"\.\[(.+)\]"', stage)
    return re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], found).split(",")


def requirements(image: str) -> dict[str, metadata.Distribution]:
    """All packages that pip installs for the image, by their names. Raises PackageNotFoundError for one that is not
    installed here."""
    found: dict[str, metadata.Distribution] = {}
    wanted = [(OWN, extra) for extra in ("", *extras(image))]
    seen = set()
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name != OWN:
            found[name] = metadata.distribution(name)
        for requirement in _needs(name):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                wanted += [(needed, one) for one in ("", *requirement.extras)]
    return found


def _last_build(image: str) -> str:
    """The stage of the image's Dockerfile of which the last one takes what is installed."""
    return (ROOT / DOCKERFILES[image] / "Dockerfile").read_text().rpartition("AS build")[2]


def _needs(name: str) -> Iterator[Requirement]:
    """What a package asks for, with a marker for each extra."""
    if name != OWN:
        yield from map(Requirement, metadata.requires(name) or ())
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yield from map(Requirement, project["dependencies"])
    for extra, needed in project["optional-dependencies"].items():
        for text in needed:
            requirement = Requirement(text)
            own = f"extra == '{extra}'"
            marker = f"({requirement.marker}) and {own}" if requirement.marker else own
            requirement.marker = None
            yield Requirement(f"{requirement}; {marker}")


def size_of(package: metadata.Distribution) -> int:
    """Bytes of a package's files, without bytecode."""
    return sum(file.size or 0 for file in package.files or () if not file.name.endswith(".pyc"))


def own_bytes(image: str) -> int:
    """Bytes of our own files that the image copies."""
    stage = _last_build(image)
    folders = re.findall(r"^COPY (\w+) \1$", stage, re.MULTILINE)
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)


def main() -> int:
    """Print a line for each image; the program's exit code."""
    for image in DOCKERFILES:
        sizes = {name: size_of(package) for name, package in requirements(image).items()}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
        told = ", ".join(f"{name} {sizes[name] / 1e6:.0f}" for name in largest)
        own = own_bytes(image)
        total = sum(sizes.values()) + own
        print(f"{image}: {total / 1e6:.0f} MB in {len(sizes)} packages ({told}; our own {own / 1e6:.0f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
