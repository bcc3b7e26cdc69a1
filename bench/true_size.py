"""A base model of Stable Diffusion's true shape, with random weights: what every stage takes on this machine.

    python -m bench.true_size                      # minutes, 8 GB of disk: give it an idle machine
    python -m bench.true_size --shape sdxl --dtype float16 --until build     # 16 GB of disk
    python -m bench.true_size --shape small        # 200 MB of weights

Writes the model, exports it, builds its engine, starts the services, and makes one edit with 2 updates of all tensors
and 4 steps. For each stage: seconds, the peak of its process's private memory, less that of its libraries, in units of
the denoiser's weights in fp32 (W), and the peak of what it has in RAM; then the bytes on the disk, each inode once.
Nothing is claimed of the picture, which is noise.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench.process_memory import Memory, MemoryWatch, measure, memory_of, memory_with
from bench.program import say
from bench.random_model import SHAPES, save_random_model
from unitune.base_model import BaseModelSpec
from unitune_client import Client
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

# What imports all that the programs use.
PROCESSES = {"tuner": "tuner_svc.process", "sampler": "sampler_svc.__main__"}
EXPORT, BUILD = "tuner_svc.export.base_model", "sampler_svc.build.__main__"


@dataclass(frozen=True)
class Stage:
    """What one stage took; its memory is that of one process."""

    name: str
    seconds: float
    private_w: float  # peak of private memory, less the libraries', over the denoiser's weights
    private_mb: float
    resident_mb: float

    @classmethod
    def measured(cls, name: str, seconds: float, peak: Memory, libraries: Memory, weights_bytes: int) -> "Stage":
        """From the peak, and the memory of a process that has only imported the same modules."""
        above = (peak.private - libraries.private) / weights_bytes
        return cls(name, round(seconds, 1), round(above, 2), round(peak.private / 1e6), round(peak.resident / 1e6))


@dataclass(frozen=True)
class Report:
    """All stages, the denoiser's weights in bytes, and the disk."""

    weights_bytes: int
    stages: list[Stage]
    disk_bytes: dict[str, int]  # each stage's own; an inode counts where it appears first

    def table(self) -> str:
        """For people."""
        lines = [f"W, the denoiser's weights in fp32: {self.weights_bytes / 1e6:.0f} MB", ""]
        lines.append(f"{'stage':18} {'seconds':>8} {'private, W':>11} {'private, MB':>12} {'in RAM, MB':>11}")
        for stage in self.stages:
            memory = f"{stage.private_w:11.2f} {stage.private_mb:12.0f} {stage.resident_mb:11.0f}"
            lines.append(f"{stage.name:18} {stage.seconds:8.1f} {memory}")
        lines += ["", f"{'on the disk':18} {'MB':>8} {'W':>6}"]
        for name, size in self.disk_bytes.items():
            lines.append(f"{name:18} {size / 1e6:8.0f} {size / self.weights_bytes:6.2f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Built:
    """A model with its graphs and engine in a home, and what they took."""

    home: Home
    model: Path
    graphs: Path
    engine: Path
    stages: list[Stage]
    libraries: dict[str, Memory]  # by the module that imports them

    @property
    def spec(self) -> BaseModelSpec:
        """The base model's specification."""
        return BaseModelSpec.load(self.graphs)

    @property
    def weights_bytes(self) -> int:
        """Of the denoiser, in fp32."""
        return sum(tensor.size_bytes for tensor in self.spec.tensors.values())

    def report(self, more: Iterable[Stage] = ()) -> Report:
        """Its stages, then others, and the disk now."""
        parts = {"model": [self.model], "graphs": [self.graphs], "engine": [self.engine], "store": [self.home.store]}
        return Report(self.weights_bytes, [*self.stages, *more], disk_bytes(parts))


def true_size(
    scratch: Path, shape: str, dtype: str, *, mode: str, updates: int, steps: int, until: str = "edit"
) -> Report:
    """Measure every stage, in an empty folder; `until` is `build` or `edit`."""
    built = export_and_build(scratch, shape, dtype)
    if until == "build":
        return built.report()
    say("services")
    return built.report(edit(built, mode=mode, updates=updates, steps=steps))


def stages_of_small() -> dict[str, object]:
    """The peak of each stage's private memory with a model of 200 MB of weights, in units of those, for a report."""
    with tempfile.TemporaryDirectory() as scratch:
        report = true_size(Path(scratch), "small", "float32", mode="full", updates=2, steps=4)
    return {"memory.stages_in_weights": {stage.name: stage.private_w for stage in report.stages}}


def export_and_build(scratch: Path, shape: str, dtype: str) -> Built:
    """Measure the first two stages, in an empty folder."""
    home = Home(scratch / "home")
    say(f"writing a model of shape {shape} in {dtype}")
    model = save_random_model(scratch / "model" / shape, shape, dtype)
    libraries = {
        **memory_with((PROCESSES["tuner"], EXPORT)),
        **memory_with((PROCESSES["sampler"], BUILD)),
    }
    say("export")
    export = measure(
        ["-m", "tuner_svc.export", "--base-model", str(model), "--graphs-root", str(home.graphs)], on_line=say
    )
    say("build")
    build = measure(["-m", "sampler_svc.build", "--graphs", export.output, "--engines", str(home.engines)], on_line=say)
    spec = BaseModelSpec.load(Path(export.output))
    weights = sum(tensor.size_bytes for tensor in spec.tensors.values())
    stages = [
        Stage.measured("export", export.seconds, export.peak, libraries[EXPORT], weights),
        Stage.measured("build", build.seconds, build.peak, libraries[BUILD], weights),
    ]
    return Built(home, model, Path(export.output), Path(build.output), stages, libraries)


def edit(
    built: Built, *, mode: str, updates: int, steps: int, on_event: Callable[[object], None] = lambda event: None
) -> list[Stage]:
    """Stages of the services: their start, then the edit, in tuner and sampler. `on_event` gets the edit's events."""
    spec, weights = built.spec, built.weights_bytes
    bare = {name: built.libraries[module] for name, module in PROCESSES.items()}
    began = time.monotonic()
    stages = []
    with ExitStack() as stack:
        services = stack.enter_context(LocalServices(str(built.model), home=built.home, log=say))
        pids = {name: services._services[name].process.pid for name in bare}
        started_s = time.monotonic() - began
        for name, pid in pids.items():
            stages.append(Stage.measured(f"{name}, idle", started_s, memory_of(pid), bare[name], weights))
        watches = {name: stack.enter_context(MemoryWatch(pid)) for name, pid in pids.items()}
        client = stack.enter_context(Client(services.address))
        seen: dict[str, float] = {}
        began = time.monotonic()

        def saw(event: object) -> None:
            on_event(event)
            kind = type(event).__name__
            if kind not in seen:
                say(f"{time.monotonic() - began:7.1f} s  {kind}")
            seen[kind] = time.monotonic() - began

        client.edit_to_end(
            _picture(spec.image_side),
            "a dog on a beach",
            on_event=saw,
            mode=mode,  # type: ignore[arg-type]
            updates=updates,
            num_inference_steps=steps,
        )
        edit_s = time.monotonic() - began
        for name, watch in watches.items():
            stages.append(Stage.measured(f"{name}, edit", edit_s, watch.peak, bare[name], weights))
        for name, pid in pids.items():
            stages.append(Stage.measured(f"{name}, after", 0.0, memory_of(pid), bare[name], weights))
    return stages


def disk_bytes(parts: dict[str, list[Path]]) -> dict[str, int]:
    """The bytes of folders by name; what a former one holds under another name is not counted again."""
    seen: set[tuple[int, int]] = set()
    return {name: sum(_sizes(folders, seen)) for name, folders in parts.items()}


def _sizes(folders: Iterable[Path], seen: set[tuple[int, int]]) -> Iterable[int]:
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            status = path.stat()
            if path.is_file() and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield status.st_size


def _picture(side: tuple[int, int]) -> bytes:
    """A PNG file of soft blotches of colour."""
    blotches = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blotches).resize(side[::-1], Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the model's files")
    parser.add_argument("--mode", choices=("full", "attn_out", "lora"), default="full")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--until", choices=("build", "edit"), default="edit", help="the last stage")
    parser.add_argument("--scratch", type=Path, help="where the folder for it all is made (default: the system's)")
    parser.add_argument("--out", type=Path, help="also write the report as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        report = true_size(
            Path(scratch),
            options.shape,
            options.dtype,
            mode=options.mode,
            updates=options.updates,
            steps=options.steps,
            until=options.until,
        )
    print(report.table())
    if options.out is not None:
        options.out.write_text(json.dumps(asdict(report), indent=1) + "\n")


if __name__ == "__main__":
    main()
