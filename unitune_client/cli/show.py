"""`unitune show`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from unitune_client.cli import streams
from unitune_client.cli.path_option import PathOption
from unitune_client.cli.record import KEYWORD, SHEET_KEYWORD, parsed, pictures_of_sheet, texts_of

TITLES = {
    "prompt": "prompt",
    "seed": "seed",
    "sampled_seed": "seed that the CLIP filter took",
    "method": "method",
    "sampling": "settings",
    "chosen": "chosen by automatic",
    "tuning": "tuning",
    "base_model": "base model",
    "picture": "photo",
    "mask": "mask",
    "software": "made by",
}


@click.command("show")
@click.argument("picture", type=PathOption())
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, as it is in the file.")
def show_command(picture: str, as_json: bool) -> None:
    """Say how PICTURE, a PNG file by UniTune, was made: prompt, seed, settings, tuning, model.

    Of a contact sheet it prints the names of the pictures.

    `unitune edit PHOTO --like PICTURE` makes it again, or another one like it.

    \b
    Examples:
      unitune show "out/cat--a-dog-on-a-beach--seed0.png"
      unitune show out/cat--a-dog--seed0.png --json
    """
    texts = texts_of(picture, "PICTURE")
    if (pictures := pictures_of_sheet(texts)) is not None:
        lines = [texts[SHEET_KEYWORD]] if as_json else ["a contact sheet of UniTune, of these pictures:", *pictures]
        streams.print_result(printable("\n".join(lines)))
        return
    if KEYWORD not in texts and "parameters" in texts and not as_json:
        streams.print_result(f"not made by UniTune; it says of itself:\n{printable(texts['parameters'])}")
        return
    record = parsed(texts, picture, "PICTURE")
    if as_json:
        streams.print_result(json.dumps(record.facts, sort_keys=True))
        return
    width = max(map(len, TITLES.values()))
    for name, title in TITLES.items():
        for line in lines_of(record.facts[name]) if name in record.facts else ():
            streams.print_result(f"{title.ljust(width)}  {line}")
            title = ""


def lines_of(value: Any) -> Iterator[str]:
    """A value for people, a line for each of its parts."""
    if not isinstance(value, Mapping):
        yield printable(str(value))
        return
    for name in sorted(value):
        inner = value[name]
        if name == "config" and isinstance(inner, Mapping):
            yield from lines_of(inner)
        else:
            shown = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            yield printable(f"{name} {shown}")


def printable(text: str) -> str:
    """The text with control characters as numbers: a terminal would obey them, and anybody may make a picture."""
    return "".join(sign if sign.isprintable() or sign == "\n" else f"\\x{ord(sign):02x}" for sign in text)
