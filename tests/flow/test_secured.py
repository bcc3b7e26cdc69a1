"""One whole edit with everything on: keys and TLS at the gateway, certificates between the services, real processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.certificates import Authority
from tests.picture_files import file_of
from unitune.peers import GATEWAY, SAMPLER, TUNER
from unitune_client import Client, Unauthenticated
from unitune_client.local.services import LocalServices

ROOT = Path(__file__).parents[2]


@contextmanager
def program(module: str, log: Path, **settings: str) -> Iterator[str]:
    """A service as a program; its address."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")} | settings
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening "), log.read_text()
        yield line.removeprefix("listening ").strip()
    finally:
        process.terminate()
        process.wait(60)


def command(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`unitune` with these words."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    environ |= {"UNITUNE_HOME": str(folder / "home")} | settings
    return subprocess.run(
        [sys.executable, "-m", "unitune_client", *words], cwd=folder, env=environ, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def secured(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with `admin.key` and `authority.crt`, and the address of a gateway that asks for keys."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority.make(folder)
    common = {"UNITUNE_STORE": str(folder / "store"), "UNITUNE_PEER_CA": str(authority.path), "UNITUNE_THREADS": "1"}

    def peer(name: str) -> dict[str, str]:
        files = authority.issue(folder, name)
        return common | {"UNITUNE_PEER_CERT": str(files.certificate), "UNITUNE_PEER_KEY": str(files.key)}

    door = authority.issue(folder, "door", "localhost")
    (engine,) = services._home.engines.iterdir()
    with ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as free:
            internal = free.getsockname()[1]
        stack.enter_context(
            program(
                "tuner_svc",
                folder / "tuner.log",
                UNITUNE_TUNER_ADDRESS="0.0.0.0:0",
                UNITUNE_GATEWAY=f"127.0.0.1:{internal}",
                UNITUNE_BASE_MODEL=str(services._base_model),
                **peer(TUNER),
            )
        )
        sampler = stack.enter_context(
            program(
                "sampler_svc",
                folder / "sampler.log",
                UNITUNE_SAMPLER_ADDRESS="0.0.0.0:0",
                UNITUNE_ENGINE=str(engine),
                **peer(SAMPLER),
            )
        )
        gateway = stack.enter_context(
            program(
                "gateway",
                folder / "gateway.log",
                UNITUNE_GATEWAY_ADDRESS="0.0.0.0:0",
                UNITUNE_STATE=str(folder / "state.sqlite"),
                UNITUNE_INTERNAL_ADDRESS=f"0.0.0.0:{internal}",
                UNITUNE_SAMPLER=sampler.replace("0.0.0.0", "127.0.0.1"),
                UNITUNE_TLS_CERT=str(door.certificate),
                UNITUNE_TLS_KEY=str(door.key),
                UNITUNE_ADMIN_KEY_FILE=str(folder / "admin.key"),
                **{name: value for name, value in peer(GATEWAY).items() if name != "UNITUNE_THREADS"},
            )
        )
        yield folder, f"grpcs://localhost:{gateway.rpartition(':')[2]}"


def test_an_edit_with_a_key_over_tls(secured: tuple[Path, str]) -> None:
    """The commands of docs/security.md: a key is made by the admin's, edits a photograph, is replaced, and ends."""
    folder, address = secured
    (folder / "cat.png").write_bytes(file_of(Image.new("RGB", (64, 48), "tan")))
    server = {"UNITUNE_ADDRESS": address, "UNITUNE_CA": "authority.crt"}
    made = command(folder, "keys", "create", "acme", "--key-file", "admin.key", **server)
    assert made.returncode == 0 and made.stdout.startswith("ut_k"), made.stderr
    (folder / "acme.key").write_text(made.stdout)
    name = made.stderr.split(":")[0]
    assert name.startswith("tenants/acme/keys/k") and "it is shown this once" in made.stderr

    edited = command(folder, "edit", "cat.png", "a dog", "--updates", "2", "--key-file", "acme.key", **server)
    assert edited.returncode == 0, edited.stderr + (folder / "gateway.log").read_text()
    (picture,) = (folder / "out").glob("cat--a-dog*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

    refused = command(folder, "tunings", "list", **server)
    assert refused.returncode == 1 and "UNITUNE_KEY" in refused.stderr, refused.stderr
    refused = command(folder, "keys", "list", **server, UNITUNE_KEY=made.stdout.strip())
    assert refused.returncode == 1 and "needs a credential with the scope admin" in refused.stderr, refused.stderr

    certificate = (folder / "authority.crt").read_bytes()

    def tunings(key: str) -> list[str]:
        with Client(address, key=key, root_certificates=certificate) as client:
            return [one.name for one in client.list_tunings(state="READY")]

    (tuning,) = tunings(made.stdout)
    assert tuning.startswith("tenants/acme/tunings/")
    rotated = command(folder, "keys", "rotate", name, "--hours", "0", "--key-file", "admin.key", **server)
    assert rotated.returncode == 0 and rotated.stdout.startswith("ut_k"), rotated.stderr
    assert [tuning] == tunings(rotated.stdout)
    with pytest.raises(Unauthenticated, match="is expired"):
        tunings(made.stdout)
    new = rotated.stderr.split(":")[0]
    revoked = command(folder, "keys", "revoke", new, "--key-file", "admin.key", **server)
    assert revoked.stdout == f"{new}  revoked\n", revoked.stderr
    with pytest.raises(Unauthenticated, match="is revoked"):
        tunings(rotated.stdout)
    listed = command(folder, "keys", "list", "--tenant", "acme", "--key-file", "admin.key", **server).stdout
    logs = "".join(log.read_text() for log in folder.glob("*.log"))
    assert name in logs and not [key for key in (made.stdout, rotated.stdout) if key.strip()[-43:] in logs]
    told = {line.split()[0]: line for line in listed.splitlines()}
    assert {name, new} == told.keys() and " expired " in told[name] and " revoked " in told[new]


def test_a_key_file_needs_a_server(tmp_path: Path) -> None:
    """Services that a command starts here ask for no key, so one that is given would be ignored."""
    (tmp_path / "key").write_text("ut_x")
    done = command(tmp_path, "tunings", "list", "--key-file", "key")
    assert done.returncode == 2 and "--key-file" in done.stderr and "--address" in done.stderr
    done = command(tmp_path, "tunings", "list", "--key-file", "key", "--address", "example.com:1")
    assert done.returncode == 2 and "grpcs://example.com:1" in done.stderr, done.stderr
