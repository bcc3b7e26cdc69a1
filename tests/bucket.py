"""A bucket with the protocol of S3, as moto serves it on loopback. It keeps everything in memory."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Bucket:
    """A bucket. `url` is for UNITUNE_STORE, `environment` what a program beside it needs, `s3` a client of boto3."""

    name: str
    url: str
    environment: Mapping[str, str]
    s3: Any

    def paths(self) -> list[str]:
        """Of all objects in it, from its root."""
        return [one["Key"] for one in self.s3.list_objects_v2(Bucket=self.name).get("Contents", [])]


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """HOST:PORT of the server."""
    from moto.server import ThreadedMotoServer  # slow to import, and few test files need it

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, which this process reaches by its environment."""
    made = make_bucket(s3_address)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def make_bucket(address: str) -> Bucket:
    """A new bucket of the server at an address."""
    import boto3

    name = f"bucket-{secrets.token_hex(4)}"
    environment = {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    s3 = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    s3.create_bucket(Bucket=name)
    return Bucket(name, f"s3://{name}/unitune", environment, s3)
