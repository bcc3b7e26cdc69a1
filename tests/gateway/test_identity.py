"""Whose a call is: the credential alone says so, and nobody reaches what is another tenant's."""

import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway import open_calls
from gateway.access import PUBLIC, SCOPES_OF
from gateway.api_keys import new_key
from gateway.config import GatewayConfig
from gateway.own_names import NAMES
from tests.configs import entry, sampling_config, tuning_config
from tests.gateway.callers import ADMIN, EDIT, READ, TUNE, Caller, ask_for_keys, bearer, make, raw_call
from tests.gateway.conftest import World, picture, refused, sha256
from tests.gateway.test_main import start
from unitune import serving
from unitune.errors import from_rpc_error
from unitune.v1 import tuning_pb2_grpc
from unitune.v1.edit_pb2 import CancelEditRequest, CompareRequest, Edit, EditRequest, GetEditRequest
from unitune.v1.image_pb2 import DeleteImageRequest, GetImageRequest, ListImagesRequest
from unitune.v1.key_pb2 import CreateKeyRequest, RevokeKeyRequest, RotateKeyRequest
from unitune.v1.server_pb2 import GetServerInfoRequest
from unitune.v1.tuning_pb2 import (
    CancelTuningRequest,
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    Tuning,
    UpdateTuningRequest,
    WatchTuningRequest,
)

SDEDIT = sampling_config(method="sdedit")


@pytest.fixture
async def admin(world: World) -> AsyncIterator[Caller]:
    """The admin of a gateway that asks for keys."""
    yield await ask_for_keys(world)


async def reason_of(call: Any) -> str:
    """Why a call is refused; empty if it is not."""
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    return ""


def test_every_public_call_declares_its_scopes_and_its_names() -> None:
    """No call is without a scope, and each field that names something is known to be a name."""
    named = {"parent", "name", "tuning", "image", "images", "mask_image", "upload"}
    assert len(SCOPES_OF) >= 18
    assert [] == [method for method, scopes in SCOPES_OF.items() if not scopes]
    for service in PUBLIC:
        for method in service.methods:
            kinds = [kind for kind in NAMES if kind.DESCRIPTOR is method.input_type]
            assert len(kinds) == 1, f"gateway/own_names.py has no entry for {method.input_type.full_name}"
            if service.name == "KeyService":  # an admin names keys of all tenants
                assert frozenset([ADMIN]) == SCOPES_OF[f"/{service.full_name}/{method.name}"]
                continue
            fields = {
                f"{outer.name}.{field.name}" if outer is not None else field.name
                for outer in (None, *method.input_type.fields)
                if outer is None or (outer.message_type and outer.name in ("header", "tuning"))
                for field in (outer.message_type if outer is not None else method.input_type).fields
                if field.name in named and field.type == field.TYPE_STRING
            }
            output_only = {"tuning.image", "tuning.images"}  # of UpdateTuning, which ignores them
            assert fields - output_only == NAMES[kinds[0]].keys(), method.full_name


async def test_a_call_needs_one_of_its_scopes(admin: Caller) -> None:
    """With a key of each single scope, exactly the calls that declare it go beyond the door."""
    callers = {scope: await make(admin, "acme", scope) for scope in (EDIT, TUNE, READ)} | {ADMIN: admin}
    for method, scopes in SCOPES_OF.items():
        for scope, caller in callers.items():
            call = raw_call(admin.world, method, caller.credential)
            if scope in scopes:  # the others are refused without a request
                await call.write(b"")
                await call.done_writing()
            assert (await reason_of(call) == "SCOPE_MISSING") == (scope not in scopes), (method, scope)


async def test_a_call_without_a_valid_credential_is_refused_before_its_request(admin: Caller) -> None:
    """No request has been sent, and each call is refused, with what to do; the credential is not repeated."""
    caller = await make(admin, "acme", READ)
    begin, middle, end = caller.credential.split("_", 2)
    stranger = new_key()
    wrong = f"{begin}_{middle}_{stranger[-43:]}"
    for method in SCOPES_OF:
        assert await reason_of(raw_call(admin.world, method, None)) == "CREDENTIAL_MISSING", method
        assert await reason_of(raw_call(admin.world, method, wrong)) == "CREDENTIAL_INVALID", method
    for credential in (stranger, wrong, caller.credential[:-1], f"ut_{end}", "", "x" * 4000):
        reason = "CREDENTIAL_INVALID" if credential else "CREDENTIAL_MISSING"
        call = Caller(admin.world, credential)("tunings.ListTunings", ListTuningsRequest())
        error = await refused(call, StatusCode.UNAUTHENTICATED, reason)
        assert not credential or credential[-30:] not in f"{error.message}{error.metadata}"
    for metadata in (
        [("authorization", caller.credential)],
        [("authorization", f"Basic {caller.credential}")],
        [*bearer(caller.credential), *bearer(admin.credential)],
        [("x-unitune-tenant", "acme")],
    ):
        call = admin.world.tunings.ListTunings(ListTuningsRequest(), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is StatusCode.UNAUTHENTICATED


async def test_probes_need_no_credential_and_nothing_else_does_without(admin: Caller) -> None:
    """Health answers; reflection is off unless it is asked for, and then asks for a credential, too."""
    world = admin.world
    assert world.channel is not None and world.gateway is not None
    health = health_pb2_grpc.HealthStub(world.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service="readiness"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    assert await reason_of(raw_call(world, reflection, admin.credential)) == "UNIMPLEMENTED"

    server = await serving.start("127.0.0.1:0", world.gateway.register, reflection_on=True, door=world.gateway.access)
    async with serving.channel(server.address) as channel:
        assert await reason_of(channel.stream_stream(reflection)(timeout=10)) == "CREDENTIAL_MISSING"
    await server.stop()


async def test_anothers_names_are_not_found(admin: Caller) -> None:
    """In every call a name of another tenant is answered as one that does not exist, and nothing of it changes (R11,
    F38)."""
    alice, bob = await make(admin, "alice"), await make(admin, "bob")
    tuning = await alice.tuned()
    mask = await alice.upload(picture("white"))
    events = [e async for e in alice("edits.Edit", EditRequest(tuning=tuning.name, prompt="a dog"))]
    edit = events[0].accepted.edit
    theirs = {"tunings": tuning.name, "images": tuning.image, "edits": edit}
    nobodys = {
        "tunings": f"tenants/alice/tunings/t-{'0' * 32}",
        "images": f"tenants/alice/images/{sha256(b'')}",
        "edits": f"tenants/alice/edits/e-{'0' * 32}",
    }
    own = (await bob.upload(picture("red"))).name
    own_tuning = await bob("tunings.CreateTuning", CreateTuningRequest(image=own))

    def calls(names: dict[str, str]) -> list[tuple[str, Any]]:
        name, image = names["tunings"], names["images"]
        return [
            ("tunings.GetTuning", GetTuningRequest(name=name)),
            ("tunings.WatchTuning", WatchTuningRequest(name=name)),
            ("tunings.CancelTuning", CancelTuningRequest(name=name)),
            ("tunings.UpdateTuning", UpdateTuningRequest(tuning=Tuning(name=name, labels={"a": "b"}))),
            ("tunings.DeleteTuning", DeleteTuningRequest(name=name)),
            ("tunings.DeleteTuning", DeleteTuningRequest(name=name, allow_missing=True)),
            ("tunings.CreateTuning", CreateTuningRequest(image=image)),
            ("tunings.CreateTuning", CreateTuningRequest(image=own, images=[image])),
            ("images.GetImage", GetImageRequest(name=image)),
            ("images.DeleteImage", DeleteImageRequest(name=image)),
            ("images.DeleteImage", DeleteImageRequest(name=image, allow_missing=True)),
            ("edits.Edit", EditRequest(tuning=name, prompt="a dog")),
            ("edits.Edit", EditRequest(image=image, prompt="a dog")),
            ("edits.Edit", EditRequest(image=image, prompt="a dog", config=SDEDIT)),
            ("edits.Edit", EditRequest(image=own, mask_image=image, prompt="a dog")),
            ("edits.Edit", EditRequest(tuning=name, prompt="a dog", validate_only=True)),
            ("edits.Compare", CompareRequest(image=image, prompt="a dog", methods=[entry("sdedit")])),
            ("edits.GetEdit", GetEditRequest(name=names["edits"])),
            ("edits.CancelEdit", CancelEditRequest(name=names["edits"])),
        ]

    tuner_requests = len(admin.world.tuner.requests)
    for (method, request), (_, like) in zip(calls(theirs), calls(nobodys), strict=True):
        answers = []
        for asked, names in ((request, theirs), (like, nobodys)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                call = bob(method, asked)
                await (call.read() if hasattr(call, "read") else call)
            error = from_rpc_error(caught.value)
            assert caught.value.code() is StatusCode.NOT_FOUND, (method, error)
            answers.append((error.reason, error.message.replace(error.metadata["name"], "NAME")))
            assert error.metadata["name"] in names.values()
        assert answers[0] == answers[1], method
    for field in ("image", "mask_image"):  # a mask of alice's that bob does not have
        request = EditRequest(**{"image": own, "prompt": "a dog", "config": SDEDIT, field: mask.name})
        await refused(bob("edits.Edit", request), StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")

    listed = (await bob("tunings.ListTunings", ListTuningsRequest())).tunings
    assert [own_tuning.name] == [one.name for one in listed]
    listed = (await bob("images.ListImages", ListImagesRequest())).images
    assert [own] == [one.name for one in listed]
    assert tuning == await alice("tunings.GetTuning", GetTuningRequest(name=tuning.name))
    assert (await alice("edits.GetEdit", GetEditRequest(name=edit))).images
    assert len(admin.world.tuner.requests) <= tuner_requests + 1  # bob's own


async def test_anothers_parent_is_refused_before_anything_is_checked(admin: Caller) -> None:
    """PERMISSION_DENIED, though other fields are wrong, too; one's own parent and none are the same."""
    alice = await make(admin, "alice")
    bad = "tenants/bob"
    for method, request in (
        ("tunings.CreateTuning", CreateTuningRequest(parent=bad, image="nonsense")),
        ("tunings.ListTunings", ListTuningsRequest(parent=bad, page_size=-1)),
        ("images.ListImages", ListImagesRequest(parent=bad, page_size=-1)),
        ("edits.Edit", EditRequest(parent=bad)),
        ("edits.Compare", CompareRequest(parent=bad)),
    ):
        error = await refused(alice(method, request), StatusCode.PERMISSION_DENIED, "TENANT_MISMATCH")
        assert bad in error.message and "tenants/alice" in error.message
    await refused(alice.upload(b"no picture", parent=bad), StatusCode.PERMISSION_DENIED, "TENANT_MISMATCH")
    await refused(
        alice("tunings.ListTunings", ListTuningsRequest(parent="alice")),
        StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "parent",
    )

    with_parent, without = await alice.upload(picture(), parent="tenants/alice"), await alice.upload(picture())
    assert with_parent.name == without.name and without.name.startswith("tenants/alice/images/")
    accepted = await alice("edits.Edit", EditRequest(image_data=picture(), prompt="a dog")).read()
    assert accepted.accepted.edit.startswith("tenants/alice/edits/")
    one = CreateTuningRequest(image=without.name, config=tuning_config(updates=7))
    made = await alice("tunings.CreateTuning", one)
    assert made.name in [t.name for t in (await alice("tunings.ListTunings", ListTuningsRequest())).tunings]
    token = (await alice("tunings.ListTunings", ListTuningsRequest(page_size=1))).next_page_token
    assert token
    bob = await make(admin, "bob")
    call = bob("tunings.ListTunings", ListTuningsRequest(page_token=token))
    await refused(call, StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "page_token")


async def test_a_key_that_only_edits_makes_no_tuning(admin: Caller) -> None:
    """It edits with a READY tuning and by methods that tune nothing, and is refused where a tuning may be made."""
    tuner = await make(admin, "acme", TUNE, READ)
    tuning = await tuner.tuned()
    editor = await make(admin, "acme", EDIT)
    before = len(admin.world.tuner.requests)
    for request in (
        EditRequest(tuning=tuning.name, prompt="a dog"),
        EditRequest(image_data=picture("red"), prompt="a dog", config=SDEDIT),
    ):
        events = [event async for event in editor("edits.Edit", request)]
        assert events[-1].HasField("done")
    for method, request in (
        ("edits.Edit", EditRequest(image_data=picture("blue"), prompt="a dog")),
        ("edits.Edit", EditRequest(image=tuning.image, prompt="a dog", validate_only=True)),
        ("edits.Compare", CompareRequest(image_data=picture("blue"), prompt="a dog", methods=[entry("unitune")])),
    ):
        await refused(editor(method, request), StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert before == len(admin.world.tuner.requests)
    request = EditRequest(image=tuning.image, prompt="a dog")
    error = await refused(tuner("edits.Edit", request), StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert "needs a credential with the scope edit, and this one has read, tune: use" in error.message


async def test_a_name_that_is_anothers_is_not_looked_for(admin: Caller) -> None:
    """It is refused before any object of the store is read: its answer takes no longer when it is there (F38)."""
    alice, bob = await make(admin, "alice"), await make(admin, "bob")
    image = await alice.upload(picture())
    await admin.world.close()
    path = next((admin.world.folder / "store").rglob("image.json"))
    path.write_text("damaged")  # whoever reads it says DATA_LOSS
    await admin.world.open()
    request = CreateTuningRequest(image=image.name)
    await refused(alice("tunings.CreateTuning", request), StatusCode.DATA_LOSS, "IMAGE_CORRUPT")
    await refused(bob("tunings.CreateTuning", request), StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")


async def test_a_server_without_credentials_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """On loopback it asks nobody, tenants are what names say, and its log warns at the start."""
    with caplog.at_level(logging.WARNING):
        await world.close()
        await world.open()
    (record,) = [record for record in caplog.records if record.message == "no credentials are asked for"]
    assert "UNITUNE_ADMIN_KEY_FILE" in record.fields["detail"]  # type: ignore[attr-defined]
    one = await world.upload(picture(), parent="tenants/acme")
    assert (await world.tunings.CreateTuning(CreateTuningRequest(image=one.name))).name.startswith("tenants/acme/")
    assert (await world.info.GetServerInfo(GetServerInfoRequest())).version


def config(address: str, **settings: Any) -> GatewayConfig:
    """The gateway's settings for an address."""
    return GatewayConfig(address=address, store="s", state="t", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.com:1", ":1", "*:1"])
def test_an_address_that_others_reach_needs_keys_and_tls(address: str) -> None:
    """Without them, and without a setting that does without by name, there is no start."""
    with pytest.raises(ValueError, match=r"UNITUNE_GATEWAY_ADDRESS is .* no API keys: .*UNITUNE_INSECURE=no-keys"):
        config(address, insecure="no-tls")
    config(address, insecure="no-tls, no-keys")
    config(address, admin_key_file="key", insecure="no-tls")
    with pytest.raises(ValueError, match="leave no-keys out"):
        config(address, admin_key_file="key", insecure="no-tls,no-keys")
    with pytest.raises(ValueError, match=r"'no-key' is none of no-keys, no-tls"):
        config(address, insecure="no-key")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "localhost:1", "unix:/tmp/socket"])
def test_an_address_of_this_machine_needs_neither(address: str) -> None:
    """Nobody else reaches it."""
    assert not config(address).asks_for_credentials


@pytest.mark.slow
async def test_the_program_refuses_to_start_where_others_reach_it(world: World) -> None:
    """It says in one line what is missing and how to do without, and starts when it is told to."""
    process, line = await start(world, UNITUNE_GATEWAY_ADDRESS="0.0.0.0:0")
    assert line == "" and await process.wait() == 1
    assert process.stderr is not None
    told = (await process.stderr.read()).decode().splitlines()
    assert len(told) == 1 and "UNITUNE_GATEWAY_ADDRESS" in told[0] and "UNITUNE_INSECURE=no-keys" in told[0], told

    process, line = await start(world, UNITUNE_GATEWAY_ADDRESS="0.0.0.0:0", UNITUNE_INSECURE="no-keys,no-tls")
    assert line.startswith("0.0.0.0:")
    process.terminate()
    assert process.stderr is not None
    lines = [json.loads(text) for text in (await process.stderr.read()).decode().splitlines() if text.startswith("{")]
    assert "no credentials are asked for" in [one["event"] for one in lines]
    assert await process.wait() == 0


def key_of(caller: Caller) -> str:
    """The name of a caller's key."""
    return f"tenants/alice/keys/{caller.credential.split('_')[1]}"


async def test_running_streams_end_with_their_key(admin: Caller) -> None:
    """When it is revoked they are refused as new calls are, an edit ends, and the tenant's tuning goes on; streams of
    the tenant's other keys do, too."""
    first, second = await make(admin, "alice"), await make(admin, "alice")
    ready = await first.tuned()
    admin.world.tuner.go_on.clear()
    admin.world.sampler.go_on.clear()
    image = await first.upload(picture("red"))
    tuning = await first("tunings.CreateTuning", CreateTuningRequest(image=image.name))
    request = WatchTuningRequest(name=tuning.name)
    watches = [aiter(caller("tunings.WatchTuning", request)) for caller in (first, second)]
    edit = aiter(first("edits.Edit", EditRequest(tuning=ready.name, prompt="a dog")))
    name = (await anext(edit)).accepted.edit
    waiting = aiter(first("edits.Edit", EditRequest(image=image.name, prompt="a dog")))
    for stream in (*watches, waiting):
        await anext(stream)
    await admin("keys.RevokeKey", RevokeKeyRequest(name=key_of(first)))
    for stream in (watches[0], edit, waiting):
        error = await refused(stream, StatusCode.UNAUTHENTICATED, "CREDENTIAL_ENDED")
        assert "is revoked" in error.message
    await refused(
        first("tunings.GetTuning", GetTuningRequest(name=tuning.name)), StatusCode.UNAUTHENTICATED, "CREDENTIAL_ENDED"
    )
    assert (await second("edits.GetEdit", GetEditRequest(name=name))).state == Edit.STATE_CANCELLED
    admin.world.tuner.go_on.set()
    *_, last = [event async for event in watches[1]]
    assert last.HasField("ready")
    assert admin.world.gateway is not None and not admin.world.gateway._edit_service._edits._queue.num_taken


async def test_a_running_stream_ends_when_its_key_expires(admin: Caller) -> None:
    """At the time that it was made with, or that a rotation gives it; an admin who ends the own key gets an answer."""
    admin.world.tuner.go_on.clear()
    alice = await make(admin, "alice")
    image = await alice.upload(picture())
    tuning = await alice("tunings.CreateTuning", CreateTuningRequest(image=image.name))
    made = await admin("keys.CreateKey", CreateKeyRequest(parent="tenants/alice", scopes=[READ], expire_time=soon()))
    rotated = await make(admin, "alice")
    short = Caller(admin.world, made.secret)
    request = WatchTuningRequest(name=tuning.name)
    watches = [aiter(caller("tunings.WatchTuning", request)) for caller in (short, rotated)]
    for watch in watches:
        await anext(watch)
    await admin("keys.RotateKey", RotateKeyRequest(name=key_of(rotated), old_expire_time=soon()))
    for watch in watches:
        error = await refused(watch, StatusCode.UNAUTHENTICATED, "CREDENTIAL_ENDED")
        assert "is expired" in error.message
    own = f"tenants/default/keys/{admin.credential.split('_')[1]}"
    assert (await admin("keys.RevokeKey", RevokeKeyRequest(name=own))).HasField("revoke_time")
    admin.world.tuner.go_on.set()


def soon() -> Timestamp:
    """In a second."""
    moment = Timestamp()
    moment.FromMicroseconds(round(1e6 * (time.time() + 1)))
    return moment


async def test_long_calls_are_bounded_by_tenant_and_in_all(admin: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """By however many connections they come; one that ends makes room."""
    monkeypatch.setattr(open_calls, "OF_TENANT", 2)
    monkeypatch.setattr(open_calls, "OF_ALL", 3)
    admin.world.tuner.go_on.clear()
    callers = {name: await make(admin, name) for name in ("alice", "bob")}
    requests = {}
    for name, caller in callers.items():
        image = await caller.upload(picture())
        tuning = await caller("tunings.CreateTuning", CreateTuningRequest(image=image.name))
        requests[name] = WatchTuningRequest(name=tuning.name)

    def watch(name: str, channel: grpc.aio.Channel) -> Any:
        stub = tuning_pb2_grpc.TuningServiceStub(channel)
        return aiter(stub.WatchTuning(requests[name], metadata=bearer(callers[name].credential), timeout=20))

    assert admin.world.server is not None
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(serving.channel(admin.world.server.address)) for _ in range(4)]
        watches = [watch("alice", channels[0]), watch("alice", channels[1]), watch("bob", channels[2])]
        for one in watches[:2]:
            await anext(one)
        error = await refused(watch("alice", channels[3]), StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        assert "this tenant has 2" in error.message and error.retry_after_s
        await anext(watches[2])
        await refused(watch("bob", channels[3]), StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    admin.world.tuner.go_on.set()


async def test_limits_are_of_the_credentials_tenant(admin: Caller) -> None:
    """A tenant that has asked too often is refused, whatever its requests name, and another one is not."""
    world = admin.world
    await world.close()
    world.config = replace(world.config, tenant_requests_per_s=0.1)
    await world.open()
    alice, bob = await make(admin, "alice", READ), await make(admin, "bob", READ)
    await alice("tunings.ListTunings", ListTuningsRequest())
    call = alice("tunings.ListTunings", ListTuningsRequest())
    await refused(call, StatusCode.RESOURCE_EXHAUSTED, "TENANT_REQUEST_RATE")
    call = alice("tunings.ListTunings", ListTuningsRequest(parent="tenants/carol"))
    await refused(call, StatusCode.PERMISSION_DENIED, "TENANT_MISMATCH")
    await bob("tunings.ListTunings", ListTuningsRequest())
