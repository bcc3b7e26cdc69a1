"""`unitune images` and `unitune usage` against a scripted server."""

import json

import pytest
from google.protobuf.empty_pb2 import Empty

from tests.unitune_client.scripted_server import ScriptedServer
from tests.unitune_client.test_cli_keys import unitune
from unitune.errors import FailedPrecondition, InvalidField
from unitune.v1.image_pb2 import Image, ListImagesResponse
from unitune.v1.usage_pb2 import ListUsageResponse, Usage
from unitune_client import Client

pytestmark = pytest.mark.usefixtures("own_surroundings")

NAME = f"tenants/default/images/{'a' * 64}"


def test_images_are_listed_and_deleted(server: ScriptedServer) -> None:
    """Every page, with what is wrong with a picture; one that is in use is told in a line."""
    whole = Image(name=NAME, width=640, height=480, size_bytes=1_230_000)
    damaged = Image(name=NAME, warnings=["it is damaged"])
    pages = [ListImagesResponse(images=[whole], next_page_token=NAME), ListImagesResponse(images=[damaged])]
    server.script("ListImages", *pages)
    in_use = FailedPrecondition("it is used", reason="IMAGE_IN_USE")
    server.script("DeleteImage", Empty(), in_use)
    server.script("GetImage", whole)
    address = ("--address", server.address)

    listed = unitune("images", "list", *address)
    deleted, used = (unitune("images", "delete", NAME, *address) for _ in range(2))

    first, second = listed.stdout.splitlines()
    assert first == f"{NAME}  640x480  1.23 MB  -" and second.endswith("it is damaged")
    assert [request.page_token for request in server.requests["ListImages"]] == ["", NAME]
    assert deleted.stdout == f"{NAME}  deleted\n" and (used.exit_code, used.stderr) == (1, "error: it is used\n")
    with Client(server.address) as client:
        assert client.get_image(NAME).width == 640


def test_usage_is_shown_as_a_table(server: ScriptedServer) -> None:
    """A line for each tenant, of the days that were asked for; as JSON with all fields."""
    used = [
        Usage(
            parent=f"tenants/{name}",
            start_day="2026-01-01",
            end_day="2026-01-31",
            edits=7,
            sampler_s=61.4,
            image_bytes=2_000_000,
        )
        for name in ("acme", "zoo")
    ]
    pages = [ListUsageResponse(usage=used[:1], next_page_token="tenants/acme"), ListUsageResponse(usage=used[1:])]
    server.script("ListUsage", *pages, *pages)
    days = ("--since", "2026-01-01", "--until", "2026-01-31", "--address", server.address)

    shown = unitune("usage", *days)
    told = unitune("usage", "--tenant", "acme", "--json", *days)

    titles, acme, zoo = [line.split() for line in shown.stdout.splitlines()]
    assert titles[:2] == ["tenant", "images"]
    assert acme == ["acme", "0", "0", "7", "0", "61", "2.0"] and zoo[0] == "zoo"
    assert "from 2026-01-01 to 2026-01-31" in shown.stderr
    first, *_, last = server.requests["ListUsage"]
    assert (first.parent, first.start_day, first.end_day) == ("", "2026-01-01", "2026-01-31")
    assert (last.parent, last.page_token) == ("tenants/acme", "tenants/acme")
    assert json.loads(told.stdout.splitlines()[0])["usage"]["sampler_s"] == 61.4
    assert unitune("usage", "--since", "January", "--address", server.address).exit_code == 2
    server.script("ListUsage", InvalidField("start_day", "2026-02-01", "it must not be after end_day"))
    refused = unitune("usage", "--since", "2026-02-01", "--address", server.address)
    assert refused.exit_code == 2 and "--since is '2026-02-01': it must not be after --until" in refused.stderr
