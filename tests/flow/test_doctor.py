"""`unitune doctor --address` of a server that runs: health, versions, limits and queue."""

import re
from dataclasses import replace

from click.testing import CliRunner

from unitune import __version__
from unitune.v1 import server_pb2
from unitune_client import Client, events, messages
from unitune_client.cli.main import main
from unitune_client.local import doctor
from unitune_client.local.services import LocalServices


def test_a_running_server_is_told(services: LocalServices) -> None:
    """Health, both services with their versions, what a tenant and a request may ask for, and the queue."""
    done = CliRunner().invoke(main, ["doctor", "--address", services.address])

    assert 0 == done.exit_code, done.output
    assert re.search(r"^health: +SERVING$", done.stdout, re.MULTILINE)
    assert re.search(rf"^tuner: +{re.escape(__version__)}$", done.stdout, re.MULTILINE)
    assert re.search(rf"^sampler: +{re.escape(__version__)}, onnxruntime .* cpu", done.stdout, re.MULTILINE)
    of_tenant = r"100 open tunings \(1000 of all tenants\), 10000 tunings kept, 256 open edits"
    assert re.search(rf"^limits of a tenant: +{of_tenant}", done.stdout, re.MULTILINE)
    assert re.search(r"^limits of a request: +20000 steps of an edit", done.stdout, re.MULTILINE)
    assert re.search(r"^queue: +\d+ tunings run, \d+ wait.*; \d+ edits run, \d+ wait", done.stdout, re.MULTILINE)


def test_what_is_wrong_is_a_problem(client: Client) -> None:
    """Whoever does not answer is told as one, and so is a sampler that gets no edits; a limit that is none is not."""
    info = client.server_info()
    silent = events.Upstream(name="tuner", version="0.0.9")
    queue = events.Queue(tunings_queued=3, oldest_tuning_s=61.2)
    limits = replace(info.limits, tenant_edits=0, edit_steps=0, tuning_pixels=0)
    told = dict(doctor.server_findings(replace(info, upstreams=(silent,), queue=queue, limits=limits)))

    assert isinstance(told["tuner"], doctor.Problem) and "does not answer the gateway (0.0.9)" in told["tuner"]
    assert "sampler" not in told
    samplers = (
        events.Upstream(name="sampler", version="1.0", is_answering=True, engine="cpu", address="10.0.0.7:50053"),
        events.Upstream(name="sampler", version="1.0", is_answering=True, base_model="f" * 64, is_left_out=True),
        events.Upstream(name="sampler"),
    )
    of = dict(doctor.server_findings(replace(info, upstreams=samplers)))
    assert of["sampler 1"] == "1.0, cpu, 10.0.0.7:50053"
    assert (
        isinstance(of["sampler 2"], doctor.Problem)
        and "gets no edits: its base model is ffffffffffff" in of["sampler 2"]
    )
    assert isinstance(of["sampler 3"], doctor.Problem) and "does not answer the gateway" in of["sampler 3"]
    assert told["queue"] == "0 tunings run, 3 wait (the oldest for 61 s); 0 edits run, 0 wait"
    assert "edits" not in told["limits of a tenant"] and told["limits of a request"] == "none"


def test_what_no_service_has_told_yet_is_said_to_be_unknown() -> None:
    """A gateway whose tuner and sampler never answered is not told as a base model of 0 x 0 pixels."""
    told = dict(doctor.server_findings(messages.server_info(server_pb2.ServerInfo(version="1.0"))))
    assert told["base model"] == "not known yet: the gateway has no answer from a tuner or a sampler"
    assert told["tuning defaults"] == "not known yet: the gateway has no answer from a tuner"
    assert told["edit defaults"] == "not known yet: the gateway has no answer from a sampler"
