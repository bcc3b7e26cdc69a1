"""A gateway with scripted upstreams behind a real Envoy, and callers with keys."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.edge import running_envoy
from tests.edge.running_envoy import Edge
from tests.gateway.conftest import world  # noqa: F401, the gateway's own world
from unitune.certificates import CertificateFiles

Open = Callable[..., Awaitable[Edge]]


@dataclass(frozen=True)
class Door:
    """What clients know the edge by."""

    authority: Path
    files: CertificateFiles


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """A certificate of `localhost`, and who vouches for it."""
    folder = tmp_path_factory.mktemp("door")
    authority = Authority.make(folder)
    return Door(authority.path, authority.issue(folder, "door", "localhost"))


@pytest.fixture
def envoy(door: Door, tmp_path: Path) -> Iterator[Open]:
    """Opens an edge in front of gateways, by their addresses, once it knows that one is ready. It is closed after the
    test."""
    with ExitStack() as stack:

        async def opened(*gateways: str, changes: Mapping[str, str] | None = None, door: Door = door) -> Edge:
            folder = tmp_path / f"edge-{len(list(tmp_path.glob('edge-*')))}"
            made = running_envoy.running(folder, door.files, door.authority, list(gateways), changes)
            edge = await asyncio.to_thread(stack.enter_context, made)  # the gateway may run in this process
            async with asyncio.timeout(30):
                while not await asyncio.to_thread(edge.is_up):
                    await asyncio.sleep(0.05)
            return edge

        yield opened
