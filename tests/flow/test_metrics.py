"""What Prometheus reads from each of the three services after real work."""

import json
import re
import time
import urllib.request

from tests.gateway.conftest import picture
from unitune_client import Client
from unitune_client.local.services import LocalServices


def address_of(services: LocalServices, name: str) -> str:
    """Where a service's metrics are, by its log."""
    for line in (services.logs / f"{name}.log").read_text().splitlines():
        if line.startswith("{") and (told := json.loads(line))["event"] == "metrics":
            return str(told["address"])
    raise AssertionError(f"the {name} tells no metrics")


def samples(services: LocalServices, name: str) -> dict[str, float]:
    """Every sample of a service by its name and labels."""
    with urllib.request.urlopen(f"http://{address_of(services, name)}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_every_service_tells_what_it_did(services: LocalServices, client: Client) -> None:
    """A tuning and an edit are in the gateway's, the tuner's and the sampler's metrics, and no name or text is."""
    before = {name: samples(services, name) for name in ("gateway", "tuner", "sampler")}
    client.edit_to_end(picture("orchid", (61, 47)), "a secret dog", updates=3, num_inference_steps=4)
    time.sleep(2.5)  # the gateway looks at its queues every two seconds
    after = {name: samples(services, name) for name in before}

    def more(service: str, sample: str) -> float:
        return after[service].get(sample, 0.0) - before[service].get(sample, 0.0)

    edit = 'unitune_rpc_seconds_count{code="OK",method="/unitune.v1.EditService/Edit"}'
    assert more("gateway", edit) == 1
    assert more("gateway", 'unitune_tuning_ends_total{state="ready"}') == 1
    assert more("gateway", 'unitune_edit_ends_total{state="done"}') == 1
    assert more("gateway", 'unitune_edit_stage_seconds_count{stage="tune"}') == 1
    assert after["gateway"]['unitune_upstream_up{upstream="tuner"}'] == 1
    assert after["gateway"]['unitune_tunings{state="queued"}'] == 0
    assert after["gateway"]['unitune_edits{state="running"}'] == 0
    assert after["gateway"]['unitune_oldest_wait_seconds{queue="edits"}'] == 0

    assert more("tuner", "unitune_tuning_updates_total") == 3
    for stage in ("preparing", "updating", "packing", "storing"):
        assert more("tuner", f'unitune_tuning_stage_seconds_count{{stage="{stage}"}}') == 1

    assert more("sampler", "unitune_refit_seconds_count") >= 1
    for stage in ("encode", "denoise", "decode"):
        assert more("sampler", f'unitune_edit_stage_seconds_count{{stage="{stage}"}}') == 1
    assert after["sampler"]['unitune_engines{state="warm"}'] >= 1
    assert after["sampler"]["unitune_probe_failures_total"] == 0

    for told in after.values():
        assert not re.search(r"tenants|secret|dog|tunings/|edits/", " ".join(told))
        assert told["process_resident_memory_bytes"] > 0
