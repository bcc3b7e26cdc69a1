"""What UNITUNE_SAMPLER may say."""

import asyncio
import socket

import pytest

from gateway import sampler_addresses
from gateway.config import GatewayConfig
from unitune import settings

NEEDED = {"UNITUNE_STORE": "x", "UNITUNE_STATE": "y"}


def test_several_samplers_are_separated_by_commas() -> None:
    """Spaces do not matter, and a name that is there twice is one."""
    asked = "sampler:50053, 10.0.0.7:1,[fd00::7]:2 ,sampler:50053,unix:/run/sampler"
    assert sampler_addresses.named(asked) == ["sampler:50053", "10.0.0.7:1", "[fd00::7]:2", "unix:/run/sampler"]
    assert settings.load(GatewayConfig, NEEDED | {"UNITUNE_SAMPLER": asked}).sampler == asked


@pytest.mark.parametrize("wrong", ["", "sampler", "a:1,,b:2", "a:0", "a:70000", "http://a:1", "a b:1", "fd00::7:2"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    """At the start, by its name."""
    with pytest.raises(settings.BadSetting, match=r"UNITUNE_SAMPLER is .* is no HOST:PORT"):
        settings.load(GatewayConfig, NEEDED | {"UNITUNE_SAMPLER": wrong})


async def test_addresses_stand_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for them."""
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", None)
    for address in ("127.0.0.1:50053", "[::1]:50053", "unix:/run/sampler"):
        assert await sampler_addresses.resolved(address) == [address]


async def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of IPv4 where it has both kinds, each once. The names here are no system's, so its resolver is replaced."""
    four = [(socket.AF_INET, 1, 6, "", (host, 50053)) for host in ("10.0.0.8", "10.0.0.7", "10.0.0.8")]
    six = [(socket.AF_INET6, 1, 6, "", (host, 50053, 0, 0)) for host in ("fd00::8", "fd00::7")]
    told = {"both": six + four, "six": six}

    async def getaddrinfo(host: str, port: int, **_: object) -> object:
        return told[host]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert await sampler_addresses.resolved("both:50053") == ["10.0.0.7:50053", "10.0.0.8:50053"]
    assert await sampler_addresses.resolved("six:50053") == ["[fd00::7]:50053", "[fd00::8]:50053"]


async def test_a_name_of_this_machine_is_resolved() -> None:
    """As every program resolves it."""
    assert await sampler_addresses.resolved("localhost:50053") in (["127.0.0.1:50053"], ["[::1]:50053"])
