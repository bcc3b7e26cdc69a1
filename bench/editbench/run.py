"""Run settings on pictures: tune once per picture, edit every case, judge, keep the result on disk.

Work is split by picture over one process for each core, each with one thread: two pictures side by side are done sooner
than one after another with two threads. A result that is on disk is not made again, so an interrupted run goes on.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.editbench.cases import Picture
from bench.editbench.results import Result, result_file
from bench.editbench.settings import Setting
from bench.editbench.worker import Worker
from sampler_svc.build.folder import build
from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.clip_filter import ClipFilter
from tuner_svc.export.base_model import export_under
from tuner_svc.model_folder import digest as model_digest
from unitune.base_model import BaseModelSpec
from unitune.settings import num_cores

_worker: Worker  # in worker processes alone, from `_start`


def run(
    base_model: Path, pictures: Sequence[Picture], settings: Sequence[Setting], out: Path, title: str
) -> list[Result]:
    """All results, those on disk included, in the order of pictures, cases and settings."""
    engine, digest = engine_folder(base_model, out), model_digest(base_model)
    (out / "results").mkdir(parents=True, exist_ok=True)
    missing = [
        p for p in pictures if any(not result_file(out, digest, c, s).exists() for c in p.cases for s in settings)
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=len(pictures), completed=len(pictures) - len(missing))
        if missing:
            with ProcessPoolExecutor(
                num_cores(), get_context("spawn"), _start, (base_model, engine, digest, out)
            ) as pool:
                works = [pool.submit(_run_picture, picture, tuple(settings)) for picture in missing]
                for work in as_completed(works):
                    work.result()
                    progress.advance(task)
    return [
        Result.read(result_file(out, digest, case, setting), setting.name)
        for picture in pictures
        for case in picture.cases
        for setting in settings
    ]


def engine_folder(base_model: Path, out: Path) -> Path:
    """The base model's engine, built where there is none yet that this machine can load."""
    graphs = export_under(base_model, out / "graphs", print)
    return build(graphs, out / "engine" / graphs.name)


def open_clip_filter(engine: Path) -> ClipFilter:
    """The CLIP filter of an engine folder, without its engine."""
    spec = BaseModelSpec.load(engine)
    return ClipFilter(engine, spec.preset, BaseGraphs(engine, spec).round_trip_error)


def _start(base_model: Path, engine: Path, digest: str, out: Path) -> None:
    """Load everything once in a worker process."""
    global _worker
    torch.set_num_threads(1)
    _worker = Worker(base_model, engine, digest, out)


def _run_picture(picture: Picture, settings: tuple[Setting, ...]) -> None:
    _worker.run(picture, settings)
