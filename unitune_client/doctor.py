"""What this machine can run, found out without importing any of it."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

from unitune import __version__
from unitune_client import events
from unitune_client.home import Home
from unitune_client.machine import EXTRAS, base_model_folder, embedded_base_model

# Name of the distribution, where it is another than the module's.
DISTRIBUTIONS = {"grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection"}
# Other distributions of the same module.
ALTERNATIVES = {"onnxruntime": ("onnxruntime-gpu",)}

Finding = tuple[str, str]  # what, and what it is


def findings(home: Home) -> Iterator[Finding]:
    """Everything about this machine that matters here, in words."""
    yield "unitune", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    for extra, modules in EXTRAS.items():
        versions = [(module, version(module)) for module in modules]
        told = ", ".join(f"{module} {found}" for module, found in versions if found)
        missing = [module for module, found in versions if not found]
        remedy = f"missing: {', '.join(missing)}: pip install 'unitune[{extra}]'"
        yield extra, "; ".join(filter(None, [told, remedy if missing else ""]))
    yield "CUDA device", cuda_device()
    # A program of its own: it loads drivers and libraries, and may meet broken ones.
    for line in _lines([sys.executable, "-P", "-m", "sampler_svc.backends"]) or ["backends: none; no sampler is here"]:
        backend, _, verdict = line.partition(": ")
        yield backend, verdict
    yield (
        "home",
        f"{home.root}, {home.size_bytes() / 2**20:.0f} MiB" if home.root.is_dir() else f"{home.root}, none yet",
    )
    engines = home.engine_names()
    yield "engines", ", ".join(engines) if engines else "none; the first edit builds one, or `unitune build`"
    running = home.running()
    yield "running here", f"{running.address}, process {running.pid}" if running else "no"
    yield "embedded model", str(embedded_base_model() or "not installed; give --base-model")


def server_findings(info: events.ServerInfo) -> Iterator[Finding]:
    """Everything about a server that matters to a caller, in words."""
    model, tuning, sampling, limits = info.base_model, info.tuning_defaults, info.sampling_defaults, info.limits
    pictures = (
        f"{limits.upload_bytes / 2**20:.0f} MiB, {limits.upload_pixels / 1e6:.0f} megapixels "
        f"({limits.upload_webp_pixels / 1e6:.0f} as WebP) and {limits.upload_side} pixels a side of a picture"
    )
    updates = f"{tuning.updates} updates of batch {tuning.batch} at learning rate {tuning.learning_rate:g}"
    weights = (
        f"strength {sampling.strength:g}, guidance {sampling.guidance_scale:g}, "
        f"interpolation {sampling.interpolation:g}"
    )
    yield "server", info.version
    yield "base model", f"{model.name}, {model.width} x {model.height} pixels"
    yield "methods", ", ".join(info.methods)
    yield "schedulers", ", ".join(info.schedulers)
    yield "tuning defaults", f"{updates}, mode {tuning.mode}, rare tokens {tuning.rare_tokens}"
    fast = f", {model.fast_steps} with --fast" if model.fast_steps else ""
    steps = f"{sampling.num_inference_steps} {sampling.scheduler} steps{fast}"
    yield "edit defaults", f"{sampling.method}, {weights}, {steps}"
    yield "limits", f"{pictures}, {limits.prompt_characters} characters a prompt, {limits.seeds} seeds"


def vocabulary(base_model: str | None) -> dict[str, list[str]]:
    """The words that a base model's folder lists, by kind; none for an open vocabulary. Raises as base_model_folder."""
    path = base_model_folder(base_model) / "vocabulary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def version(module: str) -> str | None:
    """The installed version of what provides a module; None if nothing does."""
    for name in (DISTRIBUTIONS.get(module, module), *ALTERNATIVES.get(module, ())):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def cuda_device() -> str:
    """The NVIDIA devices that the driver tells of."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no (nvidia-smi is not there)"
    return "; ".join(_lines([program, "--query-gpu=name,memory.total", "--format=csv,noheader"])) or "no"


def _lines(command: list[str]) -> list[str]:
    """The lines that a program prints; none if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
