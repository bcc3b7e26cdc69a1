"""What many tests share, made once per session: the tiny base model, its graphs, and the three services on it."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from unitune_client import Client
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

# One thread each: tests run beside other work, and sums come out alike on every run. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background jobs with SIGINT ignored, and so would be every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Every test with one of these is slow: an export, an engine or running services stand behind it.
SLOW_FIXTURES = {
    "cascade_graphs",
    "clip_folder",
    "exported",
    "services",
    "tiny_graphs",
    "tiny_fp16_graphs",
    "tiny_inpainting_graphs",
    "tiny_sdxl_graphs",
    "world",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow."""
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model, a diffusers folder. Nobody writes to it."""
    from tests.tiny_model import save_tiny_model  # torch is slow to import, and most test files do without

    return save_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_graphs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs folder of the tiny base model, as `tuner_svc.export` writes it. Nobody writes to it."""
    from tuner_svc.export.base_model import export

    return export(tiny_model, tmp_path_factory.mktemp("graphs") / "tiny")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL model, a diffusers folder. Nobody writes to it."""
    from tests.tiny_sdxl import save_tiny_sdxl

    return save_tiny_sdxl(tmp_path_factory.mktemp("base") / "tiny-xl")


@pytest.fixture(scope="session")
def tiny_sdxl_graphs(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its graphs folder, as `tuner_svc.export` writes it. Nobody writes to it."""
    from tuner_svc.export.base_model import export

    return export(tiny_sdxl, tmp_path_factory.mktemp("graphs") / "tiny-xl")


@pytest.fixture(scope="session")
def tiny_inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model for inpainting, a diffusers folder. Nobody writes to it."""
    from tests.tiny_model import save_tiny_inpainting

    return save_tiny_inpainting(tmp_path_factory.mktemp("base") / "tiny-inpainting")


@pytest.fixture(scope="session")
def tiny_inpainting_graphs(tiny_inpainting: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its graphs folder, as `tuner_svc.export` writes it. Nobody writes to it."""
    from tuner_svc.export.base_model import export

    return export(tiny_inpainting, tmp_path_factory.mktemp("graphs") / "tiny-inpainting")


@pytest.fixture(scope="session")
def tiny_cascade(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model with super-resolution, from 48x48 to 96x96. Nobody writes to it."""
    from tests.tiny_model import save_tiny_super_resolution

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("cascade") / "tiny"))
    save_tiny_super_resolution(folder)
    return folder


@pytest.fixture(scope="session")
def cascade_graphs(tiny_cascade: Path, tiny_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs folder of the tiny cascade: that of the tiny base model with super-resolution. Nobody writes to it."""
    from tuner_svc.base_model import load
    from tuner_svc.export.super_resolution import export_super_resolution
    from unitune.base_model import BaseModelSpec, file_digest

    folder = Path(shutil.copytree(tiny_graphs, tmp_path_factory.mktemp("cascade_graphs") / "tiny"))
    model, spec = load(tiny_cascade), BaseModelSpec.load(folder)
    second = export_super_resolution(model, model.super_resolver, model.super_resolution, folder)
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != "spec.json"}
    replace(spec, digest=model.digest, super_resolution=second, files=files).save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_fp16_graphs(tiny_model: Path, tiny_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the fp16 graph, as `tuner_svc.export --fp16` writes it. Nobody writes to it."""
    from tuner_svc.base_model import load
    from tuner_svc.export.fp16 import add_fp16_graph

    folder = Path(shutil.copytree(tiny_graphs, tmp_path_factory.mktemp("fp16") / "tiny"))
    add_fp16_graph(folder, load(tiny_model))
    return folder


@pytest.fixture(scope="session")
def services(tiny_cascade: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """The three services as real processes, started once for all tests that cross them: on the tiny base model with its
    super-resolution, and a preset of its own for fast edits."""
    folder = Path(shutil.copytree(tiny_cascade, tmp_path_factory.mktemp("fast") / "tiny"))
    (folder / "unitune_preset.json").write_text('{"methods": {"unitune": {"fast_steps": 3}}}')
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UNITUNE_THREADS", "1")  # more would wait for one another on a busy machine
        services = LocalServices(str(folder), home=Home(tmp_path_factory.mktemp("home")))
        services.__enter__()
    try:
        yield services
    finally:
        services.stop()


@pytest.fixture(scope="module")
def home(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home of the module's own, with the engine that the session's services have built."""
    home = Home(tmp_path_factory.mktemp("own") / "home")
    for folder in (services._home.engines, services._home.graphs):
        shutil.copytree(folder, home.root / folder.name)
    return home


@pytest.fixture
def client(services: LocalServices) -> Iterator[Client]:
    """A client of the services."""
    with Client(services.address) as client:
        yield client
