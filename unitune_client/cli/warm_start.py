"""`unitune calibrate --warm-start`: learns where the tunings of a base model begin."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from unitune.errors import InvalidField
from unitune_client.cli.display import Display
from unitune_client.cli.outputs import folder_of, give_name, unfinished_folder
from unitune_client.local import programs
from unitune_client.local.home import Home

FOLDER = "warm_start"  # in OUT, and in a base model's folder
STAGE = "learning the warm start"


def learn_warm_start(
    photos: Sequence[str],
    base_model: Path,
    output: str,
    updates: int | None,
    learning_rate: float | None,
    rounds: int | None,
    show: Display,
    *,
    overwrite: bool,
    apply: bool,
) -> None:
    """Run the program to its end, with its rounds as progress; at an interrupt it keeps a checkpoint in OUT."""
    made = folder_of(output) / FOLDER
    if made.exists() and not overwrite:
        raise InvalidField("--out", Path(output), "a warm start is there already; give another folder, or --overwrite")
    home = Home.from_environment(os.environ)
    home.prepare()
    given = {"--updates": updates, "--learning-rate": learning_rate, "--rounds": rounds}
    options = [str(word) for option in given.items() if option[1] is not None for word in option]
    words = ["--base-model", str(base_model), "--out", str(made.parent.absolute()), *options, "--", *photos]
    log = home.new_logs() / "warm_start.log"
    show.say(f"{STAGE} of {base_model}; an interrupt loses a round at most, and the same command goes on")
    with programs.start(["tuner_svc.learn_warm_start", *words], {}, log, read_output=True) as process:
        try:
            for line in process.stdout or ():
                with suppress(ValueError):
                    told = json.loads(line)
                    left = "" if told["left_s"] is None else f", {told['left_s'] / 60:.0f} min left"
                    show.stage(STAGE, told["round"], told["rounds"], f"loss {told['loss']:.4f}{left}")
            process.wait()
        finally:
            show.end_stage()
            programs.stop([process], signal.SIGINT)
    if process.returncode != 0:
        raise programs.failure(f"{STAGE} ended with status {process.returncode}", log)
    show.result(str(made), kind="warm_start")
    if not apply:
        show.say(f"it counts once it is in the base model's folder: copy it to {base_model / FOLDER}, or use --apply")
        return
    with unfinished_folder(base_model) as unfinished:
        shutil.copytree(made, unfinished / FOLDER)
        give_name(unfinished / FOLDER, base_model / FOLDER, overwrites=True)
    show.say(f"{base_model / FOLDER} has it now; the next command begins its tunings there")
