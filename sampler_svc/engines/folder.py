"""The folder that `sampler_svc.build` writes and the sampler loads: graphs, base weights, and a manifest written last.

The manifest names everything that the built graph depends on (the key). A folder is loaded only if its key matches this
machine and its files have their digests; otherwise it must be built again.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from unitune.base_model import BaseModelSpec, file_digest
from unitune.weights import PROBE_SEED

SCHEMA = 4
MANIFEST_FILE = "manifest.json"
PROBE_FILE = "probe.safetensors"  # the exported graph's answer to the probe of BASE_PROBE_SEED, as `base`
BASE_PROBE_SEED = PROBE_SEED
REBUILD = "build it with `python -m sampler_svc.build`"

# A runtime chooses its kernels by these; other flags of a CPU do not matter.
CPU_FEATURES = (
    "avx", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "f16c", "fma", "sse4_1",
    "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip


def stage_probe_file(stage: str) -> str:
    """The same of a super-resolution stage's graph."""
    return f"{stage}_probe.safetensors"


class UnusableEngine(Exception):
    """An engine folder cannot be loaded here. The message gives the reason and the remedy."""


@dataclass(frozen=True)
class EngineKey:
    """What a built engine depends on. Two builds with one key are interchangeable."""

    graph: str  # structure of the exported denoiser, without weight values
    specification: str  # digest of spec.json, which has the digests of all exported files
    base_model: str  # digest of the base model, whose weights the engine holds at first
    tensors: str  # digest over names, shapes, dtypes and layouts of the tensors
    backend: Mapping[str, str]  # runtime, version, device, optimisation level
    platform: str
    cpu: str
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """sha256 over all fields."""
        return _digest_of(asdict(self))


@dataclass(frozen=True)
class EngineManifest:
    """The contents of an engine folder: its key, (sha256, bytes) of each file, and its refit modes.

    Files may be other folders' as well, by hard links. `identities` are (mtime in ns, inode) of each when it was
    digested: a file that still has them is not read again to be checked.
    """

    key: EngineKey
    files: Mapping[str, tuple[str, int]]
    build_s: float
    refit_modes: tuple[str, ...]  # those that the build has proven, tensor by tensor
    identities: Mapping[str, tuple[int, int]]

    @classmethod
    def from_folder(
        cls, key: EngineKey, folder: Path, build_s: float, refit_modes: tuple[str, ...]
    ) -> "EngineManifest":
        """That of the files which are in a folder now."""
        files, identities = {}, {}
        for path in sorted(folder.iterdir()):
            status = path.stat()
            identities[path.name] = status.st_mtime_ns, status.st_ino
            files[path.name] = file_digest(path), status.st_size
        return cls(key, files, build_s, refit_modes, identities)

    def changed_file(self, folder: Path) -> str | None:
        """The name of a file that is not what it was, or None."""
        for name, (digest, size) in self.files.items():
            try:
                status = (folder / name).stat()
            except OSError:
                return name
            if status.st_size != size:
                return name
            is_same = self.identities.get(name) == (status.st_mtime_ns, status.st_ino)
            if not is_same and file_digest(folder / name) != digest:
                return name
        return None

    def save(self, folder: Path) -> None:
        """Write manifest.json."""
        text = json.dumps({**asdict(self), "key_digest": self.key.digest}, indent=1, sort_keys=True)
        (folder / MANIFEST_FILE).write_text(text)

    @classmethod
    def load(cls, folder: Path) -> "EngineManifest":
        """Read manifest.json. Raises UnusableEngine when there is none, or one of another schema."""
        try:
            found = json.loads((folder / MANIFEST_FILE).read_text())
            schema = found["key"]["schema"]
            if schema != SCHEMA:
                raise UnusableEngine(f"{folder} has schema {schema}, this program reads {SCHEMA}: {REBUILD}")
            files = {name: (digest, size) for name, (digest, size) in found["files"].items()}
            identities = {name: (time, inode) for name, (time, inode) in found["identities"].items()}
            return cls(EngineKey(**found["key"]), files, found["build_s"], tuple(found["refit_modes"]), identities)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnusableEngine(f"{folder} holds no complete engine: {REBUILD}") from error


def key_of(spec: BaseModelSpec, graph: str, specification: str, backend: Mapping[str, str]) -> EngineKey:
    """The key of an engine built here, from the exported denoiser's structure and the digest of spec.json."""
    tensors = {name: asdict(tensor) for name, tensor in spec.tensors.items()}
    return EngineKey(
        graph=graph,
        specification=specification,
        base_model=spec.digest,
        tensors=_digest_of(tensors),
        backend=dict(backend),
        platform=this_platform(),
        cpu=this_cpu(),
    )


def is_complete(folder: Path, key: EngineKey) -> bool:
    """Whether the folder holds an engine of that key, with the files that its manifest was written for."""
    try:
        manifest = EngineManifest.load(folder)
    except UnusableEngine:
        return False
    return manifest.key == key and manifest.changed_file(folder) is None


def open_folder(folder: Path, backend: Mapping[str, str]) -> BaseModelSpec:
    """Check that an engine folder is complete and was built for this runtime and machine; its specification.

    Raises UnusableEngine otherwise: an engine runs only where it was built for.
    """
    manifest = EngineManifest.load(folder)
    here = {**backend, "platform": this_platform(), "cpu": this_cpu()}
    there = {**manifest.key.backend, "platform": manifest.key.platform, "cpu": manifest.key.cpu}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            change = f"its {name} was {there.get(name)!r} and is {here.get(name)!r} here"
            raise UnusableEngine(f"{folder} was built for another machine or runtime ({change}): {REBUILD} here")
    changed = manifest.changed_file(folder)
    if changed is not None:
        raise UnusableEngine(f"{folder} is damaged ({changed}), or was changed since it was built: {REBUILD}")
    try:
        return BaseModelSpec.load(folder)
    except ValueError as error:
        raise UnusableEngine(f"{folder} is of another version of this program ({error}): {REBUILD}") from error


def this_platform() -> str:
    """Operating system and machine, such as `linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}".lower()


def this_cpu() -> str:
    """The vector extensions of this CPU that matter to a runtime; empty if the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return " ".join(feature for feature in CPU_FEATURES if feature in flags)


def _digest_of(fields: object) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
