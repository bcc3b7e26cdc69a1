"""What the services measure, for Prometheus: every name, its labels and what it counts.

Operators' dashboards and alerts use these names, so they change as the contract does (`tests/unitune/test_metrics.py`).
No label has a tenant, a tuning, an edit, a prompt or a path: a label's values are few, and known here. Only
`unitune_adapters_info` has digests of weights, as many as there are engines: pickers of endpoints look for them there.

`serve` opens the port, which is off unless a setting names it: it speaks plain HTTP to whoever reaches it.
"""

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from unitune import __version__
from unitune.errors import QUEUE_FULL, STORE_CORRUPT, STORE_DOWN, STORE_FULL

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # memory, CPU seconds and open files of the process

# Seconds. A call may be answered at once or last for hours; a stage is a part of a tuning or an edit.
CALL_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STAGE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

# All services.
BUILD = Gauge("unitune_build", "1, with the version of the software.", ["version"], registry=REGISTRY)
CALLS = Histogram(
    "unitune_rpc_seconds",
    "Calls that ended, by method and status code, and how long they took.",
    ["method", "code"],
    registry=REGISTRY,
    buckets=CALL_S,
)
REFUSALS = Counter(
    "unitune_refusals", "Calls refused with RESOURCE_EXHAUSTED, by the reason told.", ["reason"], registry=REGISTRY
)
STORE_ERRORS = Counter(
    "unitune_store_errors", "Failed operations on the object store, by reason.", ["reason"], registry=REGISTRY
)
TASKS = Gauge("unitune_tasks", "Tasks of the event loop: calls that run, and the service's own.", registry=REGISTRY)

# The gateway.
TUNINGS = Gauge("unitune_tunings", "Tunings that are queued or running.", ["state"], registry=REGISTRY)
EDITS = Gauge(
    "unitune_edits", "Edits that wait for their turn at the sampler, or have it.", ["state"], registry=REGISTRY
)
OLDEST_WAIT_S = Gauge(
    "unitune_oldest_wait_seconds", "How long the oldest of a queue has waited.", ["queue"], registry=REGISTRY
)
UPSTREAM_UP = Gauge(
    "unitune_upstream_up", "1 while tuner or sampler answers the gateway, else 0.", ["upstream"], registry=REGISTRY
)
SAMPLERS = Gauge(
    "unitune_samplers",
    "Samplers by what the gateway knows of them: usable ones get edits, others are left out or away.",
    ["state"],
    registry=REGISTRY,
)
EDIT_MOVES = Counter(
    "unitune_edit_moves", "Edits that began again at another sampler, as theirs was lost.", registry=REGISTRY
)
TUNING_ENDS = Counter("unitune_tuning_ends", "Tunings that ended, by how.", ["state"], registry=REGISTRY)
TUNINGS_LOST = Counter(
    "unitune_tunings_lost", "Runs of tunings that did not end, and are queued again.", registry=REGISTRY
)
EDIT_ENDS = Counter("unitune_edit_ends", "Edits that ended, by how.", ["state"], registry=REGISTRY)

# Gateway and sampler. Stages of the gateway: tune, queue, total. Of the sampler: those of `Timings`.
EDIT_STAGE_S = Histogram(
    "unitune_edit_stage_seconds", "Stages of edits that are done.", ["stage"], registry=REGISTRY, buckets=STAGE_S
)

# The tuner.
TUNING_STAGE_S = Histogram(
    "unitune_tuning_stage_seconds", "Stages of tunings.", ["stage"], registry=REGISTRY, buckets=STAGE_S
)
TUNING_UPDATES = Counter("unitune_tuning_updates", "Updates that were made.", registry=REGISTRY)

# The sampler.
REFIT_S = Histogram(
    "unitune_refit_seconds", "Refits of engines that were proven by their probe.", registry=REGISTRY, buckets=STAGE_S
)
PROBE_FAILURES = Counter("unitune_probe_failures", "Refits that the engine or its probe refused.", registry=REGISTRY)
ENGINES = Gauge(
    "unitune_engines",
    "Engines by what they hold: warm has a tuning's weights, cold has not.",
    ["state"],
    registry=REGISTRY,
)
RUNS = Gauge("unitune_runs", "Edits and loads that wait for an engine, or have one.", ["state"], registry=REGISTRY)
ENGINE_USAGE = Gauge(
    "unitune_engine_usage", "The share of the denoiser's engines that hold a tuning's weights.", registry=REGISTRY
)
KEPT_WEIGHTS_BYTES = Gauge(
    "unitune_kept_weights_bytes", "Decoded weights in memory, for refits that read no file.", registry=REGISTRY
)
ADAPTERS = Gauge(
    "unitune_adapters_info",
    "Digests of the weights in engines and of those that are waited for; the value is when that was told last.",
    ["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    registry=REGISTRY,
)

_adapters: list[tuple[str, str, str]] = []  # the labels told last

# A counter that appears with its first count has not increased, for Prometheus: what is alerted of is told from the
# start.
for _reason in (STORE_FULL, STORE_DOWN, STORE_CORRUPT):
    STORE_ERRORS.labels(_reason)
REFUSALS.labels(QUEUE_FULL)
for _state in ("ready", "failed", "cancelled", "expired"):
    TUNING_ENDS.labels(_state)


def tell_adapters(most: int, resident: Sequence[str], coming: Sequence[str]) -> None:
    """There are so many engines, with these weights in them, and with these that runs wait for, of which as many are
    told as there are engines. The new labels are there before the old ones are gone, so that each scrape finds some.
    """
    told = str(most), ",".join(resident), ",".join(coming[:most])
    ADAPTERS.labels(*told).set(time.time())
    for old in [labels for labels in _adapters if labels != told]:
        ADAPTERS.remove(*old)
    _adapters[:] = [told]


def serve(address: str) -> str:
    """Answer `GET /metrics` at HOST:PORT, on a thread of its own; the address with the bound port.

    Raises OSError when it cannot be bound.
    """
    BUILD.labels(__version__).set(1)
    host, _, port = address.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host.strip("[]") or "0.0.0.0", registry=REGISTRY)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot serve metrics on {address}: it is in use or not HOST:PORT of this machine") from error
    return f"{host}:{server.server_port}"
