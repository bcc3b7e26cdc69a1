"""An engine of the tiny base model, built once per run, and weights for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sampler_svc.build.folder import build
from sampler_svc.engines.engine import BASE, WeightSet
from sampler_svc.engines.weights import base_weights
from sampler_svc.model import Model
from sampler_svc.sampling.tools import Tools
from tests.made_once import made_once
from unitune.base_model import BaseModelSpec


@pytest.fixture(scope="session")
def engine_folder(tiny_graphs: Path, run_root: Path) -> Path:
    """The tiny base model's engine. Nobody writes to it."""
    return made_once(run_root, "engine", lambda folder: build(tiny_graphs, folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def spec(engine_folder: Path) -> BaseModelSpec:
    """The tiny base model's specification."""
    return BaseModelSpec.load(engine_folder)


@pytest.fixture(scope="session")
def base(engine_folder: Path, spec: BaseModelSpec) -> WeightSet:
    """The tiny base model's weights."""
    return base_weights(engine_folder, spec)


@pytest.fixture(scope="session")
def tunings(tiny_model: Path, spec: BaseModelSpec, base: WeightSet) -> "Tunings":  # noqa: F821
    """Makes tuned weights for the tiny base model."""
    from tests.sampler_svc.tunings import Tunings  # torch is slow to import

    return Tunings.from_model(tiny_model, spec, base)


@pytest.fixture
def model(engine_folder: Path) -> Model:
    """The engine folder, loaded afresh."""
    return Model.open(engine_folder, threads=1)


@pytest.fixture
def tools(model: Model) -> Iterator[Tools]:
    """The tools of an edit with the base weights."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        yield model.tools(lease.engine.run, base_denoiser=model.pool.run_base)


@pytest.fixture(scope="session")
def clip_folder(run_root: Path) -> "tuple[Path, Path, CLIPModel]":  # noqa: F821
    """A base model's folder with a tiny CLIP in it and nothing else, the CLIP's graphs, and the CLIP itself. Nobody
    writes to them."""
    from transformers import CLIPModel  # torch is slow to import

    from tests.sampler_svc.tiny_clip import save_tiny_clip
    from tuner_svc.export.clip import export_clip
    from tuner_svc.model_folder import CLIP_FOLDER

    def make(root: Path) -> None:
        folder, graphs = root / "base_model", root / "graphs"
        graphs.mkdir()
        save_tiny_clip(folder / CLIP_FOLDER)
        export_clip(graphs, folder)

    root = made_once(run_root, "clip", make)
    clip = CLIPModel.from_pretrained(root / "base_model" / CLIP_FOLDER, use_safetensors=True)
    return root / "base_model", root / "graphs", clip
