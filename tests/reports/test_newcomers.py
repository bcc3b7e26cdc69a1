"""What a newcomer tripped over at the command line: words that said too little, came too late, or were untrue."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.reports.conftest import PATIENCE_S, Unitune
from unitune_client import Client

QUICK = ("--steps=3", "--strength=0.7", "--no-automatic")
SDEDIT = ("--method=sdedit", *QUICK)


@pytest.fixture
def unitune(unitune_in_process: Unitune) -> Unitune:
    """Commands here run in this process."""
    return unitune_in_process


@pytest.mark.parametrize(
    ("kind", "argument"), [("JPEG", "PHOTO"), ("PNG", "PHOTO"), ("WebP", "--photo"), ("PNG", "--mask")]
)
def test_a_cut_picture_is_refused_before_services_start(
    unitune: Unitune, photo: Path, tmp_path: Path, kind: str, argument: str
) -> None:
    """Its file is looked through first: no service starts for it, and no folder is made."""
    file = io.BytesIO()
    Image.effect_noise((200, 150), 90).save(file, kind)
    (tmp_path / "cut").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    words = ["cut", "a cat"] if argument == "PHOTO" else [photo, "a cat", argument, "cut"]

    done = unitune("edit", *words, env={"UNITUNE_ADDRESS": None})

    line = (
        rf"error: {argument} is 'cut': it is a {kind} of \d+ bytes; the file is damaged or cut short.*; give it whole"
    )
    assert re.fullmatch(line, done.stderr.strip()) and done.returncode == 2, done.stderr
    assert not (tmp_path / "home").exists() and not (tmp_path / "out").exists()


def test_prompts_of_single_words_look_like_forgotten_quotes(unitune: Unitune, photo: Path) -> None:
    """Three or more are warned of, before anything else is told, and edited all the same; two are two prompts."""
    three, two = unitune("edit", photo, "cow", "dog", "cat", *SDEDIT), unitune("edit", photo, "cat", "dog", *SDEDIT)

    line = "warning: 3 prompts of one word each; put quotes around a prompt of several words"
    assert (0, line, 4) == (three.returncode, three.stderr.splitlines()[0], len(three.stdout.splitlines()))
    assert two.returncode == 0 and "put quotes" not in two.stderr


@pytest.mark.parametrize(
    ("words", "wrong", "meant"),
    [
        (("a", "red", "cat"), "a", "a red cat"),
        (("The", "cat"), "The", "The cat"),
        (("cat", "on", "beach"), "on", "cat on beach"),
        (("a dog", "a", "cow"), "a", "a cow"),
    ],
)
def test_a_word_that_is_no_prompt_is_refused_before_services_start(
    unitune: Unitune, photo: Path, tmp_path: Path, words: tuple[str, ...], wrong: str, meant: str
) -> None:
    """Quotes were forgotten; the refusal shows them in their place. No service starts, and no folder is made."""
    done = unitune("edit", photo, *words, *SDEDIT, env={"UNITUNE_ADDRESS": None})

    remedy = f'that describes no picture; put quotes around a prompt of several words: "{meant}"'
    assert (2, f"error: PROMPT is '{wrong}': {remedy}") == (done.returncode, done.stderr.strip())
    assert not (tmp_path / "home").exists() and not (tmp_path / "out").exists()


def test_a_comparison_without_quotes_is_told_so(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """It takes one prompt, and a shell gives it several."""
    done = unitune("compare", photo, "a", "red", "cat", env={"UNITUNE_ADDRESS": None})

    remedy = 'there can be one prompt; put quotes around it: "a red cat"'
    assert (2, f"error: PROMPT has 3 parts: {remedy}") == (done.returncode, done.stderr.strip())
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("command", "option", "word", "known"),
    [
        ("compare", "--methods", "unitune,magic", "unitune, imagic, "),
        ("edit", "--method", "magic", "unitune, imagic, "),
        ("edit", "--scheduler", "pndm", "ddim, "),
        ("edit", "--inversion", "magic", "direct, ddim, "),
        ("tune", "--mode", "most", "full, attn_out, lora"),
    ],
)
def test_an_unknown_choice_is_refused_before_services_start(
    unitune: Unitune, photo: Path, tmp_path: Path, command: str, option: str, word: str, known: str
) -> None:
    """The contract lists the choices, so no server has to be asked: none starts, and no folder is made."""
    prompt = [] if command == "tune" else ["a cat"]

    done = unitune(command, photo, *prompt, option, word, env={"UNITUNE_ADDRESS": None})

    wrong = word.rpartition(",")[2]
    assert done.stderr.startswith(f"error: {option} is '{wrong}': it must be one of {known}"), done.stderr
    assert 2 == done.returncode and 1 == len(done.stderr.splitlines())
    assert not (tmp_path / "home").exists() and not (tmp_path / "out").exists()


def test_a_later_prompt_is_refused_before_the_first_is_tuned(client: Client, unitune: Unitune, photo: Path) -> None:
    """`unitune tune` has every tuning checked before it begins one."""
    before = {tuning.name for tuning in client.list_tunings()}

    done = unitune("tune", photo, "--method=imagic", "--prompt=a cat", "--prompt= ", "--updates=1")

    assert 2 == done.returncode and "--prompt is blank: " in done.stderr, done.stderr
    assert before == {tuning.name for tuning in client.list_tunings()}


def test_a_sheet_says_what_it_is(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """`show` tells that it is a contact sheet, and of which pictures; --like asks for one of them."""
    made = unitune("edit", photo, "a cat", "a dog", *SDEDIT)
    compared = unitune("compare", photo, "a cat", "--methods=sdedit")
    *paths, sheet = made.stdout.splitlines()
    names = [Path(path).name for path in paths]

    told = unitune("show", sheet).stdout.splitlines()
    of_comparison = unitune("show", compared.stdout.splitlines()[1]).stdout.splitlines()
    facts = json.loads(unitune("show", sheet, "--json").stdout)
    refused = unitune("edit", photo, "--like", sheet)
    bare = unitune("edit", photo, "a cat", *SDEDIT, "--no-metadata", "-o", "bare").stdout.splitlines()[-1]

    assert told == ["a contact sheet of UniTune, of these pictures:", *names]
    assert of_comparison[1:] == [Path(compared.stdout.splitlines()[0]).name]
    assert facts == {"version": 1, "what": "sheet", "pictures": names}
    assert (
        refused.stderr.strip()
        == f"error: --like is '{sheet}': it is a contact sheet; give one of its pictures, such as {names[0]}"
    )
    assert unitune("show", bare).returncode == 2


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (
            "--strength=0.1",
            "strength 0.1 of 3 steps leaves none, so nothing is edited: give --strength 0.33 or more, or raise --steps",
        ),
        (
            "--negative-prompt=<|endoftext|>",
            "--negative-prompt does nothing: nothing of it is a word that the base model reads",
        ),
    ],
)
def test_a_warning_names_options(unitune: Unitune, photo: Path, option: str, line: str) -> None:
    """It does not name fields of the API; with --json neither."""
    done = unitune("edit", photo, "a cat", *SDEDIT, option)
    told = unitune("edit", photo, "a cat", *SDEDIT, option, "--json")

    assert 0 == done.returncode and f"warning: {line}" in done.stderr.splitlines(), done.stderr
    events = [json.loads(event) for event in told.stdout.splitlines()]
    assert line in [event["text"] for event in events if event["event"] == "warning"]


def test_a_tuning_without_updates_is_warned_of(unitune: Unitune, photo: Path) -> None:
    """--updates 0 leaves the base model as it is, which the command says; phases that have some are no such case."""
    nothing = unitune("tune", photo, "--updates=0")
    imagic = unitune("tune", photo, "--method=imagic", "--prompt=a cat", "--updates=0", "--embedding-updates=1")

    assert 0 == nothing.returncode and "warning: the tuning has no updates" in nothing.stderr, nothing.stderr
    assert 0 == imagic.returncode and "no updates" not in imagic.stderr, imagic.stderr


def test_waiting_and_tuning_are_two_times(client: Client, unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """The seconds until a tuner takes the tuning are not told as seconds of tuning."""
    other = tmp_path / "other.png"
    Image.effect_noise((60, 44), 50).convert("RGB").save(other)
    first = client.create_tuning(other, updates=60)

    done = unitune("tune", photo, "--updates=1")

    told = re.search(r"waited (\S+) s for a turn, tuned in (\S+) s", done.stderr)
    assert told is not None and done.returncode == 0, done.stderr
    before, own = client.get_tuning(first.name), client.get_tuning(done.stdout.strip())
    assert before.end_time is not None and own.create_time is not None
    assert own.start_time is not None and own.end_time is not None
    waited_s, tuned_s = (
        (own.start_time - own.create_time).total_seconds(),
        (own.end_time - own.start_time).total_seconds(),
    )
    assert waited_s > 1, "the other tuning ended too soon to wait for"
    assert abs(float(told[1]) - waited_s) < 1.5 and abs(float(told[2]) - tuned_s) < 1.5


@pytest.mark.parametrize(
    ("options", "tunings"),
    [
        (("--updates=1",), 1),
        (("--method=imagic", "--updates=1", "--embedding-updates=1"), 2),
        (("--method=textual_inversion", "--initial-word=cat", "--updates=1"), 1),
        (("--method=dreambooth", "--class-noun=cat", "--class-images=1", "--photo=further.png", "--updates=1"), 1),
        (("--method=prompt_to_prompt", "--inversion=null_text", "--base-prompt=a dog", "--updates=1"), 1),
    ],
    ids=["unitune", "imagic", "textual_inversion", "dreambooth", "null_text"],
)
def test_edits_of_two_prompts_make_no_tuning_too_many(
    client: Client, unitune: Unitune, photo: Path, tmp_path: Path, options: tuple[str, ...], tunings: int
) -> None:
    """Each edit carries photo and tuning settings, as it was validated, and finds the tuning that the command made."""
    Image.effect_noise((60, 44), 50).convert("RGB").save(tmp_path / "further.png")
    before = {tuning.name for tuning in client.list_tunings()}

    done = unitune("edit", photo, "a beikkpic cat", "one beikkpic cat", "--steps=3", "--no-automatic", *options)

    assert 0 == done.returncode and 3 == len(done.stdout.splitlines()), done.stderr
    assert tunings == len({tuning.name for tuning in client.list_tunings()} - before)


def test_a_comparison_of_named_methods_leaves_none_out(unitune: Unitune, photo: Path) -> None:
    """Nothing is said of methods that the user did not name."""
    named = unitune("compare", photo, "a cat", "--methods=sdedit", "--seed=1")

    assert named.returncode == 0 and "left out" not in named.stderr


def interrupted(
    arguments: list[str], environment: dict[str, str], tmp_path: Path, is_time: Callable[[str], bool]
) -> tuple[int, str]:
    """Run `unitune`, send SIGINT once it has said so, and return its code and all that it said."""
    said = tmp_path / "said"
    command = [sys.executable, "-m", "unitune_client", *arguments]
    with (
        said.open("w") as file,
        subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=file) as process,
    ):
        try:
            gives_up_at = time.monotonic() + PATIENCE_S
            while not is_time(said.read_text()):
                assert process.poll() is None and time.monotonic() < gives_up_at, said.read_text()
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            code = process.wait(PATIENCE_S)
        finally:
            process.kill()
    return code, said.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "photo.png", "a cat"], "unitune: tuning: "),
        (
            ["edit", "photo.png", "a cat", "--method=prompt_to_prompt", "--base-prompt=a dog", "--inversion=null_text",
             "--updates=5000", "--guidance=3"],
            "tuning: ",
        ),
    ],
    ids=["compare", "null_text"],
)  # fmt: skip
def test_ctrl_c_cancels_a_tuning_that_the_server_began(
    client: Client, photo: Path, command_environment: dict[str, str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    """As `unitune edit` does with its own: no tuning goes on unsaid. A comparison says first which methods it leaves
    out, and why.
    """
    before = {tuning.name for tuning in client.list_tunings()}

    code, said = interrupted(arguments, command_environment, tmp_path, lambda told: words in told)

    (made,) = [tuning for tuning in client.list_tunings() if tuning.name not in before]
    assert 130 == code and f"cancelled tuning {made.name}\n" in said, said
    gives_up_at = time.monotonic() + PATIENCE_S
    while client.get_tuning(made.name).state != "CANCELLED":
        assert time.monotonic() < gives_up_at
        time.sleep(0.1)
    if arguments[0] == "compare":
        needed = {
            "dreambooth": "--class-noun",
            "prompt_to_prompt": "--base-prompt",
            "textual_inversion": "--initial-word",
        }
        lines = [f"{method} is left out: it needs {option}" for method, option in needed.items()]
        assert lines == [line for line in said.splitlines() if "left out" in line]
