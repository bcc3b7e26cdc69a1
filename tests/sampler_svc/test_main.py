"""The sampler as a program: it starts, serves and stops, and needs nothing of the tuner's."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.configs import sampling_config
from tests.sampler_svc.pictures import picture
from unitune.v1 import sampler_pb2, sampler_pb2_grpc

WITHOUT_THE_TUNER = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "torch diffusers transformers onnx onnxscript tuner_svc stickerbook".split():
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Absent())
"""
SAMPLE = """
from pathlib import Path
import sampler_svc, sampler_svc.service, sampler_svc.build
from sampler_svc.build.folder import build
from sampler_svc.model import Model
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import sample
graphs, folder, image = (Path(argument) for argument in sys.argv[1:])
model = Model.open(build(graphs, folder), threads=1)
request = Request(image.read_bytes(), "a cat", "ddim", 4, 4.0, 0.5, (0,))
with model.pool.lease("base", lambda: model.base) as lease:
    events = []
    sample(request, model.tools(lease.engine.run), events.append)
print(*(type(event).__name__ for event in events))
"""


def environment(**settings: str) -> dict[str, str]:
    """This environment without settings of ours, and these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    return kept | {f"UNITUNE_{name}": value for name, value in settings.items()}


def test_building_and_sampling_need_no_torch(tiny_graphs: Path, tmp_path: Path) -> None:
    """With torch, diffusers, transformers and onnx out of reach, an engine is built and a picture sampled."""
    (tmp_path / "image.png").write_bytes(picture())
    arguments = [tiny_graphs, tmp_path / "engine", tmp_path / "image.png"]

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_TUNER + SAMPLE, *arguments], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Step", "Step", "EditedImage", "Done"]


def test_the_program_serves_until_it_is_told_to_stop(engine_folder: Path, tmp_path: Path) -> None:
    """One line on stdout tells the port, an edit works, SIGTERM ends it with exit code 0."""
    settings = environment(ENGINE=str(engine_folder), STORE=str(tmp_path), SAMPLER_ADDRESS="127.0.0.1:0", THREADS="1")
    program = subprocess.Popen([sys.executable, "-m", "sampler_svc"], env=settings, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        address = program.stdout.readline().removeprefix("listening ").strip()
        config = sampling_config(
            method="sdedit", scheduler="euler", num_inference_steps=4, guidance_scale=2, strength=0.5, interpolation=0
        )
        request = sampler_pb2.SampleRequest(image=picture(), prompt="a cat", config=config, seeds=[1])
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            found = list(sampler_pb2_grpc.SamplerServiceStub(channel).Sample(request, timeout=60))
        assert found[-1].WhichOneof("event") == "done"
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0
        assert program.stdout.read() == ""
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"STORE": "store"}, "UNITUNE_ENGINE is not set"),
        ({"ENGINE": "nowhere", "STORE": "store"}, "build it with `python -m sampler_svc.build`"),
        ({"ENGINE": "nowhere", "STORE": "store", "THREADS": "-1"}, "UNITUNE_THREADS is -1"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(tmp_path: Path, settings: dict[str, str], says: str) -> None:
    """A missing setting, a wrong one and a folder without an engine end the program with the reason and what to do."""
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "sampler_svc"],
        env=environment(**settings) | {"PYTHONPATH": str(repository)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("2", "2")])
def test_numpy_multiplies_on_one_thread_unless_told_otherwise(given: str | None, used: str) -> None:
    """Before numpy is loaded: OpenBLAS reads it once, and its threads would hold up the runtime's."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    if given is not None:
        environment["OPENBLAS_NUM_THREADS"] = given
    told = "import sys, os, sampler_svc; print(os.environ['OPENBLAS_NUM_THREADS'], 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)

    assert run.stdout.split() == [used, "False"]
