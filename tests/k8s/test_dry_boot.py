"""The overlay `prod` without a cluster: its containers' own commands and environments as processes of this machine.

What is not as in the cluster stands in one place, `Machine`: addresses, folders of volumes, the contents of Secrets,
threads, and a small base model in place of the images' own. PostgreSQL and Envoy are real, the bucket is moto's.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psycopg
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from bench.started import free_addresses
from gateway.api_keys import new_key
from tests.bucket import Bucket, make_bucket
from tests.certificates import Authority
from tests.edge import running_envoy
from tests.edge.running_envoy import Edge
from tests.flow.test_secured import command
from tests.gateway.conftest import postgres_server  # noqa: F401, a fixture
from tests.k8s.rendered import Object, Rendered, entry_point, overlay
from tests.picture_files import file_of
from tests.postgres_server import PostgresServer
from unitune import peers
from unitune.drain import KILLED_AFTER_S
from unitune.v1.tuning_pb2 import Tuning
from unitune_client import Client
from unitune_client.local.home import Home

pytestmark = pytest.mark.slow  # real services

REPLICAS = {"sampler": 3, "gateway": 2, "tuner": 2}
PEERS = {"gateway": peers.GATEWAY, "tuner": peers.TUNER, "sampler": peers.SAMPLER}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
START_S = 300.0  # on a busy machine


@dataclass
class Machine:
    """What stands for the cluster. All that differs from it is here."""

    folder: Path
    model: Path
    graphs: Path
    bucket: Bucket
    secrets: Mapping[str, Mapping[str, str]]
    files: Mapping[str, Path]  # of a volume, by the Secret that it shows
    pods: Mapping[str, list["Pod"]] = field(default_factory=dict)

    def environment(self, pod: "Pod", given: Mapping[str, str]) -> dict[str, str]:
        """A container's environment, as a kubelet sets it, for this machine."""
        found = {name: self.path(pod, value) for name, value in given.items()}
        for name, value in given.items():
            host, _, port = value.rpartition(":")
            if host in ("0.0.0.0", "127.0.0.1"):  # its own ports
                found[name] = f"127.0.0.1:{pod.port(int(port))}"
            elif name == "UNITUNE_SAMPLER":
                found[name] = self.addresses("sampler", host, int(port))
            elif name == "UNITUNE_GATEWAY":
                found[name] = self.addresses("gateway", host.removesuffix("-internal"), int(port))
        found["UNITUNE_STORE"] = self.bucket.url
        if not pod.name.startswith("gateway"):
            found["UNITUNE_THREADS"] = "1"  # more would wait for one another on a busy machine
        if pod.name.startswith("tuner"):
            found["UNITUNE_BASE_MODEL"] = str(self.model)
        return found

    def addresses(self, service: str, host: str, port: int) -> str:
        """Those that a headless Service stands for."""
        assert host == service
        return ",".join(f"127.0.0.1:{pod.port(port)}" for pod in self.pods[service])

    def path(self, pod: "Pod", text: str) -> str:
        """A text with a path in a container as it is here."""
        for mounted, here in (*pod.mounts.items(), ("/opt/unitune/graphs", self.graphs)):
            if text == mounted or text.startswith(f"{mounted}/"):
                return f"{here}{text.removeprefix(mounted)}"
        return text

    def mounts(self, pod: Object, container: Object) -> dict[str, Path]:
        """A container's folders, and what they are here."""
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        made = {}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            secret = volume.get("secret", {}).get("secretName")
            made[mount["mountPath"]] = self.files[secret] if secret else self.folder / "volumes" / volume["name"]
            made[mount["mountPath"]].mkdir(parents=True, exist_ok=True)
        return made


@dataclass
class Pod:
    """A process in place of a pod. Its ports are free ones, by the number that they have in the cluster."""

    name: str
    mounts: Mapping[str, Path] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def port(self, number: int) -> int:
        if number not in self.ports:
            (address,) = free_addresses(1)
            self.ports[number] = int(address.rpartition(":")[2])
        return self.ports[number]

    def answers(self, probe: Object) -> bool:
        """What a kubelet's gRPC probe would find."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port(probe['grpc']['port'])}") as channel:
            request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def words(container: Object, machine: Machine, pod: Pod) -> list[str]:
    """What a container runs."""
    image = container["image"].partition(":")[0].removeprefix("unitune-")
    program = container.get("command") or entry_point(image)
    assert program[0] == "python"
    return [sys.executable, *(machine.path(pod, word) for word in (*program[1:], *container.get("args", [])))]


@contextmanager
def started(rendered: Rendered, service: str, machine: Machine) -> Iterator[None]:
    """All pods of a Deployment, once each is as ready as its probes ask."""
    spec = rendered.find("Deployment", service)["spec"]["template"]["spec"]
    container = rendered.service(service)
    processes = []
    try:
        for pod in machine.pods[service]:
            # All pods have the first one's folders here, in which it has done this.
            init = spec.get("initContainers", []) if pod is machine.pods[service][0] else []
            for one in (*init, container):
                pod.mounts = machine.mounts(spec, one)
                environ = {
                    name: value for name, value in os.environ.items() if not name.startswith(("UNITUNE_", "AWS_"))
                }
                environ |= machine.environment(pod, rendered.environment(one, machine.secrets))
                log = (machine.folder / f"{pod.name}.log").open("a")
                program = subprocess.Popen(
                    words(one, machine, pod), env=environ, stdout=log, stderr=log, text=True, cwd=running_envoy.ROOT
                )
                processes.append(program)
                if one is not container:  # an init container ends before the next one begins
                    assert program.wait(START_S) == 0, (machine.folder / f"{pod.name}.log").read_text()
            pod.process = program
        give_up_at = time.monotonic() + START_S
        for pod in machine.pods[service]:
            while not all(pod.answers(container[probe]) for probe in PROBES):
                log_text = (machine.folder / f"{pod.name}.log").read_text()
                assert pod.process is not None and pod.process.poll() is None, log_text
                assert time.monotonic() < give_up_at, log_text
                time.sleep(0.1)
        yield
    finally:
        for program in processes:
            program.terminate()
        for program in processes:
            program.wait(60)


@dataclass(frozen=True)
class Booted:
    """The fleet, and how clients reach it."""

    machine: Machine
    edge: Edge
    key: str
    database: str


@pytest.fixture(scope="module")
def booted(
    services_model: Path,
    built_home: Home,
    s3_address: str,
    postgres_server: PostgresServer,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Booted]:
    """PostgreSQL, a bucket, and of the overlay `prod` three samplers, two gateways, two tuners and Envoy."""
    folder, rendered = tmp_path_factory.mktemp("boot"), overlay("prod")
    database, bucket, authority = postgres_server.new_database(), make_bucket(s3_address), Authority.make(folder)
    (graphs,), (engine,) = built_home.graphs.iterdir(), built_home.engines.iterdir()
    shutil.copytree(engine, folder / "volumes" / "engines" / "current")  # that of the init container, which finds it
    files = {}
    for service, name in PEERS.items():
        files[f"{service}-peer"] = secret = folder / f"{service}-peer"
        secret.mkdir()
        issued = authority.issue(secret, "tls", name)
        shutil.copy(authority.path, secret / "ca.crt")
        assert issued.certificate.name == "tls.crt" and issued.key.name == "tls.key"
    files["unitune-admin-key"] = folder / "admin"
    files["unitune-admin-key"].mkdir()
    (folder / "admin" / "admin.key").write_text(new_key())
    (folder / "admin" / "admin.key").chmod(0o440)
    secrets = {"unitune-database": {"url": database}}
    secrets |= {f"{service}-bucket": dict(bucket.environment) for service in PEERS}
    pods = {service: [Pod(f"{service}-{number}") for number in range(count)] for service, count in REPLICAS.items()}
    machine = Machine(folder, services_model, graphs, bucket, secrets, files, pods)
    with ExitStack() as stack:
        for service in REPLICAS:
            stack.enter_context(started(rendered, service, machine))
        door = authority.issue(folder, "door", "localhost")
        gateways = [f"127.0.0.1:{pod.port(50051)}" for pod in pods["gateway"]]
        edge = stack.enter_context(running_envoy.running(folder / "edge", door, authority.path, gateways))
        give_up_at = time.monotonic() + START_S
        while not edge.is_up():
            assert time.monotonic() < give_up_at, edge.log.read_text()
            time.sleep(0.1)
        made = command(
            folder,
            *("keys", "create", "default", "--key-file", "admin/admin.key", "--address", edge.address),
            UNITUNE_CA=str(authority.path),
        )
        assert made.returncode == 0, made.stderr
        yield Booted(machine, edge, made.stdout.strip(), database)


def states(booted: Booted) -> list[int]:
    """Those of all tunings, as the database has them."""
    with psycopg.connect(booted.database) as connection:
        return [state for (state,) in connection.execute("SELECT state FROM tunings")]


def test_the_edge_runs_what_is_rendered() -> None:
    """The configuration in the overlay is the file that the tests run Envoy with, and so are its options."""
    rendered = overlay("prod")
    pod = rendered.find("Deployment", "edge")["spec"]["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    (volume,) = (one for one in pod["volumes"] if "configMap" in one)
    configuration = rendered.find("ConfigMap", volume["configMap"]["name"])
    for name in ("envoy.yaml", "door.yaml"):
        assert configuration["data"][name] == (running_envoy.FOLDER / name).read_text()
    assert pod["containers"][0]["args"][:3] == ["-c", f"{mounted['config']}/envoy.yaml", "--disable-hot-restart"]
    listener = yaml.safe_load(configuration["data"]["envoy.yaml"])["static_resources"]["listeners"][0]
    assert {one["containerPort"] for one in pod["containers"][0]["ports"]} == {
        listener["address"]["socket_address"]["port_value"]
    }


def test_an_edit_by_grpc(booted: Booted) -> None:
    """The SDK uploads, tunes and edits through Envoy, keys and certificates; state and weights are in PostgreSQL and in
    the bucket."""
    picture = booted.machine.folder / "cat.png"
    picture.write_bytes(file_of(Image.new("RGB", (64, 48), "tan")))
    authority = booted.edge.authority.read_bytes()
    with Client(booted.edge.address, key=booted.key, root_certificates=authority) as client:
        result = client.edit_to_end(picture, "a dog", updates=2, num_inference_steps=2, seeds=[7])
        assert result.images[0].png.startswith(b"\x89PNG")
    assert Tuning.STATE_READY in states(booted)
    paths = booted.machine.bucket.paths()
    assert [path for path in paths if path.endswith("/manifest.json")] and [
        path for path in paths if "/images/" in path
    ]


def test_an_edit_by_curl(booted: Booted) -> None:
    """One command of curl makes an edit of a picture that nobody has tuned."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = {
        "image_data": base64.b64encode(file_of(Image.new("RGB", (48, 64), "navy"))).decode(),
        "prompt": "a dog",
        "config": {"num_inference_steps": 2},
        "tuning_config": {"updates": 2},
        "seeds": ["7"],
    }
    told = subprocess.run(
        [
            *("curl", "-sSN", "--fail-with-body", "--cacert", booted.edge.authority),
            *("-H", f"authorization: Bearer {booted.key}", "-d", json.dumps(body)),
            f"{booted.edge.url}/v1/tenants/default/edits",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert (
        "done" in events[-1]
        and [one for one in events if "tuning" in one]
        and [one for one in events if "image" in one]
    )
    assert states(booted).count(Tuning.STATE_READY) >= 1


def metrics_of(pod: Pod) -> str:
    """What Prometheus reads at the port of the PodMonitor."""
    (port,) = (one["port"] for one in overlay("prod").kind("PodMonitor")[0]["spec"]["podMetricsEndpoints"])
    ports = {one["name"]: one["containerPort"] for one in overlay("prod").service(pod.name.partition("-")[0])["ports"]}
    url = f"http://127.0.0.1:{pod.port(ports[port])}/metrics"
    return urllib.request.urlopen(url, timeout=10).read().decode()


def test_every_pod_serves_what_is_asked_of_it(booted: Booted) -> None:
    """Metrics are where the PodMonitor looks for them, and tell that tuner and samplers answer; a pod that is ended
    has left by itself before a kubelet would kill it."""
    give_up_at = time.monotonic() + START_S
    for pod in (pod for pods in booted.machine.pods.values() for pod in pods):
        told = [f'unitune_upstream_up{{upstream="{one}"}} 1.0' for one in ("sampler", "tuner")]
        expected = ["unitune_build", *(told if pod.name.startswith("gateway") else ())]
        while missing := [one for one in expected if one not in metrics_of(pod)]:  # a gateway asks every few seconds
            assert time.monotonic() < give_up_at, (pod.name, missing)
            time.sleep(0.2)
    for service in ("tuner", "sampler", "gateway"):
        process = booted.machine.pods[service][-1].process
        assert process is not None
        process.terminate()
        assert process.wait(KILLED_AFTER_S) == 0
