"""Refits over files: the base weights beside the graph, a tuning's tensors in a file that is gone once it is open."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from sampler_svc.build.folder import build
from sampler_svc.engines.cpu import OrtEngine, backend, open_session, session_options
from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.engine import EngineSpec, WeightSet
from sampler_svc.engines.folder import UnusableEngine, open_folder
from sampler_svc.engines.layout import GraphLayout
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
