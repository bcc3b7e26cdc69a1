"""Where a user stands: odd names of files and folders, proxies in the environment, a client that is not ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from protos.generate import generate
from tests.reports.conftest import PATIENCE_S, Unitune
from unitune_client.local.services import LocalServices

SHORT = ("--method", "sdedit", "--steps", 2, "--strength", 0.5)
DEAD = "http://127.0.0.1:9"  # the discard port, where nothing listens


@pytest.mark.parametrize("name", ["my holiday photo.png", "мой кот 猫 é.png", "100% (final) [2] #1.png", "-cat.png"])
def test_any_name_of_a_photo_and_a_folder_will_do(unitune: Unitune, photo: Path, tmp_path: Path, name: str) -> None:
    """Spaces, other scripts, signs of shells and of options: the pictures lie where the command says."""
    folder = tmp_path / "Ordner mit Ümlaut & spaces"
    folder.mkdir()
    own = photo.rename(folder / name)

    done = unitune("edit", "-o", folder / "out 猫", *SHORT, "--", own.name, "a cat", cwd=folder)

    assert 0 == done.returncode, done.stderr
    written = [folder / line for line in done.stdout.splitlines()]
    assert written and all(path.is_file() and path.parent == folder / "out 猫" for path in written)
    assert (60, 44) == Image.open(written[0]).size


@pytest.mark.parametrize(
    "variables",
    [
        {"http_proxy": DEAD, "https_proxy": DEAD},
        {"HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD, "ALL_PROXY": DEAD},
        {"grpc_proxy": DEAD},
        {"http_proxy": DEAD, "no_proxy": "example.com"},
    ],
    ids=lambda variables: "+".join(variables),
)
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    unitune: Unitune, photo: Path, variables: dict[str, str]
) -> None:
    """With a proxy that is down, services on this machine answer all the same."""
    done = unitune("edit", photo, "a cat", *SHORT, env=variables)

    assert 0 == done.returncode, done.stderr


STRANGER = """
import sys
import grpc
from unitune.v1 import edit_pb2, edit_pb2_grpc

address, photo, out = sys.argv[1:]
with open(photo, "rb") as file:
    picture = file.read()
request = edit_pb2.EditRequest(prompt="a cat", image_data=picture, seeds=[7])
request.config.method = edit_pb2.SamplingConfig.METHOD_SDEDIT
request.config.num_inference_steps = 3
request.config.strength = 0.5
kinds = []
with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
    for event in edit_pb2_grpc.EditServiceStub(channel).Edit(request):
        kinds.append(event.WhichOneof("event"))
        if kinds[-1] == "image":
            with open(out, "wb") as file:
                file.write(event.image.png)
assert "unitune_client" not in sys.modules and "unitune.errors" not in sys.modules
assert edit_pb2.__file__.startswith(sys.path[1]), edit_pb2.__file__
print(*kinds)
"""


def test_a_client_from_the_protos_alone_edits(services: LocalServices, photo: Path, tmp_path: Path) -> None:
    """Stubs generated from protos/ are all that a client needs: it sends a picture and reads an edited one."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    generate(stubs)
    for package in (stubs / "unitune", stubs / "unitune" / "v1"):  # or Python would find ours, which is a package
        (package / "__init__.py").touch()
    program = tmp_path / "stranger" / "client.py"
    program.parent.mkdir()
    program.write_text(STRANGER)
    command = [sys.executable, str(program), services.address, str(photo), str(tmp_path / "edited.png")]

    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(stubs)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )

    assert 0 == done.returncode, done.stderr
    kinds = done.stdout.split()
    assert ("accepted", "done") == (kinds[0], kinds[-1])
    assert (60, 44) == Image.open(tmp_path / "edited.png").size
