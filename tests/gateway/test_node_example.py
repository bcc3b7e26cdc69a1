"""The client in Node.js, examples/node, as a program: over TLS and with a key, against a gateway that is a process."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.gateway.conftest import World, picture
from tests.gateway.test_main import ROOT, start
from unitune_client import AsyncClient

pytestmark = pytest.mark.slow  # a real gateway

EXAMPLE = ROOT / "examples" / "node"
INSTALLED = ROOT / ".venv" / "node-example" / "node_modules"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages, in a copy of the repository's folders."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed; the example needs version 20 or newer")
    if not INSTALLED.is_dir():
        pytest.skip("the example's packages are not installed: `make test` installs them where npm is")
    root = tmp_path_factory.mktemp("node")
    for folder in ("protos", "third_party"):
        (root / folder).symlink_to(ROOT / folder)
    copied = root / "examples" / "node"
    shutil.copytree(EXAMPLE, copied, ignore=shutil.ignore_patterns("generated", "node_modules"))
    (copied / "node_modules").symlink_to(INSTALLED)
    return copied


def test_its_types_are_those_of_the_contract(example: Path) -> None:
    """Types are generated from the contract, and TypeScript finds nothing wrong with the example."""
    done = subprocess.run(["npm", "run", "--silent", "check"], cwd=example, capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stdout + done.stderr)
    assert (example / "generated" / "unitune" / "v1" / "EditRequest.ts").is_file()


@pytest.mark.parametrize(
    ("words", "environ", "told", "status"),
    [
        (["cat.png"], {}, "error: give PHOTO and PROMPT\n", 2),
        (["cat.png", "a dog", "--photo", "x"], {}, "error: Unknown option '--photo'", 2),
        (["cat.png", "a dog", "--steps", "many"], {}, "error: --steps is many: give a whole number\n", 2),
        (["cat.png", "a dog"], {"UNITUNE_KEY": "ut_x"}, "give UNITUNE_ADDRESS=grpcs://127.0.0.1:50051\n", 2),
        (["cat.png", "a dog"], {"UNITUNE_CA": "none.crt"}, "error: UNITUNE_CA: ENOENT: ", 2),
        (["none.png", "a dog"], {}, "error: ENOENT: no such file or directory, open 'none.png'\n", 1),
    ],
)
def test_what_is_wrong_before_the_first_call_is_a_line(
    example: Path, words: list[str], environ: dict[str, str], told: str, status: int
) -> None:
    """A mistake in the command line, the environment or a path is told as one error, and no trace of the program."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    done = subprocess.run(["node", "edit.js", *words], cwd=example, env=clean | environ, capture_output=True, text=True)

    assert status == done.returncode and told in done.stderr, done.stderr
    assert "    at " not in done.stderr


def test_its_lock_names_no_host() -> None:
    """Each package is known by its digest, wherever it comes from."""
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())

    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages and all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert [] == [name for name, package in packages.items() if "resolved" in package]


@asynccontextmanager
async def secured(world: World) -> AsyncIterator[tuple[str, Path, str]]:
    """A gateway that asks for keys, over TLS: its address, the authority's certificate, and a key of a tenant."""
    files = Authority.make(world.folder).issue(world.folder, "door", "localhost")
    key_file, certificate = world.folder / "admin.key", world.folder / "authority.crt"
    process, address = await start(
        world,
        UNITUNE_TLS_CERT=str(files.certificate),
        UNITUNE_TLS_KEY=str(files.key),
        UNITUNE_ADMIN_KEY_FILE=str(key_file),
        UNITUNE_GATEWAY_ADDRESS="0.0.0.0:0",
    )
    try:
        address = f"grpcs://localhost:{address.rpartition(':')[2]}"
        admin = AsyncClient(address, key=key_file.read_text(), root_certificates=certificate.read_bytes())
        async with admin:
            made = await admin.create_key("acme", ["read", "edit", "tune"])
        yield address, certificate, made.secret
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_it_tunes_edits_and_cancels_with_a_key_over_tls(world: World, example: Path) -> None:
    """Upload, tuning, previews, pictures; Ctrl-C cancels on the server; a wrong key is told as the server says it."""
    async with secured(world) as (address, certificate, key):
        photo, out = world.folder / "cat.png", world.folder / "out"
        photo.write_bytes(picture(size=(300, 200)))
        words = ["node", "edit.js", str(photo), "a dog", "--out", str(out)]
        environ = os.environ | {"UNITUNE_ADDRESS": address, "UNITUNE_CA": str(certificate), "UNITUNE_KEY": key}

        def run(*more: str, **settings: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*words, *more],
                cwd=example,
                env=environ | settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        world.sampler.png = picture("orchid", (700, 700)) + bytes(600_000)  # comes in pieces
        told, wrong = await asyncio.to_thread(run("--seed", "3", "--seed", "5", "--previews", "5").communicate)
        assert wrong == ""
        lines = told.splitlines()
        assert lines[0].startswith("uploaded tenants/acme/images/") and "tuning: 5/5" in lines and "step 15/15" in lines
        assert lines[-1].startswith("edited in ")
        # Steps that come too fast are told together, with the newest preview.
        assert {"preview14.png", "seed3.png", "seed5.png"} <= {path.name for path in out.iterdir()}
        async with AsyncClient(address, key=key, root_certificates=certificate.read_bytes()) as client:
            (tuning,) = [one.name async for one in client.list_tunings()]
            ours = await client.edit_to_end(tuning, "a dog", seeds=[3, 5])
            assert [image.png for image in ours.images] == [(out / f"seed{seed}.png").read_bytes() for seed in (3, 5)]

            world.sampler.step_s = 0.2
            world.sampler.stopped.clear()
            cancelled = run("--steps", "900")
            assert cancelled.stdout is not None
            while not (await asyncio.to_thread(cancelled.stdout.readline)).startswith("step 1/"):
                pass
            cancelled.send_signal(signal.SIGINT)
            _, wrong = await asyncio.to_thread(cancelled.communicate)
            assert (cancelled.returncode, wrong) == (1, "EDIT_CANCELLED: the edit was cancelled\n")
            await asyncio.wait_for(world.sampler.stopped.wait(), 30)

        refused = run(UNITUNE_KEY="ut_k000000000000_" + "A" * 43)
        _, wrong = await asyncio.to_thread(refused.communicate)
        assert refused.returncode == 1 and wrong.startswith("CREDENTIAL_INVALID: "), wrong
