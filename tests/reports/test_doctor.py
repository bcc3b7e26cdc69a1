"""`unitune doctor` tells what it finds, whatever is broken, and its exit status says whether something is."""

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from unitune_client.cli.main import main
from unitune_client.local import doctor

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings."""
    for name in [name for name in os.environ if name.startswith("UNITUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UNITUNE_HOME", str(tmp_path / "home"))


def test_a_home_that_cannot_be_read_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is told, the home with path and reason, and the exit status is 1 (N19)."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNITUNE_HOME", str(tmp_path / "file" / "home"))  # root may read every folder, but not this

    done = CliRunner().invoke(main, ["doctor"])

    assert 1 == done.exit_code
    assert re.search(rf"home: +cannot be read: {tmp_path}/file/home: Not a directory\n", done.stdout)
    assert "embedded model:" in done.stdout and "Traceback" not in done.output


def test_a_home_that_is_a_file_is_a_finding(tmp_path: Path) -> None:
    """It is told as what it is (N19)."""
    (tmp_path / "home").write_text("")

    done = CliRunner().invoke(main, ["doctor"])

    assert 1 == done.exit_code
    assert re.search(r"home: +cannot be read: .*/home: it is no folder; set UNITUNE_HOME to one\n", done.stdout)


@pytest.mark.parametrize(
    "broken", ["packages", "cuda_device", "home_in_words", "running_in_words", "embedded_base_model"]
)
def test_no_finding_stops_the_others(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be made is told with its reason in its place (N19)."""

    def fails(*arguments: object) -> str:
        raise RuntimeError("the driver is\nodd")

    monkeypatch.setattr(doctor, broken, fails)

    done = CliRunner().invoke(main, ["doctor"])

    assert 1 == done.exit_code
    assert "cannot be found out: the driver is odd" in done.stdout and "embedded model:" in done.stdout


def test_a_wrong_base_model_ends_with_its_reason(tmp_path: Path) -> None:
    """A path that is none is wrong input; a folder that lacks parts is a finding; neither ends with 0 (N19)."""
    (tmp_path / "half" / "unet").mkdir(parents=True)
    (tmp_path / "half" / "model_index.json").write_text("{}")

    wrong = CliRunner().invoke(main, ["doctor", "--base-model", str(tmp_path / "nowhere")])
    half = CliRunner().invoke(main, ["doctor", "--base-model", str(tmp_path / "half")])

    assert (2, "") == (wrong.exit_code, wrong.stdout)
    assert wrong.stderr.startswith(f"error: --base-model is '{tmp_path}/nowhere': give a folder in diffusers layout")
    assert 1 == half.exit_code
    assert re.search(r"given base model: +.*/half lacks scheduler, text_encoder, tokenizer, vae: ", half.stdout)


def test_a_whole_base_model_is_told(tiny_model: Path) -> None:
    """It has its line, and the exit status is 0 (N19)."""
    done = CliRunner().invoke(main, ["doctor", "--base-model", str(tiny_model)])

    assert 0 == done.exit_code, done.output
    assert re.search(rf"given base model: +{tiny_model}\n", done.stdout)


def test_a_server_that_is_away_is_a_finding() -> None:
    """What this machine has is told first; then that nobody answers, with 1 (N19)."""
    done = CliRunner().invoke(main, ["doctor", "--address", "127.0.0.1:1"])

    assert 1 == done.exit_code
    assert re.search(r"server: +no UniTune server answers at 127\.0\.0\.1:1\n$", done.stdout)


def test_a_vocabulary_that_is_no_list_is_one_line(tmp_path: Path) -> None:
    """A damaged file is named (N19)."""
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vocabulary.json").write_text("[1, ")

    done = CliRunner().invoke(main, ["doctor", "--vocabulary", "--base-model", str(tmp_path)])

    assert 1 == done.exit_code
    assert done.stderr.startswith(f"error: {tmp_path}/vocabulary.json is no list of words by kind: ")


def test_the_help_tells_the_exit_status() -> None:
    """It is documented where one looks (N19)."""
    assert "Exit status: 0; 1 when" in CliRunner().invoke(main, ["doctor", "--help"]).stdout
