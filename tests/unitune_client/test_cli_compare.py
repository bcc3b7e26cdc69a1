"""`unitune compare` against a scripted server: what it asks, shows, writes and returns."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image

import unitune_client
from tests.configs import methods_of
from tests.unitune_client import scripted_server
from tests.unitune_client.scripted_server import Hold, ScriptedServer
from unitune.errors import DataLoss, InvalidField, Unavailable, to_status
from unitune.v1 import edit_pb2, tuning_pb2
from unitune_client.cli.main import main

WHITE, DOG, CAT = (scripted_server.png(colour) for colour in ((255, 255, 255), (0, 200, 0), (0, 0, 200)))
SCORES = edit_pb2.Scores(prompt=0.31, base_prompt=0.2, kept=0.88, passed=True)


pytestmark = pytest.mark.usefixtures("own_surroundings")


def compare(server: ScriptedServer, *arguments: object) -> Result:
    """Run the command in this process."""
    words = ["compare", *map(str, arguments), "--address", server.address]
    return CliRunner().invoke(main, words)


def expect(server: ScriptedServer, events: Any) -> None:
    """Script a whole comparison."""
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded)
    server.script("Compare", events)


def colours_of(path: Path) -> dict[tuple[int, int, int], int]:
    """How many pixels have which colour."""
    return {colour: count for count, colour in Image.open(path).getcolors(1 << 20)}


def test_methods_are_compared_on_one_sheet_and_in_one_table(
    server: ScriptedServer, photo: Path, tmp_path: Path
) -> None:
    """Every method's pictures, masks, seconds, bytes and scores are where stdout says; progress goes by method."""
    turns = {"unitune": [DOG, DOG], "sdedit": [CAT, CAT]}
    expect(server, scripted_server.compare_events(turns, seeds=[3, 4], mask=WHITE, scores=SCORES))

    done = compare(server, photo, "a cat", "--methods", "unitune, sdedit", "--seed=3", "--seed=4", "-o", "o")

    assert 0 == done.exit_code, done.output
    (request,) = server.requests["Compare"]
    assert methods_of(request.methods) == ["unitune", "sdedit"]
    assert (list(request.seeds), request.prompt, request.WhichOneof("target")) == ([3, 4], "a cat", "image")
    names = [f"my cat--a-cat--{method}--seed{seed}.png" for method in turns for seed in (3, 4)]
    assert [DOG, DOG, CAT, CAT] == [(tmp_path / "o" / name).read_bytes() for name in names]
    *paths, head, first, second = done.stdout.splitlines()
    assert [str(Path("o") / name) for name in [*names, "my cat--a-cat--methods.png"]] == paths
    assert head.split() == ["method", "tuning", "edit", "weights", "CLIP", "filter"]
    assert first.split("  ")[0] == "unitune" and "12.5 s" in first and "2.0 s" in first and "3456 bytes" in first
    assert first.endswith("2 of 2 passed, likeness to PROMPT 0.31 (of PHOTO 0.20), to PHOTO 0.88")
    assert second.split()[:5] == ["sdedit", "-", "2.0", "s", "-"]
    assert head.index("CLIP") == first.index("2 of 2") == second.index("2 of 2")
    panel = 256 * 192
    colours = colours_of(Path(paths[-1]))
    assert (2 * panel, 2 * panel, panel) == tuple(colours[one] for one in ((0, 200, 0), (0, 0, 200), (200, 40, 40)))
    assert colours[(255, 255, 255)] == 4 * panel
    for line in ("comparing unitune, sdedit", "unitune: tuning: 2/128, loss 0.5000, 9 s left", "sdedit: 2/2"):
        assert line in done.stderr


def test_words_reach_the_request_and_no_names_are_all_methods(server: ScriptedServer, photo: Path) -> None:
    """Noun and initial word go as they are; the server chooses the methods; without a CLIP filter there is a dash."""
    expect(server, scripted_server.compare_events({"sdedit": [CAT]}))

    done = compare(server, photo, "a cat", "--class-noun", "cat", "--initial-word", "cat")

    (request,) = server.requests["Compare"]
    assert (request.class_noun, request.initial_word, len(request.methods)) == ("cat", "cat", 0)
    assert 0 == done.exit_code and done.stdout.splitlines()[-1].split() == ["sdedit", "-", "2.0", "s", "-", "-"]


def test_every_method_that_can_run_is_enlarged(server: ScriptedServer, photo: Path) -> None:
    """`--super-resolution` names the methods that the server would choose, since each is asked for it by itself."""
    info = scripted_server.server_info()
    info.base_model.super_resolution_width = 512
    server.script("GetServerInfo", info)
    server.script("UploadImage", scripted_server.uploaded)
    can_run = {method: [CAT] for method in ("unitune", "imagic", "textual_inversion", "sdedit")}
    server.script("CheckCompare", scripted_server.compare_events(can_run))
    for _ in range(2):
        server.script("CheckCompare", InvalidField("class_noun", "", "say what kind of thing"))
    server.script("Compare", scripted_server.compare_events({"sdedit": [CAT]}))

    done = compare(server, photo, "a cat", "--super-resolution", "--initial-word=cat")

    assert 0 == done.exit_code, done.output
    entries = server.requests["Compare"][0].methods
    assert methods_of(entries) == ["unitune", "imagic", "textual_inversion", "sdedit"]
    assert all(entry.config.super_resolution and not entry.HasField("tuning_config") for entry in entries)


@pytest.mark.parametrize(
    ("words", "width"),
    [
        (("photo", "a cat", "--super-resolution"), None),
        (("--super-resolution", "photo", "a cat"), None),
        (("photo", "--super-resolution", "a cat"), None),
        (("photo", "a cat", "--super-resolution", "1024"), 1024),
        (("--super-resolution=1024", "photo", "a cat"), 1024),
        (("photo", "a cat", "--super-resolution", "--seed=1"), None),
    ],
)
def test_super_resolution_takes_the_word_after_it_if_that_is_a_number(
    server: ScriptedServer, photo: Path, words: tuple[str, ...], width: int | None
) -> None:
    """It may stand before PHOTO and PROMPT, as a switch without a value may."""
    expect(server, scripted_server.compare_events({"sdedit": [CAT]}))

    given = [str(photo) if word == "photo" else word for word in words]
    done = CliRunner().invoke(main, ["compare", *given, "--methods=sdedit", "--address", server.address])

    assert 0 == done.exit_code, done.output
    (entry,) = server.requests["Compare"][0].methods
    assert entry.config.HasField("super_resolution")
    assert entry.config.super_resolution.HasField("width") == (width is not None)
    assert entry.config.super_resolution.width == (width or 0)


def test_a_comparison_that_is_refused_is_not_begun(server: ScriptedServer, photo: Path) -> None:
    """What the server refuses is told by the options of the command, and nothing is left out in words before."""
    expect(
        server, InvalidField("methods[0].config.super_resolution", "true", "leave it unset: this base model has none")
    )

    done = compare(server, photo, "a cat", "--super-resolution", "--methods=sdedit")

    line = "error: --super-resolution cannot be given: leave it out: this base model has none"
    assert (2, line) == (done.exit_code, done.stderr.strip())


def test_a_prompt_may_have_the_placeholder_itself(server: ScriptedServer, photo: Path) -> None:
    """Then the initial word need not be in it."""
    expect(server, scripted_server.compare_events({"textual_inversion": [CAT]}))

    done = compare(server, photo, "a beikkpic", "--methods=textual_inversion", "--initial-word=cat")

    assert 0 == done.exit_code, done.output
    assert server.requests["Compare"][0].prompt == "a beikkpic"


def test_a_method_that_fails_is_told_and_the_others_are_written(server: ScriptedServer, photo: Path) -> None:
    """It has its words on the sheet and in the table, and the command ends with code 1."""
    lost = DataLoss("the loss was not finite at update 3", reason="TUNING_DIVERGED")
    expect(server, scripted_server.compare_events({"unitune": lost, "sdedit": [CAT]}))

    done = compare(server, photo, "a cat")

    assert 1 == done.exit_code and "Traceback" not in done.output
    assert "unitune: failed: the loss was not finite at update 3" in done.stderr
    picture, sheet, _, failed, _ = done.stdout.splitlines()
    assert CAT == Path(picture).read_bytes() and colours_of(Path(sheet))[(0, 0, 200)] == 256 * 192
    assert failed.split("  ")[0] == "unitune" and failed.endswith("failed: the loss was not finite at update 3")


def test_json_prints_one_object_per_event(server: ScriptedServer, photo: Path) -> None:
    """Events of an edit carry their method, results their figures; pictures are paths, and there is no table."""
    lost = DataLoss("the loss was not finite", reason="TUNING_DIVERGED")
    expect(server, scripted_server.compare_events({"unitune": lost, "sdedit": [CAT]}, scores=SCORES))

    done = compare(server, photo, "a cat", "--json")

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    edit = ["edit_loading", "edit_step", "edit_step"]
    assert [line["event"] for line in lines] == [
        "compare_accepted",
        *["edit_accepted", "tuning_queued", "tuning_progress", *edit, "compare_result"],
        *["edit_accepted", *edit, "compare_result", "result"],
        *["compare_done", "result"],
    ]
    assert lines[0]["methods"] == ["unitune", "sdedit"] and lines[1]["method"] == "unitune"
    failed, good = [line for line in lines if line["event"] == "compare_result"]
    assert (failed["method"], failed["error"]["reason"], failed["images"]) == ("unitune", "TUNING_DIVERGED", [])
    assert (good["method"], good["edit_s"], good["images"][0]["scores"]["kept"]) == ("sdedit", 2.0, 0.88)
    assert "png" not in good["images"][0]
    picture, sheet = [line for line in lines if line["event"] == "result"]
    assert (picture["kind"], picture["method"], picture["seed"]) == ("picture", "sdedit", 0)
    assert sheet["kind"] == "sheet" and Path(sheet["value"]).is_file()


def test_a_server_that_stops_takes_nothing_of_what_is_done(server: ScriptedServer, photo: Path) -> None:
    """The pictures, the sheet and the table of the methods that are done are there; the error is told, code 1. It will
    be away for longer than the command waits."""
    log = scripted_server.compare_events({"sdedit": [CAT], "unitune": [DOG]})
    stopping = to_status(Unavailable("the server is stopping; ask again", reason="DRAINING", retry_after_s=1000))
    expect(server, [*log[:6], edit_pb2.CompareEvent(failed=stopping)])

    done = compare(server, photo, "a cat")

    assert (1, "error: the server is stopping; ask again") == (done.exit_code, done.stderr.splitlines()[-1])
    picture, sheet, _, row = done.stdout.splitlines()
    assert Path(picture).is_file() and Path(sheet).is_file() and row.startswith("sdedit")


def test_an_interrupt_loses_nothing(server: ScriptedServer, photo: Path, tmp_path: Path) -> None:
    """SIGINT ends the stream, leaves pictures, sheet and table of the methods that are done, and code 130.

    The tuning that the comparison began is cancelled; one that was there before goes on.
    """
    hold = Hold()
    log = scripted_server.compare_events({"sdedit": [CAT], "unitune": [DOG]})
    expect(server, [*log[:8], hold])
    accepted = scripted_server.compare_events({"sdedit": [CAT], "unitune": [DOG]})[0]
    accepted.create_time.FromSeconds(1000)
    server.script("CheckCompare", [accepted, edit_pb2.CompareEvent(done=edit_pb2.CompareEvent.Done())])
    image = f"tenants/default/images/{hashlib.sha256(photo.read_bytes()).hexdigest()}"
    listed = []
    for name, seconds, labels in (("t1", 1001, {}), ("t2", 999, {}), ("t3", 1002, {"command": "a"})):
        one = scripted_server.tuning("RUNNING", labels=labels, create_time=Timestamp(seconds=seconds))
        one.name, one.image = f"tenants/default/tunings/{name}", image
        listed.append(one)
    listed.append(scripted_server.tuning("RUNNING", create_time=Timestamp(seconds=1003)))  # of another photo
    listed[-1].name = "tenants/default/tunings/t4"
    server.script("ListTunings", tuning_pb2.ListTuningsResponse(tunings=listed), tuning_pb2.ListTuningsResponse())
    server.script("CancelTuning", listed[0])
    command = [sys.executable, "-m", "unitune_client", "compare", str(photo), "a cat", "--address", server.address]
    environment = os.environ | {"PYTHONPATH": str(Path(unitune_client.__file__).parents[1])}
    said = tmp_path / "said"
    with (
        said.open("w") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, cwd=tmp_path, env=environment
        ) as process,
    ):
        try:
            assert hold.reached.wait(60)
            gives_up_at = time.monotonic() + 60
            while "unitune: ddim" not in said.read_text() and "the tuning waits" not in said.read_text():
                assert time.monotonic() < gives_up_at, said.read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            stdout, _ = process.communicate(timeout=30)
        finally:
            process.kill()

    assert 130 == process.returncode and hold.left.wait(10)
    picture, sheet, head, row = stdout.splitlines()
    assert CAT == (tmp_path / picture).read_bytes()
    assert colours_of(tmp_path / sheet)[(0, 0, 200)] == 256 * 192
    assert head.startswith("method") and row.startswith("sdedit")
    told = said.read_text()
    assert "Traceback" not in told and "t4" not in told
    assert ["tenants/default/tunings/t1"] == [request.name for request in server.requests["CancelTuning"]]
    assert "cancelled tuning tenants/default/tunings/t1\n" in told
    for name in ("t2", "t3"):
        assert f"tenants/default/tunings/{name} goes on: another command made it\n" in told
