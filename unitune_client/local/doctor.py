"""What this machine can run, found out without importing any of it."""

import errno
import importlib.metadata
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unitune import __version__
from unitune.errors import UniTuneError
from unitune_client import events
from unitune_client.client import Client
from unitune_client.local.home import Home
from unitune_client.local.machine import EXTRAS, PRESET_FILE, LocalError, embedded_base_model

# Name of the distribution, where it is another than the module's.
DISTRIBUTIONS = {"grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection", "jwt": "PyJWT"}
# Other distributions of the same module.
ALTERNATIVES = {"onnxruntime": ("onnxruntime-gpu",)}

NOT_TOLD = "not known yet: the gateway has no answer from {}"  # of the model and the defaults
NO_ENGINES = "none; the first edit builds one, or `unitune build`"
# Folders of a base model in diffusers layout without which nothing runs.
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


class Problem(str):
    """A finding that could not be made, and its reason."""


Finding = tuple[str, str]  # what, and what it is
Findings = Iterable[Finding]


def findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything about this machine that matters here, in words. None of them stops the others."""
    yield "unitune", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    for extra in EXTRAS:
        yield extra, found(partial(packages, extra))
    yield "CUDA device", found(cuda_device)
    # A program of its own: it loads drivers and libraries, and may meet broken ones.
    for line in _lines([sys.executable, "-P", "-m", "sampler_svc.engines.backends"]) or [
        "backends: none; no sampler is here"
    ]:
        backend, _, verdict = line.partition(": ")
        yield backend, verdict
    yield "home", found(lambda: home_in_words(Home.from_environment(environ)))
    yield "engines", found(lambda: ", ".join(Home.from_environment(environ).engine_names()) or NO_ENGINES)
    yield "running here", found(lambda: running_in_words(Home.from_environment(environ)))
    yield "embedded model", found(lambda: str(embedded_base_model() or "not installed; give --base-model"))


def found(look: Callable[[], str]) -> str:
    """What `look` finds, or a Problem."""
    try:
        return look()
    except OSError as error:
        path = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return Problem(f"cannot be read: {path}{error.strerror or error}")
    except Exception as error:  # of whatever library: the other findings are worth the more
        return Problem(f"cannot be found out: {' '.join(str(error).split()) or type(error).__name__}")


def packages(extra: str) -> str:
    """The versions of what an extra installs, and what is missing."""
    versions = [(module, version(module)) for module in EXTRAS[extra]]
    told = ", ".join(f"{module} {number}" for module, number in versions if number)
    missing = [module for module, number in versions if not number]
    remedy = f"missing: {', '.join(missing)}: pip install 'unitune[{extra}]'"
    return "; ".join(filter(None, [told, remedy if missing else ""]))


def home_in_words(home: Home) -> str:
    """The folder of this machine's services, and what it takes on the disk. Raises OSError if it cannot be used."""
    try:
        mode = home.root.stat().st_mode
    except FileNotFoundError:
        return f"{home.root}, none yet"
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder; set UNITUNE_HOME to one", str(home.root))
    if not os.access(home.root, os.R_OK | os.W_OK | os.X_OK):
        what = "this user may not use it; change its owner or mode, or set UNITUNE_HOME to another"
        raise PermissionError(errno.EACCES, what, str(home.root))
    return f"{home.root}, {home.size_bytes() / 2**20:.0f} MiB"


def running_in_words(home: Home) -> str:
    """Where services run here, if some are shared."""
    running = home.running()
    return f"{running.address}, process {running.pid}" if running else "no"


def base_model_findings(folder: Path) -> Iterator[Finding]:
    """Whether a folder has the parts of a base model, and what it predicts."""
    if not folder.exists():  # of a single file
        yield "given base model", f"a file; the first command that uses it writes it as {folder}"
        return
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    yield (
        "given base model",
        Problem(f"{folder} lacks {', '.join(missing)}: it is no complete Stable Diffusion model in diffusers layout")
        if missing
        else str(folder),
    )
    if not missing:
        yield "it predicts", prediction_in_words(folder)
        if distilled := distilled_in_words(folder):
            yield "distilled", distilled


def prediction_in_words(folder: Path) -> str | Problem:
    """What a base model predicts, and who says so."""
    try:
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
        source = folder / "unitune_source.json"
        told = json.loads(source.read_bytes()) if source.is_file() else {}
        told_by = told.get("prediction_type_told_by", "scheduler_config.json")
        return f"{scheduler.get('prediction_type', 'epsilon')} ({told_by})"
    except (OSError, ValueError, AttributeError) as error:
        return Problem(f"{folder / 'scheduler'} cannot be read: {error}")


def distilled_in_words(folder: Path) -> str | Problem:
    """How a base model was distilled to few steps, by its preset, and who says so; empty if it was not."""
    try:
        preset, source = folder / PRESET_FILE, folder / "unitune_source.json"
        chosen = json.loads(preset.read_bytes()) if preset.is_file() else {}
        told = json.loads(source.read_bytes()) if source.is_file() else {}
        told_by = told.get("distilled_told_by") or preset.name
        steps = f", {chosen['num_inference_steps']} steps" if "num_inference_steps" in chosen else ""
        return f"{chosen['distilled']}{steps} ({told_by})" if chosen.get("distilled") else ""
    except (OSError, ValueError, AttributeError) as error:
        return Problem(f"{folder / PRESET_FILE} cannot be read: {error}")


def findings_of_server(
    address: str | None, environ: Mapping[str, str], credentials: Mapping[str, Any]
) -> Iterator[Finding]:
    """The findings of the server at the address, or else of the one that `unitune up` runs here.

    `credentials` are arguments of a client.
    """
    if address is None:
        try:
            running = Home.from_environment(environ).running()
        except (LocalError, OSError):  # told already
            running = None
        if running is None:
            return
        address = running.address
    try:
        with Client(address, **credentials) as client:
            info, health = client.server_info(), health_in_words(client)
    except UniTuneError as error:
        yield "server", Problem(error.message)
    else:
        yield "health", health
        if info.is_read_only:
            remedy = "its operator must make file and folder writable and start it again"
            yield "state", Problem(f"it can only be read, so nothing can be made, changed or deleted; {remedy}")
        yield from server_findings(info)


def health_in_words(client: Client) -> str:
    """Whether the server takes calls."""
    try:
        health = client.health()
    except UniTuneError as error:
        return "not told" if error.reason == "UNIMPLEMENTED" else Problem(error.message)
    return health if health == "SERVING" else Problem(f"{health}: it takes no new calls")


def server_findings(info: events.ServerInfo) -> Iterator[Finding]:
    """Everything about a server that matters to a caller, in words."""
    model, tuning, sampling, limits = info.base_model, info.tuning_defaults, info.sampling_defaults, info.limits
    pictures = (
        f"{limits.upload_bytes / 2**20:.0f} MiB, {limits.upload_pixels / 1e6:.0f} megapixels "
        f"({limits.upload_webp_pixels / 1e6:.0f} as WebP, {limits.upload_heif_pixels / 1e6:.0f} as AVIF or HEIC) "
        f"and {limits.upload_side} pixels a side of a picture"
    )
    updates = f"{tuning.updates} updates of batch {tuning.batch} at learning rate {tuning.learning_rate:g}"
    weights = (
        f"strength {sampling.strength:g}, guidance {sampling.guidance_scale:g}, "
        f"interpolation {sampling.interpolation:g}"
    )
    yield "server", info.version
    known = f"{model.name}, {model.width} x {model.height} pixels"
    yield "base model", known if model.name else NOT_TOLD.format("a tuner or a sampler")
    yield "methods", ", ".join(info.methods)
    yield "schedulers", ", ".join(info.schedulers)
    plain = info.defaults_without_warm_start
    start = f" from the base model's warm start ({plain.updates} without it)" if tuning.warm_start and plain else ""
    tuned = f"{updates}{start}, mode {tuning.mode}, rare tokens {tuning.rare_tokens}"
    yield "tuning defaults", tuned if tuning.mode else NOT_TOLD.format("a tuner")
    lora = f" and its fast LoRA ({model.fast_lora})" if model.fast_lora else ""
    fast = f", {model.fast_steps} with --fast{lora}" if model.fast_steps else ""
    steps = f"{sampling.num_inference_steps} {sampling.scheduler} steps{fast}"
    edited = f"{sampling.method}, {weights}, {steps}"
    yield "edit defaults", edited if sampling.method else NOT_TOLD.format("a sampler")
    yield "limits", f"{pictures}, {limits.prompt_characters} characters a prompt, {limits.seeds} seeds"
    yield "limits of a tenant", limits_of_a_tenant(limits)
    yield "limits of a request", limits_of_a_request(limits)
    samplers = [upstream.name for upstream in info.upstreams].count("sampler")
    number = 0
    for upstream in info.upstreams:
        told = ", ".join(filter(None, [upstream.version or "version unknown", upstream.engine, upstream.address]))
        name = upstream.name
        if name == "sampler" and samplers > 1:
            number += 1
            name = f"sampler {number}"
        if not upstream.is_answering:
            yield name, Problem(f"does not answer the gateway ({told})")
        elif upstream.is_left_out:
            why = f"its base model is {upstream.base_model[:12]}, another than that of the other samplers"
            yield name, Problem(f"gets no edits: {why}; build its engine from theirs ({told})")
        else:
            yield name, told
    yield "queue", queue_in_words(info.queue)


def limits_of_a_tenant(limits: events.Limits) -> str:
    """What a tenant may have at a time, in words."""
    told = (
        (
            limits.tenant_tunings,
            f"{limits.tenant_tunings} open tunings ({_or_any(limits.open_tunings)} of all tenants)",
        ),
        (limits.tenant_running_tunings, f"{limits.tenant_running_tunings} tunings that run"),
        (limits.tenant_kept_tunings, f"{limits.tenant_kept_tunings} tunings kept"),
        (limits.tenant_edits, f"{limits.tenant_edits} open edits ({_or_any(limits.open_edits)} of all tenants)"),
        (limits.tenant_requests_per_s, f"{limits.tenant_requests_per_s:g} calls a second"),
        (limits.tenant_bytes, f"{limits.tenant_bytes / 2**20:.0f} MiB stored"),
    )
    return ", ".join(text for limit, text in told if limit) or "none"


def limits_of_a_request(limits: events.Limits) -> str:
    """What one request may cost, in words."""
    told = (
        (limits.edit_steps, f"{limits.edit_steps} steps of an edit, of all its seeds, repeats and attempts"),
        (limits.tuning_pixels, f"{limits.tuning_pixels:.3g} pixels of a tuning, updates x batch x pixels"),
    )
    return ", ".join(text for limit, text in told if limit) or "none"


def queue_in_words(queue: events.Queue) -> str:
    """What runs and waits."""
    tunings = f"{queue.tunings_running} tunings run, {queue.tunings_queued} wait"
    edits = f"{queue.edits_running} edits run, {queue.edits_waiting} wait"
    if queue.tunings_queued:
        tunings += f" (the oldest for {queue.oldest_tuning_s:.0f} s)"
    if queue.edits_waiting:
        edits += f" (the oldest for {queue.oldest_edit_s:.0f} s)"
    return f"{tunings}; {edits}"


def _or_any(limit: int) -> str:
    return str(limit) if limit else "any number"


def vocabulary(folder: Path) -> dict[str, list[str]]:
    """The words that a base model's folder lists, by kind; none for an open vocabulary. Raises LocalError, OSError."""
    path = folder / "vocabulary.json"
    if not path.is_file():
        return {}
    try:
        listed = json.loads(path.read_bytes())
        return {str(kind): [str(word) for word in words] for kind, words in listed.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise LocalError(f"{path} is no list of words by kind: {error}") from None


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
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
