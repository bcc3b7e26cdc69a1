"""`unitune calibrate` through gateway, tuner and sampler: real processes on the tiny base model, which has no CLIP."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.flow.test_compare import picture
from tuner_svc.base_model import load
from tuner_svc.model_folder import read_preset
from unitune_client import Client
from unitune_client.cli.calibration import kept_db
from unitune_client.cli.main import main
from unitune_client.local.services import LocalServices

PROMPT = "a dog on the beach"
FEW = ["--prompt", PROMPT, "--updates", "1", "--updates", "2", "--learning-rate", "1e-4"]
FEW += ["--strength", "0.5", "--strength", "0.9", "--guidance", "3", "--steps", "4", "--seed", "5"]


def calibrate(*words: str) -> Result:
    return CliRunner().invoke(main, ["calibrate", *words])


def test_a_calibration_measures_edits_and_writes_a_preset(
    services: LocalServices, client: Client, tiny_model: Path, tmp_path: Path
) -> None:
    """Its figures are those of edits at the same settings, its preset is one that a base model takes, and it leaves
    sheets. It says what it left out without CLIP, and another run has the same figures and preset (M43)."""
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    photo.write_bytes(picture())

    done = calibrate(str(photo), *FEW, "-o", str(out), "--address", services.address)

    assert done.exit_code == 0, done.output
    assert "the base model has no CLIP filter" in done.output
    facts = json.loads((out / "calibration.json").read_text())
    assert [one["updates"] for one in facts["tunings"]] == [1, 2]
    assert all(one["rare_tokens_alone_db"] > 0 for one in facts["tunings"])
    preset = json.loads((out / "unitune_preset.json").read_text())
    assert preset == {"methods": {"unitune": {"updates": 1, "learning_rate": 1e-4}}}
    strong = next(one for one in facts["points"] if one["strength"] == 0.9)
    edited = client.edit_to_end(
        photo, PROMPT, updates=1, learning_rate=1e-4, strength=0.9, guidance_scale=3.0, num_inference_steps=4, seeds=[5]
    )
    assert strong["edits"][0]["kept_db"] == pytest.approx(kept_db(picture(), edited.images[0].png))
    assert len(list(out.glob("photo--calibrate--*.png"))) == 2
    again = calibrate(str(photo), *FEW, "-o", str(tmp_path / "again"), "--address", services.address)
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again" / "calibration.json").read_text()) | {"date": facts["date"]} == facts
    assert json.loads((tmp_path / "again" / "unitune_preset.json").read_text()) == preset
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    shutil.copy(out / "unitune_preset.json", folder)
    assert read_preset(folder).method_preset("unitune").updates == 1


def test_nothing_is_tuned_when_time_is_over(services: LocalServices, tmp_path: Path) -> None:
    """The first setting is tried in any case; those that are left out are told."""
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    photo.write_bytes(picture())

    done = calibrate(str(photo), *FEW, "--minutes", "0.001", "-o", str(out), "--address", services.address)

    assert done.exit_code == 0, done.output
    facts = json.loads((out / "calibration.json").read_text())
    assert [one["updates"] for one in facts["left_out"] if "updates" in one] == [2]
    assert "left out, as the time was over: 2 updates at 0.0001" in done.output


def test_what_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    """Before services are asked or started: a preset for the embedded model, or for a server's, and files that are
    there."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    (tmp_path / "unitune_preset.json").write_text("{}")

    for words, complaint in (
        (["--apply"], "--apply cannot be given: give --base-model with it"),
        (["--apply", "--address", "127.0.0.1:1"], "the base model's folder is the server's"),
        (["-o", str(tmp_path)], "unitune_preset.json is there already"),
    ):
        refused = calibrate(str(photo), *FEW, *words)
        assert refused.exit_code == 2, refused.output
        assert complaint in refused.output


def test_a_warm_start_is_learned_and_applied(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a photo, in two rounds, into the base model's folder, which tells it; an edit needs its updates alone."""
    folder, out, photo = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "out", tmp_path / "photo.png"
    photo.write_bytes(picture())
    (folder / "unitune_preset.json").write_text(json.dumps({"mode": "full", "batch": 1}))
    monkeypatch.setenv("UNITUNE_HOME", str(tmp_path / "home"))
    words = ["--warm-start", "--base-model", str(folder), "-o", str(out), "--rounds", "2", "--updates", "3", "--apply"]

    done = calibrate(str(photo), *words)

    assert done.exit_code == 0, done.output
    assert "learning the warm start: 2/2" in done.output and not list(out.glob("*.checkpoint"))
    start = load(folder).warm_start
    assert start is not None and start.settings.updates == 3
    again = calibrate(str(photo), *words)
    assert again.exit_code == 2 and "a warm start is there already" in again.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--warm-start", "--prompt", "x"], "give no --prompt"),
        (["--warm-start", "--address", "localhost:1"], "leave --address out"),
        (["--warm-start", "--apply"], "the embedded model keeps its preset"),
        (["--rounds", "3", "--prompt", "x"], "it needs --warm-start"),
        ([], "describe the edited picture"),
    ],
)
def test_what_a_warm_start_does_not_go_with_is_refused(words: list[str], told: str, tmp_path: Path) -> None:
    """At once, by the option."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    done = calibrate(str(photo), *words)
    assert done.exit_code != 0 and told in f"{done.output}{done.exception}"
