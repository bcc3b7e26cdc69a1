"""What many tests share: the tiny base model and its exported graphs, each made once per session."""

import os
import shutil
import signal
from pathlib import Path

import pytest

# One thread each: tests run beside other work, and sums come out alike on every run. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background jobs with SIGINT ignored, and so would be every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model, a diffusers folder. Nobody writes to it."""
    from tests.tiny_model import save_tiny_model  # torch is slow to import, and most test files do without

    return save_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_graphs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs folder of the tiny base model, as `tuner_svc.export` writes it. Nobody writes to it."""
    from tuner_svc.export import export

    return export(tiny_model, tmp_path_factory.mktemp("graphs") / "tiny")


@pytest.fixture(scope="session")
def tiny_half_graphs(tiny_model: Path, tiny_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the half graph, as `tuner_svc.export --half` writes it. Nobody writes to it."""
    from tuner_svc.base_model import load
    from tuner_svc.export_half import add_half_graph

    folder = Path(shutil.copytree(tiny_graphs, tmp_path_factory.mktemp("half") / "tiny"))
    add_half_graph(folder, load(tiny_model))
    return folder
