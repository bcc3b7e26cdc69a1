"""What is of buckets alone: who creates first wins, settings pass through, and one that cannot is refused."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.bucket import Bucket
from unitune import store_paths
from unitune.object_store import ObjectStore

ROOT = Path(__file__).parents[2]
LIFECYCLE = ROOT / "k8s" / "bucket" / "lifecycle.json"


def test_of_many_who_create_an_object_one_wins(bucket: Bucket) -> None:
    """Whatever reads it later reads that one's bytes, over each connection."""
    stores = [ObjectStore(bucket.url), ObjectStore(bucket.url)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: stores[number % 2].put("a/b", b"%d" % number), range(16)))
    first = stores[0].get("a/b")
    stores[1].put("a/b", b"later")
    assert first == stores[1].get("a/b") and int(first) < 16


def test_everything_lies_below_the_prefix_by_tenant(bucket: Bucket) -> None:
    """A bucket may be shared: nothing is written, listed or deleted outside of the prefix, and a tenant's prefix is no
    part of another's."""
    bucket.s3.put_object(Bucket=bucket.name, Key="tunings/a/of-somebody-else", Body=b"1")
    store = ObjectStore(bucket.url)
    for tenant in ("a", "ab"):
        store.put(f"{store_paths.weights_path(tenant, 't-001', 1)}/manifest.json", b"1")
    assert bucket.paths() == [
        "tunings/a/of-somebody-else",
        "unitune/tunings/a/t-001/1/manifest.json",
        "unitune/tunings/ab/t-001/1/manifest.json",
    ]
    store.discard("tunings/a")
    assert store.list("") == ["tunings/ab/t-001/1/manifest.json"] and len(bucket.paths()) == 2


def test_settings_of_encryption_reach_the_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that every program of the bucket's vendor takes from the environment."""
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "our-key")
    ObjectStore(bucket.url).put("a", b"1")
    head = bucket.s3.head_object(Bucket=bucket.name, Key="unitune/a")
    assert ("aws:kms", "our-key") == (head["ServerSideEncryption"], head["SSEKMSKeyId"])


def test_the_lifecycle_rules_are_some(bucket: Bucket) -> None:
    """S3 takes the file, and what expires by it is nothing that has to stay."""
    bucket.s3.put_bucket_lifecycle_configuration(
        Bucket=bucket.name, LifecycleConfiguration=json.loads(LIFECYCLE.read_text())
    )
    rules = bucket.s3.get_bucket_lifecycle_configuration(Bucket=bucket.name)["Rules"]
    expiring = {rule["Filter"]["Prefix"] for rule in rules if "Expiration" in rule}
    of_a_while = {f"unitune/{store_paths.EDITS}/", f"unitune/{store_paths.UPLOADS}/", "unitune/probe/"}
    assert len(rules) == 5 and expiring == of_a_while


class Overwriting(BaseHTTPRequestHandler):
    """A store that knows no conditional writes, and says so to nobody, as some do. No real one of this kind is here."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(200)

    def do_DELETE(self) -> None:
        self._answer(204)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("etag", '"1"')
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def overwriting() -> Iterator[str]:
    """Its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Overwriting)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_bucket_that_writes_over_objects_is_refused(
    bucket: Bucket, overwriting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its setting's name, at the start; one that does not answer may come back, and one that does as it should is
    left as it was."""
    monkeypatch.setattr("unitune.object_store.RETRIES_S", 0.1)
    store = ObjectStore(bucket.url)
    store.check_create_only()
    assert store.list("") == []
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with pytest.raises(OSError, match=r"UNITUNE_STORE is 's3://.*conditional writes"):
        ObjectStore(bucket.url).check_create_only()
    monkeypatch.delenv("AWS_CONDITIONAL_PUT")
    monkeypatch.setenv("AWS_ENDPOINT_URL", overwriting)
    with pytest.raises(OSError, match=r"UNITUNE_STORE is 's3://.*conditional writes"):
        ObjectStore(bucket.url).check_create_only()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    ObjectStore(bucket.url).check_create_only()
