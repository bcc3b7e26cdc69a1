"""`unitune compare`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click

from unitune.errors import InvalidField
from unitune.options import SAMPLING, options_of
from unitune.v1.edit_pb2 import CompareRequest
from unitune_client import events
from unitune_client.cli.cancellation import TUNING_EVENTS, cancel_tunings_of
from unitune_client.cli.connection import connection
from unitune_client.cli.display import Display, display
from unitune_client.cli.edit import say_what_the_model_knows
from unitune_client.cli.flags import Flags, in_words
from unitune_client.cli.options import (
    Choices,
    SwitchCommand,
    field_option,
    output_option,
    result_options,
    seed_option,
    server_options,
    super_resolution_of,
    super_resolution_option,
)
from unitune_client.cli.outputs import Outputs, folder_of, slug
from unitune_client.cli.path_option import PathOption
from unitune_client.cli.photo_files import read_photo
from unitune_client.cli.quotes import one_prompt
from unitune_client.cli.sheet import SheetEdit, comparison_sheet, sheet_file
from unitune_client.client import Client
from unitune_client.options import EditOptions

COMPARE = options_of(CompareRequest)
FAILED = 1  # exit code when a method had no pictures

EXAMPLES = """
\b
Examples:
  unitune compare cat.png "a cat on a beach"
  unitune compare cat.png "a cat on a beach" --methods unitune,sdedit --seed 1 --seed 2
  unitune compare cat.png "a cat on a beach" --class-noun cat --initial-word cat -o out
"""


@click.command("compare", cls=SwitchCommand, epilog=EXAMPLES)
@click.argument("photo", type=PathOption())
@click.argument("prompts", metavar='"PROMPT"', nargs=-1, required=True)
@output_option
@result_options
@click.option(
    "--methods",
    metavar="A,B,...",
    type=Choices(SAMPLING["method"]),
    help=f"{', '.join(SAMPLING['method'].choices)}.  [default: every one that can run]",
)
@field_option(COMPARE["class_noun"], metavar="WORD")
@field_option(COMPARE["initial_word"], metavar="WORD")
@field_option(COMPARE["base_prompt"], metavar="TEXT")
@super_resolution_option
@seed_option
@server_options
def compare_command(
    photo: str,
    prompts: tuple[str, ...],
    output: str,
    overwrite: bool,
    omit_metadata: bool,
    methods: list[str] | None,
    class_noun: str | None,
    initial_word: str | None,
    base_prompt: str | None,
    super_resolution: int | None,
    seeds: tuple[int, ...],
    address: str | None,
    base_model: str | None,
    as_json: bool,
) -> None:
    """Edit PHOTO by PROMPT with several methods, each at the base model's own settings, to see which one suits.

    PROMPT is in plain words: rare tokens and placeholders are put in. Methods run one after the other. One that fails
    does not stop the others, but makes the exit code 1. Without --methods the command says which methods it leaves
    out, and what they need.

    The pictures, and one sheet with a column per method, go into OUT. Their paths and a table are printed. A tuning
    that exists is used, and one that was made serves later edits. Ctrl-C cancels the tuning that runs; what is done
    by then is written and printed.
    """
    prompt, data = one_prompt(prompts), read_photo(photo)
    outputs = Outputs(folder_of(output), photo, overwrites=overwrite)
    named = methods or []
    asked: dict[str, Any] = {"class_noun": class_noun, "initial_word": initial_word, "base_prompt": base_prompt}
    asked["seeds"] = list(dict.fromkeys(seeds))
    own = cast(EditOptions, super_resolution_of(super_resolution))
    with display(as_json) as show, connection(address, base_model, show.say) as client:
        info = client.server_info()
        say_what_the_model_knows(info, show, address)
        image = client.upload_image(data)
        accepted = client.check_compare(image, prompt, named or None, **asked)
        if not named:
            say_what_is_left_out(client, image, prompt, set(info.methods) - set(accepted.methods), asked, show)
            if super_resolution is not None:  # every method has the option, so each must be named
                named = list(accepted.methods)
        entries = dict.fromkeys(named, own) or None
        comparison = client.compare(image, prompt, entries, omit_metadata=omit_metadata, **asked)
        results, paths = list[events.CompareResult](), list[Path]()
        is_tuning = False
        try:
            for event in comparison:
                if isinstance(event, events.CompareEdit):
                    show.event(event.event, method=event.method)
                    is_tuning = isinstance(event.event, TUNING_EVENTS)
                    continue
                show.event(event)
                if isinstance(event, events.CompareResult):
                    is_tuning = False
                    results.append(event)
                    paths += save_pictures(event, outputs, prompt, show)
        except KeyboardInterrupt:
            if is_tuning:
                cancel_tunings_of(client, image.name, accepted.create_time, show)
            raise
        finally:  # an interrupt, or a server that is lost, takes nothing of what is done
            if results:
                sheet = comparison_sheet(data, [column_of(result) for result in results])
                file = sheet_file(sheet, paths, omit_metadata=omit_metadata)
                show.result(str(outputs.save(file, slug(prompt), "methods")), kind="sheet")
                show.table(table_of(results))
    if any(result.error is not None for result in results):
        raise click.exceptions.Exit(FAILED)


def say_what_is_left_out(
    client: Client,
    image: events.Image,
    prompt: str,
    methods: Iterable[str],
    asked: Mapping[str, Any],
    show: Display,
) -> None:
    """Say which methods a comparison leaves out, and what each of them needs, as the server says it."""
    flags = Flags(click.get_current_context().command)
    for method in sorted(methods):
        try:
            client.check_compare(image, prompt, [method], **asked)
        except InvalidField as error:
            needed = flags.option_of(error.field or "") or error.field
            show.say(f"{method} is left out: it needs {needed}")


def save_pictures(result: events.CompareResult, outputs: Outputs, prompt: str, show: Display) -> list[Path]:
    """Write a method's pictures, each under its seed; their paths."""
    paths = []
    for image in result.images:
        if image.blocked:
            show.warn(f"{result.method} (seed {image.seed}): {events.BLOCKED}")
            continue
        paths.append(outputs.save(image.png, slug(prompt), result.method, f"seed{image.seed}"))
        show.result(str(paths[-1]), kind="picture", method=result.method, seed=image.seed)
    return paths


def column_of(result: events.CompareResult) -> tuple[str, list[SheetEdit]]:
    """A method's column of the sheet: its error, or its pictures with seconds and scores under them."""
    if result.error is not None:
        return f"{result.method}: failed: {in_words(result.error)}", []
    seconds = f"{result.method}: tuning {result.tuning_s:.1f} s, edit {result.edit_s:.1f} s"
    edits: list[SheetEdit] = []
    for image in result.images:
        if image.blocked:
            continue
        scores = scores_in_words([image])
        caption = f"{seconds}; CLIP filter: {scores}" if scores else seconds
        if len(result.images) > 1:
            caption += f" (seed {image.seed})"
        edits.append((caption, image.png, image.mask or b""))
    return result.method, edits


def table_of(results: Sequence[events.CompareResult]) -> list[list[str]]:
    """For each method: seconds of tuning and edit, bytes of the weights, what the CLIP filter says, or the error."""
    rows = [["method", "tuning", "edit", "weights", "CLIP filter"]]
    for result in results:
        if result.error is not None:
            rows.append([result.method, "-", "-", "-", f"failed: {in_words(result.error)}"])
            continue
        tuned = bool(result.tuning)
        rows.append(
            [
                result.method,
                f"{result.tuning_s:.1f} s" if tuned else "-",
                f"{result.edit_s:.1f} s",
                f"{result.size_bytes} bytes" if tuned else "-",
                scores_in_words(result.images) or "-",
            ]
        )
    return rows


def scores_in_words(images: Sequence[events.EditedImage]) -> str:
    """What the CLIP filter says of a method's pictures, as means; empty where it was not asked."""
    scored = [image.scores for image in images if image.scores is not None]
    if not scored:
        return ""
    passed = sum(scores.passed for scores in scored)
    verdict = f"{passed} of {len(scored)} passed" if len(scored) > 1 else "passed" if passed else "not passed"
    prompt, before, kept = (
        sum(getattr(scores, name) for scores in scored) / len(scored) for name in ("prompt", "base_prompt", "kept")
    )
    return f"{verdict}, likeness to PROMPT {prompt:.2f} (of PHOTO {before:.2f}), to PHOTO {kept:.2f}"
