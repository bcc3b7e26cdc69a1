"""What many tests share: the tiny base model and its graphs, made once per run, and the three services on it."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bucket import bucket, s3_address  # noqa: F401, fixtures
from tests.left_out import (  # noqa: F401, hooks
    pytest_deselected,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.made_once import made_once, run_folder
from tests.traces import Collector, collecting
from unitune.base_model import BaseModelSpec, file_digest
from unitune_client import Client
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

# One thread each: tests run beside other work, and sums come out alike on every run. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background jobs with SIGINT ignored, and so would be every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()  # until all tests are imported, which makes no garbage


# Every test with one of these is slow: an export, an engine or running services stand behind it.
SLOW_FIXTURES = {
    "built_home",
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow. Several workers begin with the files that have something slow, so that the short ones are left
    for the end, where they fill the time of all workers alike. Of those with services one file goes first, which makes
    their home, and the others last, so that no worker waits for it."""
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        at_home = {item.path: None for item in items if "built_home" in getattr(item, "fixturenames", ())}
        first = next(iter(at_home), None)
        items.sort(key=lambda item: (item.path != first, item.path not in slow, item.path in at_home))


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be visited by every collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def run_root(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the whole run, which all workers share."""
    return run_folder(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_model(run_root: Path) -> Path:
    """The tiny base model, a diffusers folder. Nobody writes to it."""
    from tests.tiny_model import save_tiny_model  # torch is slow to import, and most test files do without

    return made_once(run_root, "base", lambda folder: save_tiny_model(folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def tiny_graphs(tiny_model: Path, built_home: Home, run_root: Path) -> Path:
    """The graphs folder of the tiny base model: a part of that of the services, since every export takes long. Nobody
    writes to it."""
    return made_once(run_root, "graphs", lambda root: part_of(built_home, tiny_model, root / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def tiny_sdxl(run_root: Path) -> Path:
    """The tiny SDXL model, a diffusers folder. Nobody writes to it."""
    from tests.tiny_sdxl import save_tiny_sdxl

    return made_once(run_root, "base_xl", lambda folder: save_tiny_sdxl(folder / "tiny-xl")) / "tiny-xl"


@pytest.fixture(scope="session")
def tiny_sdxl_graphs(tiny_sdxl: Path, run_root: Path) -> Path:
    """Its graphs folder, as `tuner_svc.export` writes it, with weights outside of the graphs as a model of true size
    has them. Nobody writes to it."""
    from tuner_svc.export.base_model import export

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tuner_svc.export.graph.MOST_INSIDE", 1000)
            export(tiny_sdxl, folder / "tiny-xl")

    return made_once(run_root, "graphs_xl", make) / "tiny-xl"


@pytest.fixture(scope="session")
def tiny_inpainting(run_root: Path) -> Path:
    """The tiny base model for inpainting, a diffusers folder. Nobody writes to it."""
    from tests.tiny_model import save_tiny_inpainting

    name = "tiny-inpainting"
    return made_once(run_root, "base_inpainting", lambda folder: save_tiny_inpainting(folder / name)) / name


@pytest.fixture(scope="session")
def tiny_inpainting_graphs(tiny_inpainting: Path, tiny_graphs: Path, run_root: Path) -> Path:
    """Its graphs folder: the tiny base model's with this denoiser. Nobody writes to it."""
    from tuner_svc.base_model import load
    from tuner_svc.export.denoiser import export_denoiser
    from tuner_svc.model_folder import graphs_digest

    def make(root: Path) -> None:
        folder, model = Path(shutil.copytree(tiny_graphs, root / "tiny-inpainting")), load(tiny_inpainting)
        tensors = export_denoiser(model, folder, root)
        files = {name: file_digest(folder / name) for name in BaseModelSpec.load(folder).files}
        to_rgb = BaseModelSpec.load(folder).latent_to_rgb
        graphs = graphs_digest(tiny_inpainting)
        replace(model.spec, tensors=tensors, latent_to_rgb=to_rgb, graphs=graphs, files=files).save(folder)

    return made_once(run_root, "graphs_inpainting", make) / "tiny-inpainting"


@pytest.fixture(scope="session")
def tiny_cascade(tiny_model: Path, run_root: Path) -> Path:
    """The tiny base model with two stages of super-resolution, from 48x48 to 96x96 and to 192x192. Nobody writes to
    it."""
    from tests.tiny_model import save_tiny_second_stage, save_tiny_super_resolution

    def make(folder: Path) -> None:
        tiny = Path(shutil.copytree(tiny_model, folder / "tiny"))
        save_tiny_super_resolution(tiny)
        save_tiny_second_stage(tiny)

    return made_once(run_root, "cascade", make) / "tiny"


@pytest.fixture(scope="session")
def cascade_graphs(tiny_cascade: Path, built_home: Home, run_root: Path) -> Path:
    """The graphs folder of the tiny cascade: a part of that of the services. Nobody writes to it."""
    return made_once(run_root, "cascade_graphs", lambda root: part_of(built_home, tiny_cascade, root / "tiny")) / "tiny"


def part_of(home: Home, base_model: Path, folder: Path) -> None:
    """Write the graphs folder of a base model that lacks super-resolution, a fast LoRA or the preset of the services'
    own, and is otherwise the same."""
    from tuner_svc.base_model import load
    from tuner_svc.export.exported_folder import is_export_of
    from tuner_svc.model_folder import graphs_digest

    (graphs,), own = home.graphs.iterdir(), load(base_model).spec
    whole = BaseModelSpec.load(graphs)
    assert whole.super_resolution and whole.fast_lora is not None
    lacking = {whole.fast_lora.weights}
    if not own.super_resolution:
        lacking |= {file for stage in whole.super_resolution for file in (stage.weights, stage.graph)}
    shutil.copytree(graphs, folder, ignore=lambda _, names: lacking.intersection(names))
    replace(
        whole,
        digest=own.digest,
        preset=own.preset,
        super_resolution=whole.super_resolution if own.super_resolution else (),
        fast_lora=None,
        graphs=graphs_digest(base_model),
        files={name: digest for name, digest in whole.files.items() if name not in lacking},
    ).save(folder)
    assert is_export_of(folder, base_model, own.digest)


@pytest.fixture(scope="session")
def tiny_fp16_graphs(tiny_model: Path, tiny_graphs: Path, run_root: Path) -> Path:
    """The same with the fp16 graph, as `tuner_svc.export --fp16` writes it in place of an incomplete one. Nobody writes
    to it."""
    from tuner_svc.export.__main__ import main

    def make(root: Path) -> None:
        graphs = Path(shutil.copytree(tiny_graphs, root / "tiny"))
        (graphs / "fp16").mkdir()
        (graphs / "fp16" / "left_over").touch()
        assert main(["--base-model", str(tiny_model), "--out", str(graphs), "--fp16"]) == 0

    return made_once(run_root, "fp16", make) / "tiny"


@pytest.fixture(scope="session")
def services_model(tiny_cascade: Path, run_root: Path) -> Path:
    """The services' base model: the tiny cascade with a fast LoRA, and a preset of its own. Nobody writes to it."""
    from tests.fast_loras import add_fast_lora

    def make(folder: Path) -> None:
        add_fast_lora(Path(shutil.copytree(tiny_cascade, folder / "tiny")))
        (folder / "tiny" / "unitune_preset.json").write_text('{"methods": {"unitune": {"fast_steps": 3}}}')

    return made_once(run_root, "services_model", make) / "tiny"


@pytest.fixture(scope="session")
def built_home(services_model: Path, run_root: Path) -> Home:
    """A home with graphs and engine of that base model, as services make them in place of damaged graphs. Nobody writes
    to it."""
    from tuner_svc.export.exported_folder import DIGEST_CHARACTERS
    from tuner_svc.model_folder import digest

    def make(root: Path) -> None:
        home = Home(root)
        damaged = home.graphs / digest(services_model)[:DIGEST_CHARACTERS]
        damaged.mkdir(parents=True)
        for name in ("spec.json", "denoiser.onnx", "left_over"):
            (damaged / name).write_text("{}")
        LocalServices(str(services_model), home=home).build()

    with one_thread():
        return Home(made_once(run_root, "home", make))


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """What the session's services send their traces to."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def services(
    services_model: Path, built_home: Home, tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[LocalServices]:
    """The three services as real processes, started once in each worker for all tests that cross them. They measure
    and trace."""
    with one_thread(), pytest.MonkeyPatch.context() as environment:
        environment.setenv("UNITUNE_METRICS_ADDRESS", "127.0.0.1:0")  # of each its own
        environment.setenv("UNITUNE_TRACES", collector.url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # ms until spans are sent; 5 s by default
        services = LocalServices(str(services_model), home=copied(built_home, tmp_path_factory.mktemp("home")))
        services.__enter__()
    try:
        yield services
    finally:
        services.stop()


@pytest.fixture(scope="module")
def home(built_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home of the module's own, in which the services' engine is built."""
    return copied(built_home, tmp_path_factory.mktemp("own") / "home")


def copied(home: Home, root: Path) -> Home:
    """Another home with the same graphs and engines."""
    for folder in (home.engines, home.graphs):
        shutil.copytree(folder, root / folder.name)
    return Home(root)


@contextmanager
def one_thread() -> Iterator[None]:
    """What is started meanwhile computes in one thread; more would wait for one another on a busy machine."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UNITUNE_THREADS", "1")
        yield


@pytest.fixture
def client(services: LocalServices) -> Iterator[Client]:
    """A client of the services."""
    with Client(services.address) as client:
        yield client
