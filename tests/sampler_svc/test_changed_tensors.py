"""Refits over files: the base weights beside the graph, a tuning's tensors in a file that is gone once it is open."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from sampler_svc.build.folder import build
from sampler_svc.engines.changed_tensors import remove_left_over
from sampler_svc.engines.cpu import OrtEngine, backend, open_session, session_options
from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.engine import EngineSpec, WeightSet
from sampler_svc.engines.folder import UnusableEngine, open_folder
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.model import Model
from tests.sampler_svc.tunings import Tunings, answers
from unitune.base_model import BaseModelSpec
from unitune.errors import DataLoss
from unitune.graph_files import DENOISER


def open_engine(kind: type[OrtEngine], folder: Path, spec: BaseModelSpec, base: WeightSet) -> OrtEngine:
    """An engine that was never refitted."""
    engine_spec = EngineSpec.from_model(spec)
    return kind(folder, engine_spec, 1, GraphLayout(engine_spec, base.tensors))


@pytest.mark.parametrize("kind", [OrtEngine, ControlledEngine])
def test_a_file_of_changed_tensors_gives_the_answers_of_arrays(
    kind: type[OrtEngine],
    engine_folder: Path,
    spec: BaseModelSpec,
    base: WeightSet,
    tunings: Tunings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, there and back, and nothing is left in the folder."""
    before = sorted(engine_folder.iterdir())
    sets = (base, tunings.weights(1), base, tunings.weights(1))
    of_arrays, of_file = [], []
    for found, is_large in ((of_arrays, False), (of_file, True)):
        monkeypatch.setattr("sampler_svc.engines.cpu.is_large", lambda size, is_large=is_large: is_large)
        engine = open_engine(kind, engine_folder, spec, base)
        for weights in sets:
            engine.refit(weights)
            found.append(answers(engine))
        engine.close()

    for ours, theirs in zip(of_file, of_arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(of_file[0] - of_file[1]).max() > 0
    assert sorted(engine_folder.iterdir()) == before


def test_a_folder_that_cannot_be_written_to_is_refitted_all_the_same(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors stay in memory then; here the folder for the file does not exist."""
    monkeypatch.setattr("sampler_svc.engines.cpu.is_large", lambda size: True)
    engine = open_engine(OrtEngine, engine_folder, spec, base)
    engine.refit(tunings.weights(1))
    written = answers(engine)
    real = "sampler_svc.engines.changed_tensors.NamedTemporaryFile"

    def refused(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(real, refused)
    engine.refit(base)
    engine.refit(tunings.weights(1))

    np.testing.assert_array_equal(answers(engine), written)


def test_a_broken_tensor_leaves_engine_and_folder_as_they_were(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found when its turn comes, in the midst of writing the file."""
    monkeypatch.setattr("sampler_svc.engines.cpu.is_large", lambda size: True)
    engine, weights = open_engine(OrtEngine, engine_folder, spec, base), tunings.weights(1)
    engine.refit(base)
    before, files = answers(engine), sorted(engine_folder.iterdir())
    tensors = {name: np.array(tensor) for name, tensor in weights.tensors.items()}
    tensors[max(tensors)].flat[0] = np.nan

    with pytest.raises(DataLoss, match="not finite"):
        engine.refit(WeightSet("broken", tensors, weights.probe))

    assert engine.weights == base.id and sorted(engine_folder.iterdir()) == files
    np.testing.assert_array_equal(answers(engine), before)


def test_a_graph_over_the_file_of_weights_answers_as_over_a_data_file(
    tiny_graphs: Path, spec: BaseModelSpec, tmp_path: Path
) -> None:
    """A safetensors file is external data like any other, to the bit (M36)."""
    for name in (DENOISER, spec.base_weights):  # the onnx package opens no file that has a second name
        shutil.copyfile(tiny_graphs / name, tmp_path / name)
    model = onnx.load(tmp_path / DENOISER)
    onnx.save(model, tmp_path / DENOISER, save_as_external_data=True, location="data", size_threshold=100)
    engine_spec = EngineSpec.from_model(spec)
    names = ("sample", "timestep", "encoder_hidden_states")
    question = dict(zip(names, engine_spec.question(0), strict=True))

    ours, theirs = (
        open_session(folder / DENOISER, session_options(1)).run(None, question)[0] for folder in (tiny_graphs, tmp_path)
    )

    np.testing.assert_array_equal(ours, theirs)


def test_a_shared_file_that_was_changed_in_place_is_refused(tiny_graphs: Path, tmp_path: Path) -> None:
    """The engine's weights are the graphs', so a change of those is seen at the next opening; a copy of the engine is
    another file with the same bytes, and opens (M35)."""
    graphs = Path(shutil.copytree(tiny_graphs, tmp_path / "graphs"))
    engine = build(graphs, tmp_path / "engine")
    weights = graphs / "denoiser.safetensors"
    assert os.path.samefile(weights, engine / weights.name)
    copied = shutil.copytree(engine, tmp_path / "copied", copy_function=shutil.copyfile)
    assert open_folder(engine, backend()) == open_folder(copied, backend())

    with weights.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")

    with pytest.raises(UnusableEngine, match=r"damaged \(denoiser\.safetensors\), or was changed"):
        open_folder(engine, backend())
    assert open_folder(copied, backend())


REFITTING = """
import sys, time
from pathlib import Path
import numpy as np
from sampler_svc.engines.changed_tensors import ChangedTensors
from sampler_svc.engines.onnx_file import Initializer
changed = ChangedTensors(Path(sys.argv[1]), {"w": Initializer("w", (4,), (), None, (0, 16))})
changed.add("w", np.zeros(4, dtype=np.float32))
print("written", flush=True)
time.sleep(600)
"""


def test_the_file_of_a_killed_sampler_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    """SIGKILL in the midst of a refit leaves the file. It is removed once its owner is gone, unless it is so young that
    it could be another's which has not locked it yet."""
    with subprocess.Popen([sys.executable, "-c", REFITTING, str(tmp_path)], stdout=subprocess.PIPE) as refitting:
        try:
            assert refitting.stdout is not None and b"written\n" == refitting.stdout.readline()
            (path,) = tmp_path.iterdir()
            os.utime(path, (0, 0))
            assert [] == remove_left_over(tmp_path)
        finally:
            refitting.kill()
    os.utime(path)
    assert [] == remove_left_over(tmp_path) and path.exists()
    os.utime(path, (0, 0))

    assert [path.name] == remove_left_over(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_sampler_removes_them_when_it_opens_its_engine(engine_folder: Path, tmp_path: Path) -> None:
    """And nothing else."""
    folder = Path(shutil.copytree(engine_folder, tmp_path / "engine"))
    files = sorted(folder.iterdir())
    for name in (".refit-abc", ".refit-def"):
        (folder / name).write_bytes(b"0")
        os.utime(folder / name, (0, 0))

    Model.open(folder, threads=1).pool.close()

    assert files == sorted(folder.iterdir())
