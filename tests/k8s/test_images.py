"""What the images have in them, by their Dockerfiles."""

import re

import pytest

from bench.image_sizes import DOCKERFILES, ROOT, extras, requirements, size_of

PINS = dict(
    re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text().lower().replace("_", "-"), re.MULTILINE)
)


def instructions(image: str) -> list[str]:
    """The lines of a Dockerfile that say something, continued ones as one."""
    text = (ROOT / DOCKERFILES[image] / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("image", DOCKERFILES)
def test_only_the_tuner_has_torch(image: str) -> None:
    """Of all that pip installs for an image, with all that it needs: torch and its company are in the tuner's alone, a
    runtime in the sampler's alone. Each version is the one of constraints.txt."""
    found = requirements(image)
    training = {"torch", "diffusers", "transformers", "onnx", "onnxscript"}
    assert (training <= found.keys()) == (image == "tuner") and (image == "tuner" or not training & found.keys())
    assert ("onnxruntime" in found) == (image == "sampler")
    assert {"grpcio", "obstore"} <= found.keys() and ("psycopg-binary" in found) == (image == "gateway")
    nvidia = {name for name in found if name.startswith(("nvidia-", "triton", "cuda-"))}  # of torch's own choice
    assert {name: PINS.get(name) for name in found.keys() - nvidia} == {
        name: found[name].version.lower().partition("+")[0] for name in found.keys() - nvidia
    }
    assert sum(map(size_of, found.values())) > 50e6


def test_what_an_image_installs_is_read_from_its_file() -> None:
    """With the tuner's extra beside its own the gateway would have torch, and the test above would say so."""
    assert extras("gateway") == ["gateway", "fleet", "traces", "cli"] and extras("sampler")[0] == "sampler"
    assert "torch" in requirements("tuner") and "torch" not in requirements("gateway")


@pytest.mark.parametrize("image", DOCKERFILES)
def test_images_are_slim_and_run_as_somebody_else_than_root(image: str) -> None:
    """Every stage begins with the slim image of one version; pip keeps no cache and installs what is pinned; the last
    stage runs as a number that is not 0, with a program and no shell."""
    lines = instructions(image)
    assert {line.split()[1] for line in lines if line.startswith("FROM")} == {"python:3.11-slim-bookworm"}
    for line in lines:
        if "pip install" in line:
            assert "--no-cache-dir" in line and ("-c constraints.txt" in line or "grep ^torch==" in line), line
    last = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert not [line for line in last if line.startswith("RUN")]
    (user,) = (line.removeprefix("USER ") for line in last if line.startswith("USER"))
    assert all(int(part) > 0 for part in user.split(":"))
    assert [line for line in last if line.startswith('ENTRYPOINT ["python", "-m"')]
