"""The command line as a program: odd bytes, full disks, closed pipes, warnings, addresses, options."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from PIL import Image

from tests.reports.conftest import Unitune
from unitune.errors import InvalidField
from unitune_client import Client
from unitune_client.cli.main import libraries_kept_quiet, main
from unitune_client.cli.options import shown
from unitune_client.cli.path_option import PathOption

NOT_UTF8 = os.fsdecode(b"f\xff\xe9")  # as a Latin-1 system wrote it
QUICK = ("--method", "sdedit", "--steps", "2", "--no-automatic")


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, under its name."""
    if isinstance(command, click.Group):
        for below, one in command.commands.items():
            yield from leaves(one, f"{name} {below}".strip())
    else:
        yield name, command


COMMANDS = dict(leaves(main))


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=["UTF-8", "C", "ascii"],
)
def test_a_path_comes_out_as_its_own_bytes(unitune: Unitune, photo: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """A photo and a folder whose names are no UTF-8 work, and stdout has the bytes of the paths (N15, N16)."""
    photo.rename(tmp_path / f"{NOT_UTF8}.png")
    out = os.fsdecode(b"out\xc3\xa9\xff")

    done = unitune("edit", f"{NOT_UTF8}.png", "a cat", *QUICK, "-o", out, env=env, text=False)
    told = unitune("edit", f"{NOT_UTF8}.png", "a dog", *QUICK, "-o", out, "--json", env=env, text=False)

    assert 0 == done.returncode, done.stderr
    printed = done.stdout.splitlines()
    assert 2 == len(printed) and all(path.startswith(b"out\xc3\xa9\xff/f\xff\xe9--") for path in printed)
    assert set(printed) <= {b"out\xc3\xa9\xff/" + os.fsencode(name) for name in os.listdir(tmp_path / out)}
    results = [line for line in map(json.loads, told.stdout.splitlines()) if line["event"] == "result"]
    assert 2 == len(results) and all((tmp_path / os.fsdecode(os.fsencode(line["value"]))).is_file() for line in results)


@pytest.mark.parametrize("name", COMMANDS)
def test_words_that_are_no_text_are_refused_by_name(name: str) -> None:
    """Every argument and option of words refuses bytes that are no UTF-8, and every path takes them (N15)."""
    for param in COMMANDS[name].params:
        kinds = param.type.types if isinstance(param.type, click.Tuple) else [param.type]
        for kind in kinds:
            if isinstance(kind, PathOption):
                assert kind.convert(NOT_UTF8, param, None) == NOT_UTF8
            elif not isinstance(kind, click.types.BoolParamType):
                with pytest.raises((InvalidField, click.BadParameter)) as raised:
                    kind.convert(NOT_UTF8, param, None)
                assert isinstance(raised.value, click.BadParameter) or shown(param) in raised.value.message


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("edit", "photo.png", NOT_UTF8), "PROMPT"),
        (("edit", "photo.png", "a cat", "--base-prompt", NOT_UTF8, "--json"), "--base-prompt"),
        (("compare", "photo.png", NOT_UTF8), "PROMPT"),
        (("tune", "photo.png", "--rare-tokens", NOT_UTF8), "--rare-tokens"),
        (("tunings", "watch", NOT_UTF8), "NAME"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_such_a_prompt_is_one_clear_line(unitune: Unitune, photo: Path, arguments: tuple[str, ...], name: str) -> None:
    """It ends with 2, in a C locale too, and without a traceback (N15)."""
    done = unitune(*arguments, env={"LC_ALL": "C"})

    remedy = "it has bytes that are no text in this terminal's encoding; type it again as UTF-8"
    assert (2, f"error: {name} is 'f\\udcff\\udce9': {remedy}\n") == (done.returncode, done.stderr)


def test_arguments_that_nobody_knows_are_one_line(unitune: Unitune) -> None:
    """Whatever the bytes, a wrong command or option is told (N15)."""
    command, option = unitune(NOT_UTF8), unitune("edit", f"--{NOT_UTF8}")

    assert (2, 2) == (command.returncode, option.returncode)
    assert all(one.stderr.startswith("error: No such ") and 1 == one.stderr.count("\n") for one in (command, option))


@pytest.mark.parametrize(
    "arguments", [("tunings", "list", "--json"), ("tunings", "list"), ("doctor",), ("--help",), ("edit", "--help")]
)
def test_an_output_that_is_full_is_told(
    unitune: Unitune, client: Client, photo: Path, arguments: tuple[str, ...]
) -> None:
    """`> /dev/full` is one line and 1, for results, for JSON and for help (N15)."""
    client.create_tuning(photo, updates=0)
    with open("/dev/full", "w") as full:
        done = unitune(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)

    assert (1, "error: standard output cannot be written: No space left on device\n") == (done.returncode, done.stderr)


@pytest.mark.parametrize("arguments", [("tunings", "list", "--json"), ("doctor",), ("edit", "--help")])
def test_an_output_that_nobody_reads_ends_quietly(
    unitune: Unitune, client: Client, photo: Path, arguments: tuple[str, ...]
) -> None:
    """As in `| head`, the command ends as by SIGPIPE, and says nothing (N15)."""
    client.create_tuning(photo, updates=0)
    ours, theirs = os.pipe()
    os.close(ours)

    done = unitune(*arguments, capture_output=False, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)

    assert "" == done.stderr
    assert done.returncode in (141, 1) if "--help" in arguments else done.returncode == 141


def test_streams_that_are_closed_do_no_harm(
    command_environment: dict[str, str], client: Client, photo: Path, tmp_path: Path
) -> None:
    """`>&-` and `2>&-` take the words away, and nothing else (N15)."""
    tuning = client.create_tuning(photo, updates=0)
    outcomes = {}
    for closed in (">&-", "2>&-", "2>/dev/full"):
        command = f'"{sys.executable}" -m unitune_client tunings list {closed}'
        outcomes[closed] = subprocess.run(
            ["bash", "-c", command], env=command_environment, cwd=tmp_path, capture_output=True, text=True
        )

    assert dict.fromkeys(outcomes, 0) == {closed: done.returncode for closed, done in outcomes.items()}
    assert "" == outcomes[">&-"].stdout and tuning.name in outcomes["2>&-"].stdout
    assert all("Traceback" not in done.stderr for done in outcomes.values())


def test_a_warning_of_pillow_is_not_in_the_output(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """A mask of 90 megapixels, at which Pillow warns, is refused in one sentence of ours (N24)."""
    Image.new("1", (9500, 9500), 1).save(tmp_path / "mask.png")

    done = unitune("edit", photo, "a cat", *QUICK, "--mask", "mask.png")

    assert 2 == done.returncode and "--mask is" in done.stderr
    assert "Warning" not in done.stderr and "bomb" not in done.stderr


def test_a_warning_of_a_library_is_one_sentence(recwarn: pytest.WarningsRecorder) -> None:
    """It is said once, on one line, without the file and the line of the library (N24)."""
    said: list[str] = []
    with libraries_kept_quiet(said.append):
        for _ in range(2):
            warnings.warn("the palette\n  is odd", UserWarning, stacklevel=1)
            warnings.warn("too many pixels", Image.DecompressionBombWarning, stacklevel=1)

    assert ["warning: the palette is odd"] == said


@pytest.mark.parametrize("name", ["edit", "compare", "tunings export"])
def test_the_folder_for_results_has_the_same_names_everywhere(name: str) -> None:
    """-o, --out and --output are one option of every command that writes (N25)."""
    (option,) = [param for param in COMMANDS[name].params if "-o" in param.opts]

    assert ["-o", "--out", "--output"] == option.opts


@pytest.mark.parametrize(
    ("address", "example"),
    [
        ("127.0.0.1", "127.0.0.1:50051"),
        ("localhost", "localhost:50051"),
        ("http://localhost:7000/", "localhost:7000"),
        ("https://edits.example.com", "edits.example.com:50051"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("localhost:0", "localhost:50051"),
        ("localhost:http", "localhost:50051"),
        ("", "127.0.0.1:50051"),
    ],
)
def test_an_address_without_a_port_is_told_at_once(address: str, example: str) -> None:
    """The SDK and every command say what an address is, with an example near to what was given (N25)."""
    with pytest.raises(InvalidField, match=r"^address is .*: give HOST:PORT") as raised:
        Client(address)
    assert raised.value.metadata["remedy"].endswith(f"such as {example}")
    for command in COMMANDS.values():
        for param in command.params:
            if "--address" in param.opts:
                with pytest.raises(InvalidField, match=r"^--address is "):
                    param.type.convert(address, param, None)


@pytest.mark.parametrize("address", ["unix:/run/unitune", "unix:///run/unitune", "dns:///host:1", "[::1]:9", "a.b:443"])
def test_every_right_form_of_an_address_is_taken(address: str) -> None:
    """Sockets of Unix and names that grpc resolves are addresses (N25)."""
    Client(address).close()


def test_a_range_that_leaves_out_its_end_says_so(unitune: Unitune, photo: Path) -> None:
    """--learning-rate is above 0 (N25)."""
    done = unitune("tune", photo, "--learning-rate", "0")

    assert (2, "error: --learning-rate is '0': give a number above 0, to 0.1\n") == (done.returncode, done.stderr)
