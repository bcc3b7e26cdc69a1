"""The page docs/http.md: its lines run as they are there, by bash, curl and jq, over keys, Envoy and a bucket."""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from openapi_spec_validator import validate
from PIL import Image

from gateway.retention import OWNER
from protos.openapi import FILE, openapi
from tests.bucket import Bucket, make_bucket
from tests.edge import running_envoy
from tests.edge.conftest import Door
from tests.edge.running_envoy import ROOT, Edge
from tests.flow.test_secured import command, program
from tests.picture_files import file_of
from unitune_client.local.home import Home

PAGE = ROOT / "docs" / "http.md"
WHERE = "https://localhost:8443"


@dataclass(frozen=True)
class Fleet:
    """Real services on a bucket behind Envoy; `folder` has `my.key`."""

    edge: Edge
    bucket: Bucket
    folder: Path
    gateway: str


@pytest.fixture(scope="module")
def fleet(
    services_model: Path, built_home: Home, s3_address: str, door: Door, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Tuner, sampler and gateway as programs, with keys."""
    folder, bucket = tmp_path_factory.mktemp("fleet"), make_bucket(s3_address)
    common = {**bucket.environment, "UNITUNE_STORE": bucket.url, "UNITUNE_THREADS": "1"}
    (engine,) = built_home.engines.iterdir()
    with ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as free:
            internal = f"127.0.0.1:{free.getsockname()[1]}"
        sampler = stack.enter_context(
            program(
                "sampler_svc",
                folder / "sampler.log",
                UNITUNE_ENGINE=str(engine),
                UNITUNE_SAMPLER_ADDRESS="127.0.0.1:0",
                **common,
            )
        )
        gateway = stack.enter_context(
            program(
                "gateway",
                folder / "gateway.log",
                UNITUNE_GATEWAY_ADDRESS="127.0.0.1:0",
                UNITUNE_INTERNAL_ADDRESS=internal,
                UNITUNE_SAMPLER=sampler,
                UNITUNE_STATE=str(folder / "state.sqlite"),
                UNITUNE_ADMIN_KEY_FILE=str(folder / "admin.key"),
                **{name: value for name, value in common.items() if name != "UNITUNE_THREADS"},
            )
        )
        stack.enter_context(
            program(
                "tuner_svc",
                folder / "tuner.log",
                UNITUNE_TUNER_ADDRESS="127.0.0.1:0",
                UNITUNE_GATEWAY=internal,
                UNITUNE_BASE_MODEL=str(services_model),
                **common,
            )
        )
        made = command(folder, "keys", "create", "default", "--key-file", "admin.key", "--address", gateway)
        assert made.returncode == 0, made.stderr
        (folder / "my.key").write_text(made.stdout)
        edge = stack.enter_context(running_envoy.running(folder / "edge", door.files, door.authority, [gateway]))
        yield Fleet(edge, bucket, folder, gateway)


def lines() -> str:
    """The page's commands."""
    section = PAGE.read_text().partition("## JSON with curl")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^    (.+)$", section, re.MULTILINE))


def test_the_lines_of_the_page_run(fleet: Fleet) -> None:
    """Upload, also by a URL, tune, watch, edit, get, cancel, list and delete: each as the page says it (F35)."""
    missing = [name for name in ("bash", "curl", "jq", "base64") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"the page's lines need {', '.join(missing)}")
    (fleet.folder / "photo.png").write_bytes(file_of(Image.new("RGB", (64, 48), "tan")))
    script = lines()
    assert script.count(WHERE) == 1 and script.count("curl") >= 9
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(WHERE, fleet.edge.url)],
        cwd=fleet.folder,
        env={**os.environ, "CURL_CA_BUNDLE": str(fleet.edge.authority)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert Image.open(fleet.folder / "edited.png").size == (64, 48)
    assert (fleet.folder / "linked.png").read_bytes() == (fleet.folder / "edited.png").read_bytes()
    assert '"ready":' in done.stdout and '"done":' in done.stdout
    *_, edit, longer, second, first, deleted = done.stdout.split("\n")
    assert ("STATE_DONE", "STATE_CANCELLED", "{}") == (edit, longer, deleted)
    assert second != first and {second.rpartition("/")[0], first.rpartition("/")[0]} == {"tenants/default/tunings"}
    # The bucket was the only store: it has the state's mark, and nothing of what was deleted.
    paths = fleet.bucket.paths()
    assert f"unitune/{OWNER}" in paths and not [path for path in paths if first.rpartition("/")[2] in path]
    assert {path.partition("/")[0] for path in paths} == {"unitune"}


def test_the_openapi_file_is_fresh_and_valid() -> None:
    """By a validator of others, and each path of the page is in it."""
    assert openapi() == FILE.read_text()
    document = json.loads(FILE.read_text())
    validate(document)
    assert {"get", "patch", "delete"} == set(document["paths"]["/v1/tenants/{tenant}/tunings/{tuning}"])
    upload = document["paths"]["/v1/tenants/{tenant}/images"]["post"]
    fields = ["header.size_bytes", "header.sha256", "header.upload"]
    assert ["tenant", *fields] == [one["name"] for one in upload["parameters"]]
    edit = document["components"]["schemas"]["EditRequest"]
    assert "parent" not in edit["properties"] and edit["required"] == ["prompt"]
    assert {"type": "string", "format": "int64"} == edit["properties"]["seeds"]["items"]
