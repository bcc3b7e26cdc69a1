"""The kit for a GPU machine without a network: its pieces, its script on a processor, and what it has to carry."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.gpu import kit_run
from bench.gpu.kit import WHEELS, make_kit, published_figures

THERE = ("torch", "transformers", "onnx")  # what the GPU machine has, with all that these depend on
# What pytest, grpc and PyTorch import if it is here.
OPTIONAL = {"execnet", "grpcio-tools", "hypothesis", "platformdirs", "psutil", "pytest-xdist", "sortedcontainers"}
PARTS = ("tuner", "steps", "tests")  # those that run on a processor


def run(kit: Path, *arguments: str) -> str:
    """What the kit's own script prints."""
    command = [sys.executable, "run.py", "--device", "cpu", "--shape", "tiny", *arguments]
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=kit, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def with_all_it_needs(names: tuple[str, ...]) -> set[str]:
    """The modules of some distributions and of everything that they require."""
    found, left = set(), [*names]
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        left += [re.split(r"[^\w.-]", one)[0] for one in wanted if "extra ==" not in one]
    return found


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit without wheels, for the packages are here, in pieces of 4 MiB."""
    return make_kit(tmp_path_factory.mktemp("gpu") / "kit", 4 << 20, {}, {})


class Results(NamedTuple):
    """What a dry run of some parts has left."""

    parts: tuple[str, ...]
    told: str
    folder: Path


@pytest.fixture(scope="module", params=[("steps",), pytest.param(PARTS, marks=pytest.mark.exhaustive)], ids="+".join)
def results(request: pytest.FixtureRequest, kit: Path) -> Results:
    """Of a dry run of one part, or of all."""
    folder = kit / "+".join(request.param)
    return Results(request.param, run(kit, "--out", str(folder), "--parts", *request.param), folder)


def test_no_piece_is_larger_than_asked(kit: Path) -> None:
    """All pieces but the last are of the size asked for, and nothing else is large."""
    sizes = [path.stat().st_size for path in sorted(kit.glob("base.tar.*"))]

    assert len(sizes) > 5 and set(sizes[:-1]) == {4 << 20}
    assert {path.name for path in kit.iterdir() if "tar" not in path.name} >= {"run.py", "kit.json"}


def test_each_part_leaves_what_it_measured(results: Results) -> None:
    """Updates by mode, steps, the floor of a refit, tests: every part's file says how it ended and what it found."""
    parts, told, folder = results
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in parts}

    assert {name: (one["rc"], one["timed_out"]) for name, one in found.items()} == dict.fromkeys(parts, (0, False))
    steps = found["steps"]["measured"]["step.eager"]
    assert min(steps[key]["median"] for key in ("step_s", "edit_s", "few_steps_edit_s", "refit_from_gpu_s")) > 0
    assert "step.eager.step_s" in told
    if parts != PARTS:
        return
    updates = found["tuner"]["measured"]
    for name in ("tuning.eager", "tuning.eager_channels_last", "tuning.eager.attn_out", "tuning.eager.lora"):
        assert updates[name]["update_s"]["median"] > 0, updates[name]
    assert "needs a CUDA device" in updates["tuning.graph"]["skipped"]
    assert "skipped" in found["tests"]["tail"]
    assert "tuning.eager.lora.update_s" in told


def test_what_has_results_is_not_measured_again(kit: Path, results: Results) -> None:
    """A run that was cut off goes on: parts with results are left as they are."""
    before = {path.name: path.stat().st_mtime_ns for path in results.folder.glob("*.json")}

    told = run(kit, "--out", str(results.folder), "--parts", *results.parts)

    assert told.count("has results") == len(results.parts)
    assert before == {path.name: path.stat().st_mtime_ns for path in results.folder.glob("*.json")}


def test_the_kit_carries_every_package_that_its_parts_import(results: Results) -> None:
    """Beside PyTorch, transformers and onnx with theirs, each package has a wheel in it."""
    logs = "".join((results.folder / name / "log.txt").read_text(errors="replace") for name in results.parts)
    tops = {name.partition(".")[0] for name in re.findall(r"^import time: .*\| +([\w.]+)$", logs, re.MULTILINE)}
    by_module = importlib.metadata.packages_distributions()
    needed = {by_module[top][0].lower().replace("_", "-") for top in tops if len(by_module.get(top, [])) == 1}

    assert {"diffusers", "torch"} | ({"onnxruntime", "pytest"} if results.parts == PARTS else set()) <= needed
    carried = {name for names in WHEELS.values() for name in names} | {"unitune"}
    assert set() == needed - with_all_it_needs(THERE) - carried - OPTIONAL


def test_a_part_whose_pieces_are_missing_or_damaged_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the piece; a kit made without an archive says that, and nothing half unpacked is left."""
    monkeypatch.setattr(kit_run, "HERE", tmp_path)
    (tmp_path / "base.tar.000").write_bytes(b"of another copy")

    for archives, reason in (
        ({"base": {"base.tar.000": "00"}}, r"base\.tar\.000 is damaged: copy it again"),
        ({"base": {"base.tar.001": "00"}}, r"base\.tar\.001 is missing"),
        ({}, "made without base"),
    ):
        with pytest.raises(kit_run.Missing, match=reason):
            kit_run.unpack("base", archives, tmp_path / "work")
    assert not (tmp_path / "work" / "base").exists()


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """What it printed is kept, and that its time was up."""
    program = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]

    found = kit_run.ended(program, 2.0, tmp_path / "part", os.environ | {"UNITUNE_TREE": str(tmp_path)})

    assert found["timed_out"] and "begun" in found["tail"]


def test_figures_are_shown_beside_the_published_ones() -> None:
    """The table has the published figures of bench/gpu/README.md, each one that is measured, with a source."""
    found = published_figures()

    assert {each["figure"] for each in found} == {"step_s", "edit_s"}
    assert all(each["value"] and each["where"] and each["source"] for each in found)
