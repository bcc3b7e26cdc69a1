"""API keys: made, listed, rotated and revoked over the wire, and what the server keeps of them."""

import hashlib
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from sqlalchemy import update

from gateway.api_keys import MAX_KEYS, new_key
from gateway.gateway import Gateway
from gateway.state_schema import SCHEMA_VERSION, api_keys
from tests.gateway.callers import ADMIN, EDIT, READ, TUNE, Caller, ask_for_keys, make
from tests.gateway.conftest import World, eventually, refused
from tests.gateway.older_state import take_keys_out, take_leases_out, take_sharing_out, take_usage_out
from unitune.errors import UniTuneError
from unitune.v1.key_pb2 import CreateKeyRequest, ListKeysRequest, RevokeKeyRequest, RotateKeyRequest
from unitune.v1.tuning_pb2 import ListTuningsRequest


@pytest.fixture
async def admin(world: World) -> AsyncIterator[Caller]:
    """The admin of a gateway that asks for keys."""
    yield await ask_for_keys(world)


def after(seconds: float) -> Timestamp:
    """So many seconds from now."""
    moment = Timestamp()
    moment.FromMicroseconds(round((time.time() + seconds) * 1e6))
    return moment


async def is_refused(caller: Caller) -> bool:
    """Whether a caller that may list tunings is turned away now."""
    try:
        await caller("tunings.ListTunings", ListTuningsRequest())
    except Exception:
        return True
    return False


async def test_a_key_works_from_its_making_to_its_revocation(admin: Caller) -> None:
    """Without a restart: the next call after CreateKey is answered, and the next after RevokeKey is refused."""
    made = await admin("keys.CreateKey", CreateKeyRequest(parent="tenants/acme", scopes=[READ, EDIT, READ]))
    assert made.secret.startswith(f"ut_{made.api_key.name.rpartition('/')[2]}_") and len(made.secret) == 60
    assert [READ, EDIT] == list(made.api_key.scopes) and made.api_key.name.startswith("tenants/acme/keys/k")
    caller = Caller(admin.world, made.secret)
    assert not (await caller("tunings.ListTunings", ListTuningsRequest())).tunings

    revoked = await admin("keys.RevokeKey", RevokeKeyRequest(name=made.api_key.name))
    again = await admin("keys.RevokeKey", RevokeKeyRequest(name=made.api_key.name))

    assert revoked.HasField("revoke_time") and revoked == again
    error = await refused(
        caller("tunings.ListTunings", ListTuningsRequest()), StatusCode.UNAUTHENTICATED, "CREDENTIAL_ENDED"
    )
    assert "revoked" in error.message and made.secret[-43:] not in error.message


async def test_a_rotated_key_ends_at_the_given_time(admin: Caller) -> None:
    """The new key has tenant and scopes of the old one, which works until the time that was given, and not after."""
    old = await admin("keys.CreateKey", CreateKeyRequest(parent="tenants/acme", scopes=[READ]))
    request = RotateKeyRequest(name=old.api_key.name, old_expire_time=after(1.0))
    new = await admin("keys.RotateKey", request)

    assert new.secret != old.secret and new.api_key.name != old.api_key.name
    assert new.api_key.name.startswith("tenants/acme/") and [READ] == list(new.api_key.scopes)
    assert new.old_api_key.name == old.api_key.name and new.old_api_key.expire_time == request.old_expire_time
    caller, successor = Caller(admin.world, old.secret), Caller(admin.world, new.secret)
    assert not await is_refused(caller)
    await eventually(lambda: is_refused(caller))
    assert time.time() >= request.old_expire_time.ToMicroseconds() / 1e6
    assert not await is_refused(successor)
    await refused(
        admin("keys.RotateKey", RotateKeyRequest(name=old.api_key.name)), StatusCode.FAILED_PRECONDITION, "KEY_ENDED"
    )

    last = await admin("keys.RotateKey", RotateKeyRequest(name=new.api_key.name))
    assert await is_refused(successor) and not await is_refused(Caller(admin.world, last.secret))


async def test_the_state_has_a_digest_of_a_key_alone(admin: Caller) -> None:
    """No part of a secret is in the state's files or in the answers of ListKeys; its SHA-256 is."""
    made = await admin("keys.CreateKey", CreateKeyRequest(parent="tenants/acme", scopes=[READ]))
    listed = await admin("keys.ListKeys", ListKeysRequest())
    await admin.world.close()
    files = b"".join(path.read_bytes() for path in admin.world.folder.glob("state.sqlite*"))

    for secret in (made.secret, admin.credential):
        assert secret[-43:].encode() not in files and secret[-43:] not in str(listed)
        assert hashlib.sha256(secret.encode()).digest() in files


async def test_keys_outlive_a_restart(admin: Caller) -> None:
    """After a restart valid keys are valid and a revoked one is refused, the admin's of the file, too."""
    other = await make(admin, "default", ADMIN)
    kept = await make(admin, "acme", READ)
    name = f"tenants/default/keys/{admin.credential.split('_')[1]}"
    await other("keys.RevokeKey", RevokeKeyRequest(name=name))
    await admin.world.close()
    await admin.world.open()

    assert not await is_refused(kept)
    await refused(admin("keys.ListKeys", ListKeysRequest()), StatusCode.UNAUTHENTICATED, "CREDENTIAL_ENDED")
    assert len((await other("keys.ListKeys", ListKeysRequest())).api_keys) == 3


async def test_a_scope_of_a_newer_version_allows_nothing_and_hides_no_change(admin: Caller) -> None:
    """A key that a newer gateway made has the scopes that this one knows, and this one goes on hearing of changes."""
    caller, other = await make(admin, "acme", READ), await make(admin, "acme", READ)
    database = admin.world.gateway._state.database
    newer = update(api_keys).where(api_keys.c.tenant == "acme").values(scopes=api_keys.c.scopes + " audit")
    await database.run(lambda tx: tx.run(newer))
    await admin("keys.RevokeKey", RevokeKeyRequest(name=f"tenants/acme/keys/{other.credential.split('_')[1]}"))
    await admin.world.close()
    await admin.world.open()
    assert not (await caller("tunings.ListTunings", ListTuningsRequest())).tunings
    assert await is_refused(other)


async def test_a_state_with_keys_never_opens_by_itself(admin: Caller) -> None:
    """Started without the setting that turned keys on, the gateway still asks for them, also when the last of them was
    revoked."""
    for revoked in ("", f"tenants/default/keys/{admin.credential.split('_')[1]}"):
        if revoked:
            admin.world.config = replace(admin.world.config, admin_key_file=admin.world.folder / "admin.key")
            await admin.world.close()
            await admin.world.open()
            await admin("keys.RevokeKey", RevokeKeyRequest(name=revoked))
        await admin.world.close()
        admin.world.config = replace(admin.world.config, admin_key_file=None)
        await admin.world.open()
        call = admin.world.tunings.ListTunings(ListTuningsRequest())
        await refused(call, StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")


async def test_the_file_of_the_admin_key(admin: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """It is its owner's alone, it is made once, a key that is put there is taken, and a file without one is refused."""
    world, path = admin.world, admin.world.folder / "admin.key"
    assert path.stat().st_mode & 0o777 == 0o600
    await world.close()
    await world.open()
    assert admin.credential == path.read_text().strip()

    own = new_key()
    path.write_text(f"{own}\n")
    path.chmod(0o644)
    await world.close()
    await world.open()
    assert (await Caller(world, own)("keys.ListKeys", ListKeysRequest())).api_keys
    (record,) = [record for record in caplog.records if record.message == "admin key not closed to others"]
    assert str(path) in record.fields["detail"]  # type: ignore[attr-defined]

    path.write_text("no key\n")
    await world.close()
    with pytest.raises(OSError, match=r"admin.key: there is no API key in it; delete the file"):
        await Gateway.open(world.config)


async def test_keys_are_listed_in_pages(admin: Caller) -> None:
    """All keys of all tenants, or those of one, each once."""
    names = {(await make(admin, tenant, READ)).credential.split("_")[1] for tenant in ("acme", "acme", "acme", "blue")}
    seen, token = [], ""
    while True:
        page = await admin("keys.ListKeys", ListKeysRequest(page_size=2, page_token=token))
        assert len(page.api_keys) <= 2
        seen += [key.name.rpartition("/")[2] for key in page.api_keys]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == 5 == len(set(seen)) and names < set(seen)
    of_one = (await admin("keys.ListKeys", ListKeysRequest(parent="tenants/acme"))).api_keys
    assert len(of_one) == 3 and all(key.name.startswith("tenants/acme/") for key in of_one)


async def test_a_tenant_has_so_many_keys_at_most(admin: Caller) -> None:
    """One more is refused until one of them ends; other tenants' do not count."""
    assert admin.world.gateway is not None
    keys = admin.world.gateway.access._keys
    made = [(await keys.create("acme", [READ]))[0] for _ in range(MAX_KEYS)]
    request = CreateKeyRequest(parent="tenants/acme", scopes=[READ])
    await refused(admin("keys.CreateKey", request), StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_KEYS")
    await make(admin, "blue", READ)

    await admin("keys.RevokeKey", RevokeKeyRequest(name=str(made[0].name)))
    await admin("keys.CreateKey", request)


async def test_what_is_wrong_in_a_request_is_named(admin: Caller) -> None:
    """Field, value and remedy, before anything is made."""
    create, rotate, revoke = "keys.CreateKey", "keys.RotateKey", "keys.RevokeKey"
    for method, request, field in (
        (create, CreateKeyRequest(scopes=[READ]), "parent"),
        (create, CreateKeyRequest(parent="acme", scopes=[READ]), "parent"),
        (create, CreateKeyRequest(parent="tenants/acme"), "scopes"),
        (create, CreateKeyRequest(parent="tenants/acme", scopes=[READ, 0]), "scopes[1]"),
        (create, CreateKeyRequest(parent="tenants/acme", scopes=[99]), "scopes[0]"),
        (create, CreateKeyRequest(parent="tenants/acme", scopes=[READ], expire_time=after(-9)), "expire_time"),
        (rotate, RotateKeyRequest(name="tenants/acme/keys/K"), "name"),
        (revoke, RevokeKeyRequest(), "name"),
        ("keys.ListKeys", ListKeysRequest(page_token="x"), "page_token"),
    ):
        await refused(admin(method, request), StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)
    made = await admin(create, CreateKeyRequest(parent="tenants/acme", scopes=[TUNE]))
    elsewhere = made.api_key.name.replace("acme", "blue")
    for method, request in ((rotate, RotateKeyRequest(name=elsewhere)), (revoke, RevokeKeyRequest(name=elsewhere))):
        await refused(admin(method, request), StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert len((await admin("keys.ListKeys", ListKeysRequest())).api_keys) == 2


async def test_a_server_without_credentials_makes_no_keys(world: World) -> None:
    """There they would have no effect, and shut others out later."""
    caller = Caller(world, "anything")
    request = CreateKeyRequest(parent="tenants/acme", scopes=[ADMIN])
    error: UniTuneError = await refused(
        caller("keys.CreateKey", request), StatusCode.FAILED_PRECONDITION, "CREDENTIALS_OFF"
    )
    assert "UNITUNE_ADMIN_KEY_FILE" in error.message
    assert not await is_refused(caller)


async def test_a_state_of_schema_3_gets_the_table_of_keys(world: World) -> None:
    """The file of the version before is taken over, and keys can be made."""
    await world.tuned()
    await world.close()
    with sqlite3.connect(world.config.state) as old:
        take_sharing_out(old)
        take_usage_out(old)
        take_leases_out(old)
        take_keys_out(old)
        old.execute("PRAGMA user_version = 3")
    old.close()

    admin = await ask_for_keys(world)
    caller = await make(admin, "default", READ, EDIT)
    assert len((await caller("tunings.ListTunings", ListTuningsRequest())).tunings) == 1
    await world.close()
    with sqlite3.connect(world.config.state) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    new.close()
