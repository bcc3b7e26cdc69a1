"""`unitune calibrate`."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import click

from unitune.errors import InvalidField
from unitune.options import SAMPLING, TUNING
from unitune_client import events
from unitune_client.cli.calibration import ChosenSetting, cheapest_reconstruction, choose, undominated
from unitune_client.cli.calibration_run import CalibrationRun, Point, Setting, Trial, TuningSetting
from unitune_client.cli.connection import connection
from unitune_client.cli.display import Display, display
from unitune_client.cli.edit import DEFAULT_METHOD
from unitune_client.cli.options import Between, field_option, output_option, server_options
from unitune_client.cli.outputs import Outputs, folder_of, give_name, unfinished_folder
from unitune_client.cli.path_option import PathOption
from unitune_client.cli.photo_files import read_photo
from unitune_client.cli.sheet import SheetEdit, comparison_sheet, sheet_file
from unitune_client.cli.warm_start import learn_warm_start
from unitune_client.local.home import Home
from unitune_client.local.machine import PRESET_FILE, base_model_folder, embedded_base_model

TABLE_FILE = "calibration.json"
SEEDS = (0, 1)  # of the edits, unless others are given
TUNING_SHARE = 0.6  # of the time: tunings cost more than edits
MOST_POINTS = 4  # that an automatic edit tries
NOT_CLEAR = 1  # exit code when the seeds choose differently

EXAMPLES = """
\b
Examples:
  unitune calibrate cat.jpg --prompt "a cat in the snow" --prompt "a dog" --base-model ~/models/my-model
  unitune calibrate a.jpg b.jpg --prompt "a pencil drawing" --minutes 240 --base-model ~/models/my-model --apply
  unitune calibrate cat.png --prompt "a dog" --updates 64 --updates 128 --learning-rate 1e-4
  unitune calibrate photos/*.jpg --warm-start --base-model ~/models/my-model --apply
"""


@click.command("calibrate", epilog=EXAMPLES)
@click.argument("photos", type=PathOption(), nargs=-1, required=True, metavar="PHOTO ...")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Describes the edited picture of every PHOTO; may be repeated. Several tell more than one.",
)
@click.option(
    "--warm-start",
    is_flag=True,
    help="Learn the base model's warm start from PHOTOs instead, from which tunings need a quarter of the updates.",
)
@click.option("--rounds", type=Between(1, 100_000), help="Of --warm-start; more are better.  [default: 180]")
@click.option(
    "--minutes",
    type=Between(0.0, 100_000.0, above_low=True),
    default=60.0,
    show_default=True,
    help="When they are over no further setting is tried, and the choice is among those that were.",
)
@field_option(TUNING["updates"], multiple=True)
@field_option(TUNING["learning_rate"], multiple=True)
@field_option(SAMPLING["strength"], multiple=True)
@field_option(SAMPLING["guidance_scale"], multiple=True)
@field_option(SAMPLING["num_inference_steps"])
@click.option("--seed", "seeds", type=Between(0, 2**63 - 1), multiple=True, help="Of the edits.  [default: 0 and 1]")
@click.option("--apply", is_flag=True, help="Put the preset into the folder of --base-model.")
@output_option
@click.option("--overwrite", is_flag=True, help="Replace what is there under the same names.")
@server_options
def calibrate_command(
    photos: tuple[str, ...],
    prompts: tuple[str, ...],
    warm_start: bool,
    rounds: int | None,
    minutes: float,
    updates: tuple[int, ...],
    learning_rate: tuple[float, ...],
    strength: tuple[float, ...],
    guidance_scale: tuple[float, ...],
    num_inference_steps: int | None,
    seeds: tuple[int, ...],
    apply: bool,
    output: str,
    overwrite: bool,
    address: str | None,
    base_model: str | None,
    as_json: bool,
) -> None:
    """Find the settings of UniTune for a base model, on your own PHOTOs, and write them as its preset.

    First it tunes by every number of updates and every learning rate. Then it edits at every strength and guidance
    with the tuning that did best. Without these options it tries the base model's own values and some around them;
    each option may be repeated.

    An edit is measured by the likeness to its prompt that it gained, which CLIP sees, and by how much of PHOTO it kept.
    Of the settings that gain nearly the most, the one that keeps most is chosen, if it gains as much with every seed
    alone. A base model without a CLIP filter lacks the first figure. Then only updates and learning rate are chosen:
    the cheapest with which the rare tokens alone give PHOTO back. No figure replaces your eyes: look at the sheets.

    OUT gets a sheet for each PHOTO, calibration.json with every figure, and unitune_preset.json. That file counts once
    it is in the base model's folder (--apply). Tunings that exist are used, so a command that was interrupted goes on
    where it was.

    With --warm-start it does something else: it tunes on one PHOTO after the other, and keeps what these tunings have
    in common as the folder OUT/warm_start. With that in its folder a base model's tunings begin there. A large model
    needs a GPU for it, which is used where there is one; 50 PHOTOs or more are good.
    """
    if warm_start:
        model = preset_folder(base_model)
        if address:
            raise InvalidField("--warm-start", "given", "leave --address out: it is learned on this machine")
        if prompts or len(updates) > 1 or len(learning_rate) > 1:
            raise InvalidField(
                "--warm-start", "given", "give no --prompt, and one --updates and --learning-rate at most"
            )
        if apply:
            check_apply(model)
        for photo in photos:
            read_photo(photo)
        with display(as_json) as show:
            one_of = (next(iter(updates), None), next(iter(learning_rate), None), rounds)
            learn_warm_start(photos, model, output, *one_of, show, overwrite=overwrite, apply=apply)
        return
    if not prompts or rounds is not None:
        name, remedy = ("--rounds", "it needs --warm-start") if prompts else ("--prompt", "describe the edited picture")
        raise InvalidField(name, "given" if prompts else "not given", remedy)
    data = [read_photo(photo) for photo in photos]
    folder = None if address else preset_folder(base_model)
    if apply:
        check_apply(folder)
    out = folder_of(output)
    for name in (PRESET_FILE, TABLE_FILE):
        if (out / name).exists() and not overwrite:
            raise InvalidField("--out", Path(output), f"{name} is there already; give another folder, or --overwrite")
    ends_at_s = time.monotonic() + 60 * minutes
    with display(as_json) as show, connection(address, base_model, show.say) as client:
        info = client.server_info()
        options = {"num_inference_steps": num_inference_steps}
        run = CalibrationRun(client, info, data, list(dict.fromkeys(prompts)), seeds or SEEDS, options, ends_at_s, show)
        settings = tuning_settings(info, updates, learning_rate)
        points = sampling_points(info, strength, guidance_scale)
        run.check(settings, points)
        preset: dict[str, Any] | None = None
        try:
            run.try_tunings(settings, TUNING_SHARE)
            tuning, is_clear = chosen_tuning(run, show)
            run.try_points(points, tuning)
            preset, is_clear = chosen_preset(run, tuning, show, is_clear=is_clear)
        finally:  # an interrupt takes nothing of what is done
            if run.tunings:
                report(run, photos, out, overwrite=overwrite)
        if preset is None or not is_clear:
            raise click.exceptions.Exit(NOT_CLEAR)
        path = out / PRESET_FILE
        write_json(path, merged(folder, preset), overwrites=overwrite)
        show.result(str(path), kind="preset")
        if apply and folder is not None:
            write_json(folder / PRESET_FILE, merged(folder, preset), overwrites=True)
            show.say(f"{folder / PRESET_FILE} has it now; the next command builds the engine of this preset")
        else:
            show.say("it counts once it is in the base model's folder: copy it there, or run this again with --apply")


def tuning_settings(
    info: events.ServerInfo, updates: Sequence[int], learning_rates: Sequence[float]
) -> list[TuningSetting]:
    """The tunings to try, the base model's own first."""
    own = info.defaults_without_warm_start or info.tuning_defaults
    pairs = product(
        updates or (own.updates, max(own.updates // 2, 1)),
        learning_rates or (own.learning_rate, own.learning_rate / 2, own.learning_rate * 2),
    )
    return list(dict.fromkeys(TuningSetting(*pair) for pair in pairs))


def sampling_points(
    info: events.ServerInfo, strengths: Sequence[float], guidance_scales: Sequence[float]
) -> list[Point]:
    """The points to try, in the order of strength and guidance."""
    own = info.sampling_defaults
    around = {own.guidance_scale, round(own.guidance_scale / 1.5, 1), round(own.guidance_scale * 1.5, 1)}
    pairs = product(sorted(strengths or {own.strength, 0.7, 0.8, 0.9}), sorted(guidance_scales or around))
    return list(dict.fromkeys(Point(*pair) for pair in pairs))


def chosen_tuning(run: CalibrationRun, show: Display) -> tuple[TuningSetting, bool]:
    """The tuning that did best, and whether every seed agrees."""
    trials = {trial.setting: trial for trial in run.tunings}
    if not run.info.base_model.has_clip_filter:
        show.warn(
            "the base model has no CLIP filter, so strength and guidance are not chosen; docs/photographs.md says how "
            "it gets one"
        )
        db = {setting: trial.reconstructed_db or 0.0 for setting, trial in trials.items()}
        return cheapest_reconstruction(db, {setting: setting.updates for setting in db}), True
    choice = choice_of(run, run.tunings, [trial.setting.updates for trial in run.tunings])
    tell(choice, run.tunings, show)
    return run.tunings[choice.number].setting, not choice.against


def chosen_preset(
    run: CalibrationRun, tuning: TuningSetting, show: Display, *, is_clear: bool
) -> tuple[dict[str, Any], bool]:
    """The settings that were chosen, as a preset has them, and whether every seed agrees with all of them."""
    own: dict[str, Any] = tuning._asdict()
    preset: dict[str, Any] = {"methods": {DEFAULT_METHOD: own}}
    if run.info.base_model.has_clip_filter:
        choice = choice_of(run, run.points, [0.0 for _ in run.points])
        tell(choice, run.points, show)
        is_clear = is_clear and not choice.against
        own |= run.points[choice.number].setting._asdict()
        figures = [trial.figures for trial in run.points]
        best = sorted(undominated(figures), key=lambda number: -(figures[number].gained or 0.0))[:MOST_POINTS]
        preset["automatic_points"] = sorted(list(run.points[number].setting) for number in best)
    return preset, is_clear


def choice_of(run: CalibrationRun, trials: Sequence[Trial[Setting]], cost: Sequence[float]) -> ChosenSetting:
    """The trial that keeps most of those that gain enough."""
    return choose({seed: [trial.of_seed(seed) for trial in trials] for seed in run.seeds}, cost)


def tell(choice: ChosenSetting, trials: Sequence[Trial[Setting]], show: Display) -> None:
    """Say what was chosen, or that it is not clear."""
    show.say(f"keeps most of those that gain nearly the most: {trials[choice.number].setting}")
    if choice.against:
        seeds = ", ".join(map(str, choice.against))
        show.warn(
            f"with seed {seeds} alone it gains too little, so no preset is written; give more photographs, prompts or "
            "seeds"
        )


def report(run: CalibrationRun, photos: Sequence[str], out: Path, *, overwrite: bool) -> None:
    """Write the sheets and the table of figures, and print them."""
    show = run.show
    for index, photo in enumerate(photos):
        columns = {
            "tunings": [column_of(trial, index) for trial in run.tunings],
            "strength-and-guidance": [column_of(trial, index) for trial in run.points],
        }
        for kind, shown in columns.items():
            if len(shown) > 1:
                file = sheet_file(comparison_sheet(run.photos[index], shown), [], omit_metadata=False)
                path = Outputs(out, photo, overwrites=overwrite).save(file, "calibrate", kind)
                show.result(str(path), kind="sheet")
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_model": {"name": run.info.base_model.name, "digest": run.info.base_model.digest},
        "photos": [Path(photo).name for photo in photos],
        "prompts": list(run.prompts),
        "seeds": list(run.seeds),
        "tunings": [facts_of(trial) for trial in run.tunings],
        "points": [facts_of(trial) for trial in run.points],
        "left_out": [one._asdict() for one in run.left_out],
    }
    write_json(out / TABLE_FILE, facts, overwrites=True)
    show.result(str(out / TABLE_FILE), kind="table")
    show.table(rows_of(run.tunings))
    if run.points:
        show.table(rows_of(run.points))
    if run.left_out:
        show.say(f"left out, as the time was over: {'; '.join(map(str, run.left_out))}")


def rows_of(trials: Sequence[Trial[Setting]]) -> list[list[str]]:
    """A row for each trial, and a head."""
    rows = [["setting", "rare tokens alone", "kept", "gained likeness to the prompt"]]
    for trial in trials:
        figures, alone = trial.figures, trial.reconstructed_db
        gained = "-" if figures.gained is None else f"{figures.gained:.3f}"
        rows.append(
            [str(trial.setting), "-" if alone is None else f"{alone:.1f} dB", f"{figures.kept_db:.1f} dB", gained]
        )
    return rows


def column_of(trial: Trial[Setting], photo: int) -> tuple[str, list[SheetEdit]]:
    """A trial's column of a photograph's sheet: its edits of the first seed, with their figures."""
    edits: list[SheetEdit] = []
    first = trial.edits[0].seed
    for one in trial.edits:
        if (one.photo, one.seed) == (photo, first):
            gained = "" if one.figures.gained is None else f", gained {one.figures.gained:.3f}"
            edits.append((f"{one.prompt}: {trial.setting}; kept {one.figures.kept_db:.1f} dB{gained}", one.png))
    return str(trial.setting), edits


def facts_of(trial: Trial[Setting]) -> dict[str, Any]:
    """A trial as calibration.json has it."""
    edits = [
        {"photo": one.photo, "prompt": one.prompt, "seed": one.seed, **one.figures._asdict()} for one in trial.edits
    ]
    alone = {} if trial.reconstructed_db is None else {"rare_tokens_alone_db": trial.reconstructed_db}
    return {**trial.setting._asdict(), **trial.figures._asdict(), **alone, "edits": edits}


def preset_folder(base_model: str | None) -> Path:
    """The folder of the base model that the services here have."""
    home = Home.from_environment(os.environ)
    return base_model_folder(base_model or os.environ.get("UNITUNE_BASE_MODEL"), home.models)


def check_apply(folder: Path | None) -> None:
    """Raises InvalidField unless the preset can be put into the folder."""
    if folder is None:
        raise InvalidField(
            "--apply", "given", "leave it out: the base model's folder is the server's, not of this machine"
        )
    if folder == embedded_base_model():
        raise InvalidField("--apply", "given", "give --base-model with it: the embedded model keeps its preset")
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise InvalidField("--apply", "given", f"leave it out: {folder} cannot be written to")


def merged(folder: Path | None, preset: Mapping[str, Any]) -> dict[str, Any]:
    """The preset of the folder, if it has one, with the settings that were found."""
    file = None if folder is None else folder / PRESET_FILE
    known: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.is_file() else {}
    methods = known.get("methods", {})
    own = {**methods.get(DEFAULT_METHOD, {}), **preset["methods"][DEFAULT_METHOD]}
    return {**known, **preset, "methods": {**methods, DEFAULT_METHOD: own}}


def write_json(path: Path, facts: Mapping[str, Any], *, overwrites: bool) -> None:
    """Write a JSON file, complete or not at all."""
    with unfinished_folder(path.parent) as unfinished:
        file = unfinished / path.name
        file.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
        give_name(file, path, overwrites=overwrites)
