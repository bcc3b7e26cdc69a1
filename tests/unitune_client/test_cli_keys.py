"""`unitune keys` against a scripted server, and the credentials that all commands send."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from google.protobuf.timestamp_pb2 import Timestamp

from tests.unitune_client.scripted_server import ScriptedServer
from unitune.errors import InvalidField, PermissionDenied, Unauthenticated
from unitune.v1.key_pb2 import ApiKey, CreateKeyResponse, ListKeysResponse, RotateKeyResponse
from unitune_client import Client
from unitune_client.cli.main import main

pytestmark = pytest.mark.usefixtures("own_surroundings")

KEY = ApiKey(name="tenants/acme/keys/k0", scopes=["SCOPE_READ", "SCOPE_EDIT"], create_time=Timestamp(seconds=1))
SECRET = f"ut_k0123456789ab_{'s' * 43}"


def unitune(*arguments: object, **environment: str) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def test_a_new_key_is_alone_on_standard_output(server: ScriptedServer) -> None:
    """So that it can go into a file; what it is stands on standard error, and the old one ends when it is told to."""
    server.script("CreateKey", CreateKeyResponse(api_key=KEY, secret=SECRET))
    made = unitune("keys", "create", "acme", "--scope", "read", "--scope", "edit", "--address", server.address)
    assert (made.exit_code, made.stdout) == (0, f"{SECRET}\n"), made.output
    assert made.stderr.startswith("tenants/acme/keys/k0: read, edit; no end")
    (request,) = server.requests["CreateKey"]
    assert (request.parent, list(request.scopes), request.HasField("expire_time")) == ("tenants/acme", [1, 2], False)

    server.script("RotateKey", *[RotateKeyResponse(api_key=KEY, secret=SECRET, old_api_key=KEY)] * 2)
    now = Timestamp()
    now.GetCurrentTime()
    for hours in ("0", "2"):
        rotated = unitune("keys", "rotate", KEY.name, "--hours", hours, "--days", "1", "--address", server.address)
        assert rotated.stdout == f"{SECRET}\n"
    at_once, later = server.requests["RotateKey"]
    assert not at_once.HasField("old_expire_time")
    assert abs(later.old_expire_time.seconds - now.seconds - 7200) < 300
    assert abs(later.expire_time.seconds - now.seconds - 86400) < 300


def test_keys_are_listed_with_how_they_end(server: ScriptedServer) -> None:
    """Revoked, expired, or not yet; as JSON with all fields."""
    keys = [
        ApiKey(name="tenants/a/keys/k1", scopes=["SCOPE_ADMIN"]),
        ApiKey(name="tenants/a/keys/k2", expire_time=Timestamp(seconds=1)),
        ApiKey(name="tenants/a/keys/k3", expire_time=Timestamp(seconds=1), revoke_time=Timestamp(seconds=1)),
        ApiKey(name="tenants/a/keys/k4", expire_time=Timestamp(seconds=1 << 33)),
    ]
    pages = [ListKeysResponse(api_keys=keys[:2], next_page_token="more"), ListKeysResponse(api_keys=keys[2:])]
    server.script("ListKeys", *pages, *pages)
    listed = unitune("keys", "list", "--address", server.address).stdout.splitlines()
    words = ["no end", "expired 1970", "revoked 1970", "ends 2242"]
    assert [True] * 4 == [word in line for word, line in zip(words, listed, strict=True)], listed
    told = unitune("keys", "list", "--tenant", "a", "--json", "--address", server.address).stdout.splitlines()
    assert ["admin"] == json.loads(told[0])["key"]["scopes"] and len(told) == 4
    assert ["", "", "tenants/a", "tenants/a"] == [request.parent for request in server.requests["ListKeys"]]
    assert ["", "more", "", "more"] == [request.page_token for request in server.requests["ListKeys"]]


def test_a_key_comes_from_the_environment_or_a_file(server: ScriptedServer, tmp_path: Path) -> None:
    """The file comes first; its line's end is no part of the key; neither is shown."""
    file = tmp_path / "my.key"
    file.write_text("of-the-file\n")
    for given, environment, sent in (
        ((), {}, ""),
        ((), {"UNITUNE_KEY": "of-the-environment"}, "Bearer of-the-environment"),
        ((), {"UNITUNE_KEY_FILE": str(file), "UNITUNE_KEY": "x"}, "Bearer of-the-file"),
        (("--key-file", file), {"UNITUNE_KEY": "x"}, "Bearer of-the-file"),
    ):
        server.script("RevokeKey", Unauthenticated("no", reason="CREDENTIAL_INVALID"))
        done = unitune("keys", "revoke", KEY.name, *given, "--address", server.address, **environment)
        assert (done.exit_code, done.stdout, done.stderr) == (1, "", "error: no\n")
        assert sent == server.requests["credentials"][-1]


def test_what_is_wrong_is_told_before_anything_is_sent(server: ScriptedServer, tmp_path: Path) -> None:
    """A key that others could read, a file that is none, an unknown scope: option, value and remedy."""
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "two").write_text("two words")
    for words, environment, told in (
        (("keys", "list"), {}, "--address"),
        (("keys", "list", "--address", "example.com:1"), {"UNITUNE_KEY": "secret"}, "grpcs://example.com:1"),
        (("keys", "list", "--address", server.address, "--ca", "text"), {}, "there is no certificate in it"),
        (("keys", "list", "--address", server.address, "--key-file", "two"), {}, "--key-file has 9 characters"),
        (("keys", "create", "acme", "--scope", "write", "--address", server.address), {}, "write"),
        (("keys", "create", "acme", "--days", "0", "--address", server.address), {}, "--days is '0'"),
        (("tunings", "list", "--key-file", "two"), {}, "give the --address of a server"),
        (("tunings", "list", "--address", "https://x:1"), {}, "such as x:1"),
    ):
        done = unitune(*words, **environment)
        assert done.exit_code == 2 and told in done.stderr and "secret" not in done.stderr, done.stderr
    refusal = InvalidField("parent", "tenants/Acme", "a tenant has 1 to 63 letters")
    server.script("CreateKey", refusal, PermissionDenied("not you", reason="SCOPE_MISSING"))
    done = unitune("keys", "create", "Acme", "--address", server.address)
    assert (done.exit_code, done.stderr) == (2, "error: TENANT is tenants/Acme: a tenant has 1 to 63 letters\n")
    assert unitune("keys", "create", "acme", "--address", server.address).exit_code == 1


def test_a_function_gives_the_key_of_each_call(server: ScriptedServer) -> None:
    """So that a token can be renewed while a client lives."""
    keys = iter(["one", "two"])
    server.script("RevokeKey", KEY, KEY)
    with Client(server.address, key=lambda: next(keys)) as client:
        assert client.revoke_key(KEY.name).scopes == ("read", "edit")
        client.revoke_key(KEY.name)
    assert ["Bearer one", "Bearer two"] == server.requests["credentials"]
