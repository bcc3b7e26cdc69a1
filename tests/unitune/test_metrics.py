"""The metrics' names, labels and port, on which operators' dashboards and alerts depend."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from unitune import metrics, serving
from unitune.errors import QUEUE_FULL, STORE_FULL, ResourceExhausted, UniTuneError
from unitune.object_store import ObjectStore
from unitune.v1 import server_pb2, server_pb2_grpc

FROZEN = {
    "unitune_build": ("gauge", ("version",)),
    "unitune_rpc_seconds": ("histogram", ("method", "code")),
    "unitune_refusals": ("counter", ("reason",)),
    "unitune_store_errors": ("counter", ("reason",)),
    "unitune_tasks": ("gauge", ()),
    "unitune_tunings": ("gauge", ("state",)),
    "unitune_edits": ("gauge", ("state",)),
    "unitune_oldest_wait_seconds": ("gauge", ("queue",)),
    "unitune_upstream_up": ("gauge", ("upstream",)),
    "unitune_samplers": ("gauge", ("state",)),
    "unitune_edit_moves": ("counter", ()),
    "unitune_tuning_ends": ("counter", ("state",)),
    "unitune_tunings_lost": ("counter", ()),
    "unitune_edit_ends": ("counter", ("state",)),
    "unitune_edit_stage_seconds": ("histogram", ("stage",)),
    "unitune_tuning_stage_seconds": ("histogram", ("stage",)),
    "unitune_tuning_updates": ("counter", ()),
    "unitune_refit_seconds": ("histogram", ()),
    "unitune_probe_failures": ("counter", ()),
    "unitune_engines": ("gauge", ("state",)),
    "unitune_runs": ("gauge", ("state",)),
    "unitune_engine_usage": ("gauge", ()),
    "unitune_kept_weights_bytes": ("gauge", ()),
    # As pickers of endpoints want them: digests of weights, which name nobody.
    "unitune_adapters_info": ("gauge", ("max_lora", "running_lora_adapters", "waiting_lora_adapters")),
}


def declared() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name, kind and labels of every metric of ours."""
    found = {}
    for value in vars(metrics).values():
        if hasattr(value, "_labelnames"):
            (family,) = value.describe()
            found[family.name] = family.type, tuple(value._labelnames)
    return found


def test_names_and_labels_are_frozen() -> None:
    """A metric that is renamed, or gets another label, breaks every dashboard; none says whose work it was (F45)."""
    assert declared() == FROZEN
    told = {label for _, labels in FROZEN.values() for label in labels}
    assert told.isdisjoint({"tenant", "tuning", "edit", "prompt", "name", "image", "path", "peer"})


def scrape(address: str) -> str:
    """All metrics, as Prometheus reads them."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


class Info(server_pb2_grpc.ServerServiceServicer):
    """Refuses every call."""

    async def GetServerInfo(self, request: Any, context: Any) -> server_pb2.ServerInfo:
        raise ResourceExhausted("no", reason="QUEUE_FULL")


async def test_calls_and_refusals_are_counted() -> None:
    """By method, code and reason, with what the process itself takes, at a port that was asked for."""

    def register(server: grpc.aio.Server) -> list[str]:
        server_pb2_grpc.add_ServerServiceServicer_to_server(Info(), server)
        return ["unitune.v1.ServerService"]

    address = metrics.serve("127.0.0.1:0")
    running = await serving.start("127.0.0.1:0", register)
    async with serving.channel(running.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(server_pb2.GetServerInfoRequest())
    await running.stop()
    told = scrape(address)
    labels = 'code="RESOURCE_EXHAUSTED",method="/unitune.v1.ServerService/GetServerInfo"'
    assert f"unitune_rpc_seconds_count{{{labels}}} 1.0" in told
    assert 'unitune_refusals_total{reason="QUEUE_FULL"}' in told
    assert "process_resident_memory_bytes" in told and 'unitune_build{version="' in told
    with pytest.raises(OSError, match="cannot serve metrics"):
        metrics.serve(address)


def test_errors_of_the_store_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the reason that callers are told."""
    caplog.set_level(logging.CRITICAL)
    (tmp_path / "images").write_bytes(b"a file where a folder must be")
    store = ObjectStore(str(tmp_path))
    with pytest.raises(UniTuneError) as caught:
        store.put("images/x/file", b"x")
    count = metrics.STORE_ERRORS.labels(caught.value.reason)._value.get()
    with pytest.raises(UniTuneError):
        store.put("images/x/file", b"x")
    assert metrics.STORE_ERRORS.labels(caught.value.reason)._value.get() == count + 1


MONITORING = Path(__file__).parents[2] / "k8s" / "monitoring"
# What Prometheus itself makes of a process, beside our own.
OF_THE_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
# The values that each label may have, where a rule or a panel names one.
VALUES = {
    "code": {code.name for code in grpc.StatusCode},
    "queue": {"tunings", "edits"},
    "reason": {STORE_FULL, QUEUE_FULL},
    "state": {"failed"},
}


def samples() -> dict[str, tuple[str, ...]]:
    """The labels of every sample that Prometheus reads, by its name."""
    own = {f"{name}{end}": labels for name, (kind, labels) in FROZEN.items() for end in ENDINGS[kind]}
    return own | dict.fromkeys(OF_THE_PROCESS, ())


def expressions() -> list[str]:
    """Every expression of the dashboard and of the alert rules."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return found + [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("expression", expressions())
def test_dashboard_and_alerts_ask_for_what_there_is(expression: str) -> None:
    """Each name is a sample of ours, each label one that it has, each value one that can be; brackets are closed."""
    known = samples()
    names = set(re.findall(r"\b(?:unitune|process)_\w+", expression))
    assert names and names <= known.keys()
    for name, matchers in re.findall(r"\b((?:unitune|process)_\w+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers):
            assert label in (*known[name], "job"), label
            assert label == "job" or set(value.split("|")) <= VALUES[label], value
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        allowed = {label for name in names for label in known[name]} | {"le", "job", "instance"}
        assert set(labels.split(", ")) <= allowed
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_what_is_alerted_of_is_counted_from_zero() -> None:
    """A sample that appears with its first count has not increased for Prometheus, so a single full store was never
    told: each that a rule names, and each state of a tuning's end, is there before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    program = "from prometheus_client import generate_latest; from unitune.metrics import REGISTRY; "
    program += "print(generate_latest(REGISTRY).decode())"
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    ).stdout
    for name, value in re.findall(r'increase\((unitune_\w+)(?:\{\w+="(\w+)"\})?\[', " ".join(expressions())):
        assert re.search(rf'^{name}(\{{\w+="{value}"\}}|)? 0.0$' if value else rf"^{name}\b.* 0.0$", told, re.MULTILINE)
    assert 'unitune_store_errors_total{reason="STORE_DOWN"} 0.0' in told
    assert 'unitune_tuning_ends_total{state="ready"} 0.0' in told


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: Debian's package prometheus")
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    """Prometheus' own tool finds no fault in the rules, and what k8s/monitoring/alerts_test.yaml says of each holds."""
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    """Each rule has a test in which it fires, and one in which it does not."""
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    fires, rests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    names = {rule["alert"] for rule in rules}
    assert names == {one["alertname"] for one in fires["alert_rule_test"] if one["exp_alerts"]}
    assert names == {one["alertname"] for one in rests["alert_rule_test"] if not one["exp_alerts"]}


def test_every_alert_says_what_to_do() -> None:
    """Each rule has a summary, and a heading of its name in the page for operators."""
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("critical", "warning")
        assert f"### {rule['alert']}\n" in page, rule["alert"]
    told = set(re.findall(r"^### (UniTune\w+)$", page, re.MULTILINE))
    assert told == {rule["alert"] for rule in rules}


def test_every_metric_is_in_the_page_for_operators() -> None:
    """docs/operating.md has a row for each, by the name that Prometheus shows."""
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    shown = {f"{name}_total" if kind == "counter" else name for name, (kind, _) in FROZEN.items()}
    assert shown == set(re.findall(r"^\| `(unitune_\w+)", page, re.MULTILINE))


def test_few_of_the_weights_that_runs_wait_for_are_told() -> None:
    """As many as there are engines, however long the queue is, and in one series."""
    for coming in ([], ["c", "d", "e"]):
        metrics.tell_adapters(2, ["a", "b"], coming)
    (sample,) = [sample for family in metrics.ADAPTERS.collect() for sample in family.samples]
    assert sample.labels == {"max_lora": "2", "running_lora_adapters": "a,b", "waiting_lora_adapters": "c,d"}
