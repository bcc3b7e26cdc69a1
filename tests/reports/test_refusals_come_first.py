"""What a real server refuses is told in the words of the command line, before any tuning begins."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.reports.conftest import Done, Unitune
from unitune_client import Client
from unitune_client.cli.main import main
from unitune_client.local.services import LocalServices

P2P = "--method=prompt_to_prompt"
NINE_SEEDS = tuple(f"--seed={number}" for number in range(9))
LONG = "x" * 2001


@pytest.fixture
def unitune(command_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unitune:
    """The command line in this process, which saves the seconds that each start of Python takes."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments], env=command_environment)
        return Done([], done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def masks(tmp_path: Path, photo: Path) -> None:
    """white.png, black.png and other.png, which is not as large as the photo."""
    size = Image.open(photo).size
    for name, value, sides in (("white", 255, size), ("black", 0, size), ("other", 255, size[::-1])):
        Image.new("L", sides, value).save(tmp_path / f"{name}.png")


def tunings_of(services: LocalServices) -> int:
    """How many tunings there are."""
    with Client(services.address) as client:
        return len(list(client.list_tunings()))


def assert_refused(done: Done, line: str) -> None:
    """The command ends with 2 and one line, which begins so, and says no field of the API."""
    told = done.stderr.strip().splitlines()[-1]
    assert (2, "") == (done.returncode, done.stdout), done.stderr
    assert told.startswith(f"error: {line}") and len(told) > len(f"error: {line}") - 2, told
    assert not re.search(r"\bconfig\b|\bunset\b", told) and "Traceback" not in done.stderr
    assert "tuning:" not in done.stderr and "comparing" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a dog", "--scheduler=pndm"), "--scheduler is 'pndm': "),
        (("a dog", "--method=magic"), "--method is 'magic': "),
        (("a dog", P2P), "--base-prompt is missing: "),
        (("a dog", "--cross-replace=0.5"), "--cross-replace is 0.5: leave it out: "),
        (("a dog", "--method=sdedit", "--blend=dog"), "--blend cannot be given: leave it out: "),
        (("a dog", "--fast", "--steps=4"), "--steps is 4: leave it out: "),
        (("a dog", "--fast", "--automatic"), "--automatic cannot be given: give --no-automatic: "),
        (("a dog", "--fast", "--method=sdedit"), "--fast cannot be given: leave it out: "),
        (("a dog", "--clip-filter"), "--clip-filter cannot be given: leave it out: "),
        (("a dog", "--automatic"), "--automatic cannot be given: give --no-automatic: "),
        ((" ",), "PROMPT is blank: "),
        ((LONG,), "PROMPT has 2001 characters: "),
        (("a dog", LONG), "PROMPT has 2001 characters: "),
        (("a dog", *NINE_SEEDS), "--seed is given 9 times: give at most 8"),
        (("a dog", "--prompt-guidance=3"), "--base-prompt is missing: "),
        (
            ("a dog", "--base-prompt=a cat"),
            "--base-prompt is 'a cat': give --prompt-guidance or --mask-source diffedit, ",
        ),
        (("a dog", "--negative-prompt", LONG), "--negative-prompt has 2001 characters: "),
        (("a dog", "--base-prompt", LONG), "--base-prompt has 2001 characters: "),
        (("a dog", "--repeats=2"), "--repeats is 2: leave it out: "),
        (("a dog", "--eta=1"), "--eta is 1.0: leave it out: "),
        (("a dog", "--guidance-interval", "9", "0.5"), "--guidance-interval is 0.5: it must be above LOW, 9"),
        (("a dog", "--mask-text=the"), "--mask-text is 'the': "),
        (("a dog", "--mask-text", LONG), "--mask-text has 2001 characters: "),
        (("a dog", "--mask-source=attention"), "--mask-text is missing: "),
        (
            ("a dog", "--mask-text=cat", "--mask-source=diffedit"),
            "--mask-text is 'cat': leave it out, since --mask-source is diffedit, or choose word or attention",
        ),
        (("a\x01dog",), "PROMPT has U+0001 as character 2: leave it out: it is a control character"),
        (("a dog", "--negative-prompt=\x7f"), "--negative-prompt has U+007F as character 1: "),
        (("a dog", P2P, "--base-prompt=a cat", "--weight", "cow", "2"), "--weight is 'cow': name a word of the prompt"),
        (("a dog", P2P, "--base-prompt=a cat", "--blend=cow"), "--blend is 'cow': name a word of prompt or --base-p"),
        (("a dog", P2P, "--base-prompt=a cat", "--blend=dog", "--blend=\x1b"), "--blend has U+001B as character 1: "),
        (("a dog", "--mask-source=given"), "--mask is missing: --mask-source given needs the PNG of a mask; "),
        (("a dog", "--mask=white.png", "--mask-source=diffedit"), "--mask has "),
        (("a dog", "--only-masked"), "--only-masked cannot be given: leave it out, or give a mask"),
        (("a dog", "--mask-blur=2"), "--mask-blur is 2.0: leave it out, or give a mask"),
        (("a dog", "--mask=black.png"), "--mask is all black: "),
        (("a dog", "--mask=other.png"), "--mask is 44x60 pixels: "),
        (("a dog", "--inverted"), "--inverted cannot be given: leave it out: "),
        (("a dog", "--inverted", "--mask=white.png", "--seed=1", "--seed=2"), "--seed is given 2 times: give one: "),
        (
            ("a dog", "--inverted", "--mask=white.png", P2P, "--base-prompt=a cat"),
            "--inverted cannot be given: leave it out: ",
        ),
        (("a dog", "--method=dreambooth"), "--class-noun is missing: "),
        (("a cat", "--method=dreambooth", "--class-noun=cat"), "PROMPT is 'a cat': "),
        (("a beikkpic", "--method=dreambooth", "--class-noun=cat"), "PROMPT is 'a beikkpic': "),
        (("a beikkpic category", "--method=dreambooth", "--class-noun=cat"), "PROMPT is 'a beikkpic category': "),
        (("a beikkpic cat", "a cat", "--method=dreambooth", "--class-noun=cat"), "PROMPT is 'a cat': "),
        (("a cat", "--method=textual_inversion"), "--initial-word is missing: "),
        (("a cat", "--method=textual_inversion", "--initial-word=cat"), "PROMPT is 'a cat': "),
        (
            ("a cat", "--method=sdedit", "--updates=3", "--mode=lora"),
            "--updates, --mode cannot be given: leave them out: ",
        ),
        (
            ("a cat", "--method=sdedit", "--photo=white.png"),
            "--photo cannot be given: leave it out: ",
        ),
        (("a cat", "--photo=white.png"), "--photo is 2 images in all: "),
    ],
)
@pytest.mark.usefixtures("masks")
def test_an_edit_is_refused_by_the_server_before_its_tuning(
    unitune: Unitune, photo: Path, services: LocalServices, arguments: tuple[str, ...], line: str
) -> None:
    """One line names the option, what is wrong and what to do; no tuning was made."""
    before = tunings_of(services)
    refused = unitune("edit", photo, *arguments)
    assert_refused(refused, line)
    assert before == tunings_of(services)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a cat", "--methods=unitune,magic"), "--methods is 'magic': "),
        (("a cat", "--methods="), "--methods is '': "),
        (("a cat", "--methods=prompt_to_prompt"), "--base-prompt is missing: "),
        (
            ("a cat", "--methods=sdedit", "--base-prompt=a dog"),
            "--base-prompt is 'a dog': leave it out, or name p",
        ),
        (("a cat", "--methods=sdedit,unitune,sdedit"), "--methods is 'sdedit': name each method once"),
        ((" ",), "PROMPT is blank: "),
        (("a cat", "--methods=dreambooth"), "--class-noun is missing: "),
        (("a cat", "--methods=textual_inversion"), "--initial-word is missing: "),
        (("a cat", "--methods=sdedit", "--class-noun=cat"), "--class-noun is 'cat': leave it out, or name dreambooth"),
        (("a cat", "--class-noun=dog"), "PROMPT is 'a cat': it must have 'dog' in it, "),
        (("a cat", *NINE_SEEDS, "--methods=sdedit"), "--seed is given 9 times: give at most 8"),
        (("a cat", *NINE_SEEDS), "--seed is given 9 times: give at most 8"),
    ],
)
def test_a_comparison_is_refused_by_the_server_before_anything(
    unitune: Unitune, photo: Path, services: LocalServices, arguments: tuple[str, ...], line: str
) -> None:
    """One line names the option, what is wrong and what to do; no tuning was made."""
    before = tunings_of(services)
    refused = unitune("compare", photo, *arguments)
    assert_refused(refused, line)
    assert before == tunings_of(services)
