"""Clients and processes that fork: gunicorn with preload, Celery, multiprocessing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unitune_client import scripted_server

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120  # a busy machine starts Python slowly; a child that hangs is ended by its own alarm before

PARENT = """
import asyncio, multiprocessing, os, signal, sys
from unitune_client import AsyncClient, Client

ADDRESS = sys.argv[1]

def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # what hangs ends by SIGALRM
        try:
            print("child:", work(), flush=True)
        except RuntimeError as error:
            print("child: RuntimeError:", error, flush=True)
        os._exit(0)
    print("exit status:", os.waitpid(pid, 0)[1], flush=True)

def version():
    with Client(ADDRESS) as client:
        return client.server_info().version

async def async_version():
    async with AsyncClient(ADDRESS) as client:
        return (await client.server_info()).version
"""

MADE_BEFORE = "RuntimeError: this client was made before fork; make a new one in the child process"
SPOILED = "RuntimeError: this process was forked while a client was open"


@pytest.fixture
def address() -> Iterator[str]:
    """Where a server answers every question after its version."""
    with scripted_server.running() as script:
        script.unary = answer  # type: ignore[method-assign]  # any number of times
        yield script.address


async def answer(method: str, request: object) -> object:
    """What the server is."""
    assert method == "GetServerInfo"
    return scripted_server.server_info()


def run(address: str, program: str, **environment: str) -> list[str]:
    """The lines that a program prints which forks; it must end by itself and well."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", PARENT + program, address]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("support", ["0", "1"])
def test_an_open_client_is_refused_in_a_forked_child(address: str, support: str) -> None:
    """A client used in a forked child raises RuntimeError at once, and the parent's goes on (N8)."""
    program = """
client = Client(ADDRESS)
print("parent:", client.server_info().version)
in_child(lambda: client.server_info().version)
in_child(lambda: next(client.edit(b"", "a dog")))
in_child(client.close)
print("parent:", client.server_info().version)
client.close()
"""
    told = run(address, program, GRPC_ENABLE_FORK_SUPPORT=support)

    assert told[0] == "parent: 0.1.0" == told[-1]
    assert told[1].startswith(f"child: {MADE_BEFORE}") and told[3] == told[1]
    assert told[5] == "child: None"
    assert [told[2], told[4], told[6]] == ["exit status: 0"] * 3


@pytest.mark.parametrize("support", ["0", "1"])
def test_a_new_client_in_the_child_of_an_open_one_is_refused(address: str, support: str) -> None:
    """It neither hangs nor dies by SIGSEGV: RuntimeError says to close first or to spawn (N8)."""
    program = """
with Client(ADDRESS) as client:
    client.server_info()
    in_child(version)
    in_child(lambda: asyncio.run(async_version()))
"""
    told = run(address, program, GRPC_ENABLE_FORK_SUPPORT=support)

    for line in (told[0], told[2]):
        assert line.startswith(f"child: {SPOILED}") and "close every client" in line and "spawn" in line
    assert [told[1], told[3]] == ["exit status: 0"] * 2


def test_a_new_client_works_in_the_child_when_none_is_open(address: str) -> None:
    """With none made, none used, or all closed at the fork, a new client of either kind answers in the child (N8)."""
    program = """
in_child(version)
unused = Client(ADDRESS)
in_child(version)
in_child(lambda: unused.server_info().version)
unused.close()
version(), asyncio.run(async_version())
in_child(version)
in_child(lambda: asyncio.run(async_version()))
print("parent:", version())
"""
    told = run(address, program)

    assert told[0::2] == ["child: 0.1.0"] * 2 + [f"child: {MADE_BEFORE}"] + ["child: 0.1.0"] * 2 + ["parent: 0.1.0"]
    assert told[1::2] == ["exit status: 0"] * 5


def test_an_async_client_is_refused_in_a_forked_child(address: str) -> None:
    """AsyncClient raises RuntimeError in the child, whether or not it was used before the fork (N8)."""
    program = """
async def main():
    unused = AsyncClient(ADDRESS)
    in_child(lambda: asyncio.run(unused.server_info()))
    async with AsyncClient(ADDRESS) as used:
        await used.server_info()
        in_child(lambda: asyncio.run(used.server_info()))
        in_child(lambda: asyncio.run(used.close()))
        print("parent:", (await used.server_info()).version)

asyncio.run(main())
"""
    told = run(address, program)

    assert told[0] == f"child: {MADE_BEFORE}" and told[2].startswith(f"child: {MADE_BEFORE}")
    assert told[4] == "child: None" and told[6] == "parent: 0.1.0"
    assert [told[1], told[3], told[5]] == ["exit status: 0"] * 3


def test_multiprocessing_says_what_to_do(address: str, tmp_path: Path) -> None:
    """A pool of forked workers raises RuntimeError; by spawn, as it says, the same work is done (N8)."""
    program = tmp_path / "pool.py"
    program.write_text(
        PARENT
        + """
if __name__ == "__main__":
    with Client(ADDRESS) as client:
        client.server_info()
        for kind in ("fork", "spawn"):
            with multiprocessing.get_context(kind).Pool(1) as pool:
                try:
                    print(kind, pool.apply_async(version).get(100), flush=True)
                except RuntimeError as error:
                    print(kind, "RuntimeError:", error, flush=True)
"""
    )
    command = [sys.executable, str(program), address]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.returncode == 0, done.stderr
    forked, spawned = done.stdout.splitlines()
    assert forked.startswith(f"fork {SPOILED}") and "spawn" in forked
    assert spawned == "spawn 0.1.0"


def test_a_child_that_leaves_the_with_block_ends(address: str) -> None:
    """A child that leaves the client's block and ends by itself neither hangs nor complains (N8)."""
    program = """
with Client(ADDRESS) as client:
    client.server_info()
    stream = client.list_tunings()
    if pid := os.fork():
        print("exit status:", os.waitpid(pid, 0)[1], flush=True)
        print("parent:", client.server_info().version)
    else:
        signal.alarm(30)
"""
    assert run(address, program) == ["exit status: 0", "parent: 0.1.0"]
