"""Tokens of an issuer: which are taken, for whom, and what happens when the issuer is away."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from gateway import jwks
from gateway.config import GatewayConfig
from gateway.jwks import Jwks
from gateway.principal import Principal
from gateway.tokens import Tokens
from tests.gateway import issuer as issuers
from tests.gateway.callers import EDIT, READ, TUNE, Caller
from tests.gateway.conftest import World, picture, refused
from tests.gateway.issuer import AUDIENCE, ISSUER, Issuer
from unitune.errors import Unauthenticated, Unavailable
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.key_pb2 import ListKeysRequest
from unitune.v1.tuning_pb2 import GetTuningRequest, ListTuningsRequest


@pytest.fixture(scope="module")
def signing() -> dict[str, tuple[str, Any]]:
    """Keys, made once: an RSA key takes a while."""
    return {
        kid: (algorithm, issuers.new_private_key(algorithm))
        for kid, algorithm in (("one", "ES256"), ("rsa", "RS256"), ("ed", "EdDSA"))
    }


@pytest.fixture
def issuer(signing: dict[str, tuple[str, Any]]) -> Iterator[Issuer]:
    """An issuer with a key of each kind."""
    with issuers.running() as issuer:
        issuer.keys.update(signing)
        yield issuer


def tokens(issuer: Issuer, **times: float) -> Tokens:
    """What the gateway makes of its settings."""
    return Tokens(Jwks(issuer.url, **times), ISSUER, AUDIENCE, "tenant")


@pytest.fixture
async def trusting(world: World, issuer: Issuer) -> AsyncIterator[World]:
    """A gateway that takes the issuer's tokens."""
    await world.close()
    world.config = replace(
        world.config, oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks=issuer.url, oidc_tenant_claim="org"
    )
    await world.open()
    yield world


async def test_a_token_says_tenant_and_scopes(trusting: World, issuer: Issuer) -> None:
    """The claim that the setting names is the tenant, `scope` has the scopes, and both hold in every call."""
    editor = Caller(trusting, issuer.token("one", org="blue", tenant="red", scope="openid read edit tune email"))
    tuning = await editor.tuned()
    assert tuning.name.startswith("tenants/blue/tunings/")
    reader = Caller(trusting, issuer.token("rsa", org="blue", scope="read"))
    assert tuning == await reader("tunings.GetTuning", GetTuningRequest(name=tuning.name))
    call = reader("edits.Edit", EditRequest(image_data=picture(), prompt="a dog"))
    await refused(call, StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    other = Caller(trusting, issuer.token("ed", org="red", scope="read edit tune"))
    await refused(
        other("tunings.GetTuning", GetTuningRequest(name=tuning.name)), StatusCode.NOT_FOUND, "TUNING_NOT_FOUND"
    )
    expired = Caller(trusting, issuer.token("one", org="blue", exp=int(time.time()) - 60))
    await refused(expired("tunings.ListTunings", ListTuningsRequest()), StatusCode.UNAUTHENTICATED, "CREDENTIAL_ENDED")
    await refused(trusting.tunings.ListTunings(ListTuningsRequest()), StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")


async def test_a_token_makes_no_keys(trusting: World, issuer: Issuer) -> None:
    """An issuer may grant the word admin to anybody who asks; here it has no meaning."""
    caller = Caller(trusting, issuer.token("one", org="blue", scope="admin read"))
    await refused(caller("keys.ListKeys", ListKeysRequest()), StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


@pytest.mark.parametrize("kid", ["one", "rsa", "ed"])
async def test_a_right_token_of_each_algorithm_is_taken(issuer: Issuer, kid: str) -> None:
    """Also one whose audience is a list, or that expired within the leeway; what is no scope here is left out."""
    of = tokens(issuer)
    assert Principal("acme", frozenset([READ, EDIT])) == await of.principal(issuer.token(kid))
    several = issuer.token(kid, aud=["else", AUDIENCE], exp=int(time.time()) - 20, scope="tune email")
    assert Principal("acme", frozenset([TUNE])) == await of.principal(several)
    assert Principal("acme", frozenset()) == await of.principal(issuer.token(kid, leave_out="scope"))
    assert issuer.fetches == 1


def unsigned(token: str, header: dict[str, str], secret: bytes | None = None) -> str:
    """A token with another header, signed with HMAC or not at all."""

    def coded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    begin = f"{coded(json.dumps(header).encode())}.{token.split('.')[1]}"
    signature = hmac.new(secret, begin.encode(), hashlib.sha256).digest() if secret is not None else b""
    return f"{begin}.{coded(signature)}"


async def test_a_wrong_token_is_refused(issuer: Issuer) -> None:
    """No signature, the public key as a secret, a missing claim, another audience: each is told, and nobody (F39)."""
    of, right = tokens(issuer), issuer.token("one")
    other = Issuer("")
    other.add("one")
    now_s = int(time.time())
    header, _, signature = right.split(".")
    changed = base64.urlsafe_b64encode(b'{"tenant":"red"}').rstrip(b"=").decode()
    wrong = {
        "none": (unsigned(right, {"alg": "none", "kid": "one"}), "algorithm"),
        "HS256": (unsigned(right, {"alg": "HS256", "kid": "rsa"}, issuer.public_pem("rsa")), "algorithm"),
        "said to be RS256": (unsigned(right, {"alg": "RS256", "kid": "rsa"}, issuer.public_pem("rsa")), "signature"),
        "of the other kind": (unsigned(right, {"alg": "RS256", "kid": "one"}, b"x"), "signature"),
        "no exp": (issuer.token("one", leave_out="exp"), "'exp'"),
        "no aud": (issuer.token("one", leave_out="aud"), "'aud'"),
        "no iss": (issuer.token("one", leave_out="iss"), "'iss'"),
        "no sub": (issuer.token("one", leave_out="sub"), "'sub'"),
        "wrong audience": (issuer.token("one", aud="else"), "audience"),
        "wrong issuer": (issuer.token("one", iss="https://else/"), "issuer"),
        "not yet": (issuer.token("one", nbf=now_s + 300), "not valid yet"),
        "unknown kid": (issuer.token("one", headers={"kid": "two"}), "kid"),
        "no kid": (unsigned(right, {"alg": "ES256"}), "kid"),
        "another's key": (other.token("one"), "signature"),
        "changed": (f"{header}.{changed}.{signature}", "signature"),
        "no tenant": (issuer.token("one", leave_out="tenant"), "tenant"),
        "odd tenant": (issuer.token("one", tenant="Acme/../x"), "tenant"),
        "tenant list": (issuer.token("one", tenant=["acme"]), "tenant"),
        "text": ("x.y.z", "no JWT"),
        "bytes": ("\N{SNOWMAN}", "no JWT"),
    }
    for name, (token, word) in wrong.items():
        with pytest.raises(Unauthenticated) as caught:
            await of.principal(token)
        assert caught.value.reason == "CREDENTIAL_INVALID" and word in caught.value.message, (name, caught.value)
        assert token not in f"{caught.value.message}{caught.value.metadata}"
    with pytest.raises(Unauthenticated) as caught:
        await of.principal(issuer.token("one", exp=now_s - 31))
    assert caught.value.reason == "CREDENTIAL_ENDED"
    assert Principal("acme", frozenset([READ, EDIT])) == await of.principal(right)


async def test_a_new_key_of_the_issuer_is_found_and_unknown_ones_do_not_flood_it(issuer: Issuer) -> None:
    """An unknown kid fetches the keys again, but not before 30 s have passed, however many come."""
    of = tokens(issuer, between_s=0.5)
    await of.principal(issuer.token("one"))
    issuer.add("two")
    for _ in range(50):
        with pytest.raises(Unauthenticated, match="kid"):
            await of.principal(issuer.token("one", headers={"kid": "three"}))
        await asyncio.sleep(0)
    assert issuer.fetches == 1 and jwks.BETWEEN_S == 30
    await asyncio.sleep(0.6)
    waiting = [of.principal(issuer.token("two")) for _ in range(20)]
    assert {Principal("acme", frozenset([READ, EDIT]))} == set(await asyncio.gather(*waiting))
    assert issuer.fetches == 2


async def test_a_withdrawn_key_is_gone_with_the_next_fetch(issuer: Issuer) -> None:
    """Kept for ten minutes, here less: then the issuer is asked again, in the background."""
    of = tokens(issuer, kept_s=0.2, between_s=0.1)
    token = issuer.token("one")
    await of.principal(token)
    del issuer.keys["one"]
    async with asyncio.timeout(10):
        while True:
            try:
                await of.principal(token)
            except Unauthenticated:
                break
            await asyncio.sleep(0.05)
    assert jwks.KEPT_S == 600


@pytest.mark.parametrize("fault", ["status", "text", "empty", "redirect", "silence", "drip", "flood"])
async def test_keys_are_kept_while_the_issuer_is_down(
    issuer: Issuer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known goes on; what is not is UNAVAILABLE, not refused, and answers come soon."""
    monkeypatch.setattr(jwks, "FETCH_S", 0.5)
    of = tokens(issuer, kept_s=0.0, between_s=0.0)
    new = tokens(issuer)
    known = issuer.token("one")
    await of.principal(known)
    issuer.status = {"status": 503, "redirect": 302}.get(fault, 200)
    flood = b" " * (2 << 20) + issuer.document()
    issuer.body = {"text": b"<html>", "empty": b'{"keys": []}', "flood": flood}.get(fault)
    issuer.drip_s = 0.05 if fault == "drip" else 0.0
    issuer.wait_s = 1.0 if fault == "silence" else 0.0
    for _ in range(3):
        assert (await of.principal(known)).tenant == "acme"
        await asyncio.sleep(0.05)
    issuer.add("two")
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await of.principal(issuer.token("two"))
    assert caught.value.reason == "ISSUER_DOWN" and caught.value.retry_after_s is not None
    with pytest.raises(Unavailable):
        await new.principal(known)
    assert time.monotonic() - began < 5
    assert (await of.principal(known)).tenant == "acme"
    issuer.status, issuer.body, issuer.wait_s, issuer.drip_s = 200, None, 0.0, 0.0
    await asyncio.sleep(0.1)
    assert (await of.principal(issuer.token("two"))).tenant == "acme"
    await of.close()
    await new.close()


async def test_a_gateway_starts_while_its_issuer_is_down(trusting: World, issuer: Issuer) -> None:
    """A token is answered with when to try again."""
    issuer.status = 500
    caller = Caller(trusting, issuer.token("one", org="blue"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller("tunings.ListTunings", ListTuningsRequest())
    assert caught.value.code() is StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE}, "UNITUNE_OIDC_JWKS is not set"),
        ({"oidc_issuer": ISSUER, "oidc_jwks": "https://x/y"}, "UNITUNE_OIDC_AUDIENCE is not set"),
        ({"oidc_audience": AUDIENCE, "oidc_jwks": "https://x/y"}, "UNITUNE_OIDC_ISSUER is not set"),
        (
            {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": "http://x/y"},
            "'http://x/y': it must be an https URL",
        ),
        (
            {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": "file:///etc/passwd"},
            "it must be an https URL",
        ),
    ],
)
def test_settings_of_an_issuer_go_together(settings: dict[str, str], word: str) -> None:
    """What is missing or unsafe is named at the start."""
    with pytest.raises(ValueError, match=word):
        GatewayConfig(store="s", state="t", **settings)  # type: ignore[arg-type]
