"""The gateway behind the Envoy that k8s/edge configures: what each kind of client gets, and what none gets."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.api import annotations_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from gateway import edit as gateway_edit
from gateway.access import PUBLIC
from protos.edge_contract import FILE, contract
from tests.certificates import Authority
from tests.edge.conftest import Door, Open
from tests.edge.running_envoy import FOLDER, Edge
from tests.gateway.callers import ask_for_keys, bearer, make
from tests.gateway.conftest import World, eventually, picture, refused
from tests.gateway.test_main import start
from unitune.errors import DOMAIN
from unitune.serving import HEALTH_CALLS
from unitune.v1 import edit_pb2_grpc, image_pb2_grpc, server_pb2_grpc, tuner_pb2_grpc, tuning_pb2_grpc
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.image_pb2 import UploadImageRequest
from unitune.v1.server_pb2 import GetServerInfoRequest, ServerInfo
from unitune.v1.tuner_pb2 import AnnounceRequest
from unitune.v1.tuning_pb2 import (
    CreateTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    TuningEvent,
    WatchTuningRequest,
)

pytestmark = pytest.mark.slow  # a real Envoy

INFO = "/unitune.v1.ServerService/GetServerInfo"
MINE = "/v1/tenants/default"


def channel(edge: Edge) -> grpc.aio.Channel:
    """A channel to the edge, as any client has it."""
    credentials = grpc.ssl_channel_credentials(edge.authority.read_bytes())
    return grpc.aio.secure_channel(edge.address.removeprefix("grpcs://"), credentials)


@pytest.fixture
async def edge(world: World, envoy: Open) -> Edge:
    """An edge in front of the world's gateway."""
    assert world.server is not None
    return await envoy(world.server.address)


async def json_of(edge: Edge, method: str, path: str, body: Any = None, **headers: str) -> Any:
    return await asyncio.to_thread(edge.json, method, path, body, headers)


async def lines_of(edge: Edge, method: str, path: str, body: Any = None) -> AsyncIterator[dict[str, Any]]:
    """The lines of an answer that streams, without blocking the gateway, which runs in this process."""
    lines = edge.lines(method, path, body)
    while (line := await asyncio.to_thread(next, lines, None)) is not None:
        yield line


async def test_a_picture_is_uploaded_tuned_and_edited_as_json(edge: Edge, world: World) -> None:
    """The calls of pictures, tunings and edits, each by its path, with the fields of the contract (F35)."""
    image = await json_of(edge, "POST", f"{MINE}/images", picture())
    assert image["name"].startswith("tenants/default/images/") and (image["width"], image["height"]) == (40, 30)
    tuning = await json_of(edge, "POST", f"{MINE}/tunings", {"image": image["name"], "labels": {"of": "a test"}})
    path = f"/v1/{tuning['name']}"
    watched = [line async for line in lines_of(edge, "GET", f"{path}:watch")]
    assert watched[-1]["ready"]["name"] == tuning["name"] and [1] == [
        line["started"]["attempt"] for line in watched if "started" in line
    ]
    assert (await json_of(edge, "GET", path))["state"] == "STATE_READY"
    listed = await json_of(edge, "GET", f"{MINE}/tunings?page_size=1&state=STATE_READY")
    assert [tuning["name"]] == [one["name"] for one in listed["tunings"]]
    changed = await json_of(edge, "PATCH", path, {"labels": {"of": "another"}})
    assert changed["labels"] == {"of": "another"}
    assert (await json_of(edge, "POST", f"{path}:cancel"))["state"] == "STATE_READY"

    request = {"tuning": tuning["name"], "prompt": "a dog", "seeds": ["7"]}
    events = [line async for line in lines_of(edge, "POST", f"{MINE}/edits", request)]
    assert "accepted" in events[0] and "done" in events[-1]
    (png,) = (event["image"]["png"] for event in events if "image" in event)
    edit = f"/v1/{events[0]['accepted']['edit']}"
    kept = await json_of(edge, "GET", edit)
    assert kept["state"] == "STATE_DONE" and [png] == [one["png"] for one in kept["images"]]
    assert base64.b64decode(png).startswith(b"\x89PNG")
    assert (await json_of(edge, "POST", f"{edit}:cancel", {}))["state"] == "STATE_DONE"
    compared = {"image": image["name"], "prompt": "a dog", "methods": [{"method": "METHOD_SDEDIT"}]}
    events = [line async for line in lines_of(edge, "POST", f"{MINE}/edits:compare", compared)]
    assert ["METHOD_SDEDIT"] == events[0]["accepted"]["methods"] and "done" in events[-1]

    assert {} == await json_of(edge, "DELETE", path)
    assert {} == await json_of(edge, "DELETE", f"{path}?allow_missing=true")
    assert {} == await json_of(edge, "DELETE", f"/v1/{image['name']}?allow_missing=true")
    info = await json_of(edge, "GET", "/v1/serverInfo")
    assert info["base_model"]["name"] == "tiny"


@pytest.mark.parametrize("protocol", ["JSON", "gRPC"])
async def test_each_event_arrives_before_the_next_one_is_made(
    edge: Edge, world: World, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Envoy holds nothing back: the sampler makes a step only when the one before it has come (F35)."""
    monkeypatch.setattr(gateway_edit, "STEP_INTERVAL_S", 0.0)
    world.sampler.turns = turns = asyncio.Semaphore(0)
    request = EditRequest(image_data=picture(), prompt="a dog", config={"method": "METHOD_SDEDIT"})
    steps: list[int] = []
    if protocol == "JSON":
        body = json_format.MessageToDict(request)
        async for line in lines_of(edge, "POST", f"{MINE}/edits", body):
            if "step" in line:
                steps.append(line["step"]["index"])
            if "loading" in line or "step" in line:
                assert world.sampler.steps_done == len(steps)
                turns.release()
    else:
        async with channel(edge) as there:
            async for event in edit_pb2_grpc.EditServiceStub(there).Edit(request, timeout=30):
                if event.HasField("step"):
                    steps.append(event.step.index)
                if event.HasField("loading") or event.HasField("step"):
                    assert world.sampler.steps_done == len(steps)
                    turns.release()
    assert steps == list(range(15))


REFUSALS: dict[str, tuple[str, str, Any, int, str]] = {
    "unknown tuning": ("GET", f"{MINE}/tunings/t-unknown", None, 404, "TUNING_NOT_FOUND"),
    "unknown edit": ("POST", f"{MINE}/edits/e-unknown:cancel", {}, 404, "EDIT_NOT_FOUND"),
    "page size": ("GET", f"{MINE}/tunings?page_size=-1", None, 400, "INVALID_FIELD"),
    "no prompt": ("POST", f"{MINE}/edits", {"image": "x"}, 400, "INVALID_FIELD"),
    "no picture": ("POST", f"{MINE}/images", b"no picture", 400, "IMAGE_UNDECODABLE"),
    "empty upload": ("POST", f"{MINE}/images", b"", 400, "IMAGE_UNDECODABLE"),
    "other digest": ("POST", f"{MINE}/images?header.sha256={'0' * 64}", picture(), 400, "DIGEST_MISMATCH"),
    "no key service": ("GET", "/v1/keys", None, 400, "CREDENTIALS_OFF"),
    # Envoy's own.
    "no JSON": ("POST", f"{MINE}/edits", b'{"prompt": ', 400, "REQUEST_UNREADABLE"),
    "a wrong type": ("POST", f"{MINE}/edits", {"prompt": {}}, 400, "REQUEST_UNREADABLE"),
    "an unknown choice": ("POST", f"{MINE}/edits", {"config": {"method": "x"}}, 400, "REQUEST_UNREADABLE"),
    "an unknown parameter": ("GET", f"{MINE}/tunings?page_sise=1", None, 400, "REQUEST_UNREADABLE"),
    "an unknown path": ("GET", "/v1/nothing", None, 404, "PATH_UNKNOWN"),
}


async def test_every_refusal_is_a_status_with_its_error_info(edge: Edge, world: World) -> None:
    """The gateway's own come through whole, and Envoy's have the same form (F35)."""
    for what, (method, path, body, code, reason) in REFUSALS.items():
        status, headers, text = await asyncio.to_thread(edge.ask, method, path, body)
        assert (code, "application/json") == (status, headers["content-type"]), (what, status, text)
        told = json.loads(text)
        infos = [one for one in told["details"] if one["@type"].endswith("/google.rpc.ErrorInfo")]
        assert [(reason, DOMAIN)] == [(one["reason"], one["domain"]) for one in infos], (what, told)
        assert told["code"] and told["message"], (what, told)
    assert world.sampler.requests == []


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each frame of gRPC-Web; kind 128 is of the trailers."""
    while data:
        kind, size = struct.unpack(">BI", data[:5])
        yield kind, data[5 : 5 + size]
        data = data[5 + size :]


async def test_a_browser_calls_by_grpc_web(edge: Edge) -> None:
    """A call of HTTP/1.1 answers with messages and trailers, a refusal with its details; a page of another origin than
    the one that is set is told nothing (F35)."""
    kind = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": "https://app.example.com"}
    empty = struct.pack(">BI", 0, 0)
    status, headers, body = await asyncio.to_thread(edge.ask, "POST", INFO, empty, kind)
    message, trailers = dict(frames(body))[0], dict(frames(body))[128]
    assert status == 200 and b"grpc-status:0" in trailers.replace(b" ", b"")
    assert ServerInfo.FromString(message).base_model.name == "tiny"
    assert headers["access-control-allow-origin"] == "https://app.example.com"

    name = GetTuningRequest(name="tenants/default/tunings/t-unknown").SerializeToString()
    asked = struct.pack(">BI", 0, len(name)) + name
    path = "/unitune.v1.TuningService/GetTuning"
    _, headers, body = await asyncio.to_thread(edge.ask, "POST", path, asked, kind)
    details = headers["grpc-status-details-bin"]
    told = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    assert headers["grpc-status"] == "5" and b"TUNING_NOT_FOUND" in told.SerializeToString()
    assert "grpc-status-details-bin" in headers["access-control-expose-headers"]

    preflight = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
    _, headers, _ = await asyncio.to_thread(edge.ask, "OPTIONS", INFO, None, preflight)
    assert {"authorization", "x-grpc-web"} <= set(headers["access-control-allow-headers"].split(", "))
    for other in ("https://app.example.com.evil.example", "null"):
        _, headers, _ = await asyncio.to_thread(edge.ask, "OPTIONS", INFO, None, {**preflight, "origin": other})
        assert headers["access-control-allow-origin"] is None


async def test_what_is_internal_is_not_there(edge: Edge, world: World) -> None:
    """Services for tuners and samplers, reflection and Envoy's own port do not pass, in either form (F37)."""
    async with channel(edge) as there:
        await known(there)
        pool: Any = tuner_pb2_grpc.TunerPoolServiceStub(there)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pool.Announce(AnnounceRequest(), timeout=10)
        assert caught.value.code() is StatusCode.UNIMPLEMENTED
        reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await there.stream_stream(reflection)(timeout=10).read()
        assert caught.value.code() is StatusCode.UNIMPLEMENTED
    paths = ["/unitune.v1.TunerPoolService/TakeTuning", "/unitune.v1.SamplerService/Sample", "/stats", "/metrics", "/"]
    for path in [*paths, "/unitune.v1.TuningService/../SamplerService/Sample", "/v1/../metrics"]:
        status, _, text = await asyncio.to_thread(edge.ask, "POST", path, b"")
        assert (404, "PATH_UNKNOWN") == (status, json.loads(text)["details"][0]["reason"]), path
    assert 400 == (await asyncio.to_thread(edge.ask, "POST", "/unitune.v1.TuningService%2fGetTuning", b""))[0]


async def known(there: grpc.aio.Channel) -> ServerInfo:
    return await server_pb2_grpc.ServerServiceStub(there).GetServerInfo(GetServerInfoRequest(), timeout=10)


async def test_a_tenant_is_what_its_key_says_and_nothing_else(world: World, envoy: Open) -> None:
    """Keys pass the edge in every form, without one nothing passes but health, and a header that claims another tenant
    has no effect (F37)."""
    admin = await ask_for_keys(world)
    acme, other = await make(admin, "acme"), await make(admin, "other")
    tuning = await other.tuned()
    assert world.server is not None
    edge = await envoy(world.server.address)
    key = dict(bearer(acme.credential))
    forged = {**key, "x-unitune-tenant": "other", "x-tenant": "other", "x-forwarded-for": "127.0.0.1"}
    image = await json_of(edge, "POST", "/v1/tenants/acme/images", picture("red"), **forged)
    assert image["name"].startswith("tenants/acme/images/")
    for path, code, reason in (
        (f"/v1/{tuning.name}", 404, "TUNING_NOT_FOUND"),
        ("/v1/tenants/other/tunings", 403, "TENANT_MISMATCH"),
        ("/v1/keys", 403, "SCOPE_MISSING"),
    ):
        status, _, text = await asyncio.to_thread(edge.ask, "GET", path, None, forged)
        assert (code, reason) == (status, json.loads(text)["details"][0]["reason"]), text
    status, _, text = await asyncio.to_thread(edge.ask, "GET", "/v1/serverInfo")
    assert (401, "CREDENTIAL_MISSING") == (status, json.loads(text)["details"][0]["reason"])
    underscored = {**key, "x_unitune_tenant": "other"}
    assert 400 == (await asyncio.to_thread(edge.ask, "GET", "/v1/serverInfo", None, underscored))[0]
    async with channel(edge) as there:
        tunings = tuning_pb2_grpc.TuningServiceStub(there)
        metadata = [*bearer(acme.credential), ("x-unitune-tenant", "other")]
        assert [] == list((await tunings.ListTunings(ListTuningsRequest(), metadata=metadata, timeout=10)).tunings)
        await refused(tunings.ListTunings(ListTuningsRequest()), StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
        health = health_pb2_grpc.HealthStub(there)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1
    made = await json_of(
        edge, "POST", "/v1/tenants/acme/keys", {"scopes": ["SCOPE_READ"]}, **dict(bearer(admin.credential))
    )
    assert made["secret"].startswith("ut_k")
    for path in ("/v1/keys", "/v1/tenants/acme/keys"):
        listed = await json_of(edge, "GET", path, **dict(bearer(admin.credential)))
        assert made["api_key"]["name"] in [one["name"] for one in listed["api_keys"]]


async def test_a_key_over_its_rate_is_refused_alone(world: World, envoy: Open) -> None:
    """The answer has its ErrorInfo and says when to come again, as JSON and as gRPC; another key goes on (F42)."""
    admin = await ask_for_keys(world)
    acme, other = await make(admin, "acme"), await make(admin, "other")
    assert world.server is not None
    rate = "token_bucket: {max_tokens: 2000, tokens_per_fill: 200, fill_interval: 1s}"
    slow = "token_bucket: {max_tokens: 3, tokens_per_fill: 1, fill_interval: 3600s}"
    edge = await envoy(world.server.address, changes={rate: slow})
    mine, theirs = dict(bearer(acme.credential)), dict(bearer(other.credential))
    for _ in range(3):
        await json_of(edge, "GET", "/v1/serverInfo", **mine)
    status, headers, text = await asyncio.to_thread(edge.ask, "GET", "/v1/serverInfo", None, mine)
    assert (429, "application/json") == (status, headers["content-type"])
    info, retry = json.loads(text)["details"]
    assert (info["reason"], info["domain"], retry["retry_delay"]) == ("KEY_REQUEST_RATE", DOMAIN, "1s")
    async with channel(edge) as there:
        stub = server_pb2_grpc.ServerServiceStub(there)
        over = stub.GetServerInfo(GetServerInfoRequest(), metadata=bearer(acme.credential), timeout=10)
        error = await refused(over, StatusCode.RESOURCE_EXHAUSTED, "KEY_REQUEST_RATE")
        assert error.retry_after_s == 1
        for _ in range(3):
            await stub.GetServerInfo(GetServerInfoRequest(), metadata=bearer(other.credential), timeout=10)
    assert 429 == (await asyncio.to_thread(edge.ask, "GET", "/v1/serverInfo", None, theirs))[0]


async def test_a_watch_outlives_its_connection(world: World, envoy: Open) -> None:
    """Of 20 times the longest age of a connection and 4 times the longest silence, with heartbeats alone, while new
    calls go on (F36). The silence is cut without them."""
    await world.close()
    world.config = replace(world.config, heartbeat_s=0.5)
    await world.open()
    assert world.server is not None
    changes = {
        "max_connection_duration: 600s": "max_connection_duration: 0.4s",
        "stream_idle_timeout: 60s": "stream_idle_timeout: 2s",
    }
    edge = await envoy(world.server.address, changes=changes)
    world.tuner.go_on.clear()
    async with channel(edge) as there:
        tunings = tuning_pb2_grpc.TuningServiceStub(there)
        tuning = await world.tune()
        await world.running(tuning.name)
        watched = tunings.WatchTuning(WatchTuningRequest(name=tuning.name))
        line = lines_of(edge, "GET", f"/v1/{tuning.name}:watch")
        for _ in range(8):
            await asyncio.sleep(1.0)
            await tunings.GetTuning(GetTuningRequest(name=tuning.name), timeout=10)
        world.tuner.go_on.set()
        events = [event async for event in watched]
        lines = [event async for event in line]
    assert any(event.HasField("heartbeat") for event in events) and events[-1].HasField("ready")
    kept = [event.sequence for event in events if event.sequence]
    assert kept == list(range(1, len(kept) + 1)) and "ready" in lines[-1]

    await world.close()
    world.config = replace(world.config, heartbeat_s=15.0)
    await world.open()
    assert world.server is not None
    edge = await envoy(world.server.address, changes=changes)
    world.tuner.go_on.clear()
    tuning = await world.tune(seed=1)
    await world.running(tuning.name)
    async with channel(edge) as there:
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in tuning_pb2_grpc.TuningServiceStub(there).WatchTuning(WatchTuningRequest(name=tuning.name)):
                pass
    world.tuner.go_on.set()


async def test_a_watch_goes_on_when_its_gateway_is_killed(world: World, envoy: Open) -> None:
    """It breaks without a word of ours. Resumed at the gateway that takes the lost one's place, it has no gap and no
    repetition (F36)."""
    await world.close()
    world.tuner.go_on.clear()
    process, address = await start(world)
    edge = await envoy(address)
    seen: list[TuningEvent] = []
    try:
        async with channel(edge) as there:
            upload = UploadImageRequest(header=UploadImageRequest.Header(), file=HttpBody(data=picture()))
            image = await image_pb2_grpc.ImageServiceStub(there).UploadImage(iter([upload]), timeout=30)
            tunings = tuning_pb2_grpc.TuningServiceStub(there)
            tuning = await tunings.CreateTuning(CreateTuningRequest(image=image.name), timeout=30)
            watched = tunings.WatchTuning(WatchTuningRequest(name=tuning.name))
            with pytest.raises(grpc.aio.AioRpcError) as lost:
                async for event in watched:
                    seen.append(event)
                    if event.HasField("progress") and process.returncode is None:
                        process.kill()
                        await process.wait()
            assert lost.value.code() in (StatusCode.INTERNAL, StatusCode.UNAVAILABLE)
            assert rpc_status.from_call(lost.value) is None
            world.tuner.go_on.set()
            process, _ = await start(world, UNITUNE_GATEWAY_ADDRESS=address)
            last = max(event.sequence for event in seen)
            again = WatchTuningRequest(name=tuning.name, after_sequence=last)

            async def resumed() -> list[TuningEvent]:
                try:
                    return [event async for event in tunings.WatchTuning(again, timeout=30)]
                except grpc.aio.AioRpcError:  # Envoy does not know yet that the gateway is back
                    return []

            seen += await eventually(resumed, within_s=60)
    finally:
        process.terminate()
        await process.communicate()
    assert seen[-1].HasField("ready")
    kept = [event.sequence for event in seen if event.sequence]
    assert kept == list(range(1, len(kept) + 1))


async def test_without_a_gateway_the_edge_says_so_and_when_to_try_again(edge: Edge, world: World) -> None:
    """Health turns 503 within seconds, and calls are UNAVAILABLE with their ErrorInfo, in both forms."""
    assert world.server is not None
    await world.close()

    async def is_down() -> bool:
        return not await asyncio.to_thread(edge.is_up)

    await eventually(is_down, within_s=30)
    status, headers, text = await asyncio.to_thread(edge.ask, "GET", f"{MINE}/tunings")
    info, retry = json.loads(text)["details"]
    assert (503, "GATEWAY_DOWN", "2s") == (status, info["reason"], retry["retry_delay"]), headers
    async with channel(edge) as there:
        call = server_pb2_grpc.ServerServiceStub(there).GetServerInfo(GetServerInfoRequest(), timeout=10)
        error = await refused(call, StatusCode.UNAVAILABLE, "GATEWAY_DOWN")
        assert error.retry_after_s == 2


async def test_a_renewed_certificate_needs_no_restart(world: World, envoy: Open, tmp_path: Path) -> None:
    """New connections see the new one as soon as its files are in place."""
    folder = tmp_path / "own"
    folder.mkdir()
    old = Authority.make(folder, "old")
    assert world.server is not None
    edge = await envoy(world.server.address, door=Door(old.path, old.issue(folder, "door", "localhost")))
    new = Authority.make(folder, "new")
    assert not await asyncio.to_thread(replace(edge, authority=new.path).is_up)
    new.issue(folder, "door", "localhost")

    async def is_renewed() -> bool:
        return await asyncio.to_thread(replace(edge, authority=new.path).is_up)

    await eventually(is_renewed, within_s=20)


# The file itself


def manager() -> dict[str, Any]:
    """The HTTP part of the listener."""
    config = yaml.safe_load((FOLDER / "envoy.yaml").read_text())
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def test_envoy_says_to_grpc_what_it_says_as_json() -> None:
    """The details in base64 are the JSON beside them."""
    mappers = manager()["local_reply_config"]["mappers"]
    encoded = [mapper for mapper in mappers if "headers_to_add" in mapper]
    assert len(encoded) == 3
    for mapper in encoded:
        headers = {one["header"]["key"]: one["header"]["value"] for one in mapper["headers_to_add"]}
        status = status_pb2.Status.FromString(base64.b64decode(headers["grpc-status-details-bin"], validate=True))
        told = mappers[mappers.index(mapper) + 1]["body_format_override"]["json_format"]
        assert told == json_format.MessageToDict(status, preserving_proto_field_name=True)
        assert mapper["body_format_override"]["text_format_source"]["inline_string"] == status.message
        retry = next(
            error_details_pb2.RetryInfo.FromString(one.value) for one in status.details if "Retry" in one.type_url
        )
        assert headers["grpc-retry-pushback-ms"] == str(1000 * retry.retry_delay.seconds)


def test_every_public_call_has_a_path_and_every_public_service_passes() -> None:
    """And each path belongs to one call; what Envoy reads of the contract is fresh."""
    assert contract() == FILE.read_bytes()
    (transcoder,) = (one["typed_config"] for one in manager()["http_filters"] if "transcoder" in one["name"])
    assert transcoder["services"] == sorted(service.full_name for service in PUBLIC)
    rules: list[tuple[str, str]] = []
    for service in PUBLIC:
        for method in service.methods:
            rule = method.GetOptions().Extensions[annotations_pb2.http]
            verb = rule.WhichOneof("pattern")
            assert verb, method.full_name
            rules.append((verb, getattr(rule, verb)))
    assert len(set(rules)) == len(rules)
    assert HEALTH_CALLS in str(manager()["route_config"])
