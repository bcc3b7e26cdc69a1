"""A disk that is full under the command line: which path, what to do, and that deleting works (N11)."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.full_disk import fill, mounted
from tests.reports.conftest import Done, Unitune
from unitune.system_errors import sentence
from unitune_client.cli_edit import save_sheet
from unitune_client.events import EditedImage
from unitune_client.local import LocalServices

pytestmark = pytest.mark.slow


@pytest.fixture
def small_home(services: LocalServices, tmp_path: Path) -> Iterator[Path]:
    """A home on a disk of 96 MB of its own, in which the engine is built already."""
    with mounted(tmp_path / "small", "96m") as folder:
        for name in ("graphs", "engines"):
            shutil.copytree(services._home.root / name, folder / name)
        yield folder


@pytest.fixture
def at_home(unitune: Unitune, small_home: Path, services: LocalServices) -> Callable[..., Done]:
    """Run `unitune ARGUMENTS` with services of its own in the small home."""
    own = {"UNITUNE_HOME": str(small_home), "UNITUNE_BASE_MODEL": str(services._base_model), "UNITUNE_ADDRESS": ""}
    return lambda *arguments: unitune(*arguments, env=own)


def test_tunings_are_deleted_from_a_full_home(at_home: Callable[..., Done], small_home: Path, photo: Path) -> None:
    """On a full disk an edit names folder and remedy, and the remedy works: list, delete, edit again (N11)."""
    made = at_home("tune", photo, "--updates", "1", "--json")
    assert made.returncode == 0, made.stderr
    name = next(line["tuning"]["name"] for line in map(json.loads, made.stdout.splitlines()) if "tuning" in line)
    ballast = fill(small_home)

    refused = at_home("edit", photo, "a cat")
    assert refused.returncode == 1 and "Errno" not in refused.stderr and "Traceback" not in refused.stderr
    assert f"cannot use {small_home}: its disk is full" in refused.stderr
    assert "unitune tunings delete NAME" in refused.stderr

    listed = at_home("tunings", "list")
    assert listed.returncode == 0 and name in listed.stdout, listed.stderr
    deleted = at_home("tunings", "delete", name)
    assert deleted.returncode == 0 and f"{name}  deleted" in deleted.stdout, deleted.stderr
    assert [path for path in (small_home / "store").rglob("*") if path.is_file()] == []
    ballast.unlink()
    assert name not in at_home("tunings", "list").stdout


def test_a_full_output_folder_is_told_with_the_picture_that_did_not_fit(tmp_path: Path) -> None:
    """The file's own name, the reason and the remedy; nothing half-written is left (N11)."""
    from PIL import Image

    with mounted(tmp_path / "out", "1m") as folder:
        fill(folder).rename(folder / "a photograph")
        edited = EditedImage(sequence=1, create_time=None, index=0, seed=0, png=bytes(10_000))
        for path, save in (
            (folder / "cat--dog.png", edited.save),
            (folder / "sheet.png", lambda path: save_sheet(Image.effect_noise((200, 200), 50), path)),
        ):
            with pytest.raises(OSError) as full:
                save(path)
            assert sentence(full.value).startswith(f"cannot use {path}: its disk is full; free some space")
        assert [path.name for path in folder.iterdir()] == ["a photograph"]
