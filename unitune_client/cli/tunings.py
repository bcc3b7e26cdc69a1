"""`unitune tunings`: list, watch, cancel, export and delete tunings."""

import os
import re
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path

import click

from unitune.errors import InvalidField
from unitune_client import events
from unitune_client.cli import streams
from unitune_client.cli.connection import connection
from unitune_client.cli.display import display
from unitune_client.cli.options import Between, output_option, server_options
from unitune_client.cli.outputs import folder_of, follow_umask, give_name, unfinished_folder
from unitune_client.cli.services import base_model_option
from unitune_client.local import programs
from unitune_client.local.home import Home
from unitune_client.local.machine import base_model_folder
from unitune_client.local.stage_log import StageLog

EXPORTS = {  # what the exporter calls its result
    "diffusers": "unet",
    "kohya": "lora.safetensors",
    "peft": "pytorch_lora_weights.safetensors",
}


@click.group("tunings")
def tunings_group() -> None:
    """List, watch, export, cancel and delete tunings.

    \b
    Examples:
      unitune tunings list --address 127.0.0.1:50051
      unitune tunings delete tenants/default/tunings/t-0a1b
    """


@tunings_group.command("list")
@click.option(
    "--state",
    type=click.Choice([state.value for state in events.TuningState if state != "UNKNOWN"], case_sensitive=False),
    help="Only tunings in this state.",
)
@server_options
def list_command(state: str | None, address: str | None, base_model: str | None, as_json: bool) -> None:
    """List the tunings, the newest first: name, state, updates of all phases, local time of creation."""
    with (
        space_to_delete(address),  # a user lists tunings before deleting one
        display(as_json) as show,
        connection(address, base_model, show.say) as client,
    ):
        for tuning in client.list_tunings(state=state):
            created = in_local_time(tuning.create_time) if tuning.create_time else "-"
            line = f"{tuning.name}  {tuning.state:9}  {tuning.config.total_updates:5} updates  {created}"
            show.result(line, kind="tuning", tuning=tuning)


@tunings_group.command("watch")
@click.argument("name")
@server_options
def watch_command(name: str, address: str | None, base_model: str | None, as_json: bool) -> None:
    """Show what happens to the tuning NAME until it ends. Ctrl-C stops watching, not the tuning."""
    with display(as_json) as show, connection(address, base_model, show.say) as client:
        for event in client.watch_tuning(name):
            show.event(event)
        show.result(f"{name}  READY", kind="tuning")


@tunings_group.command("cancel")
@click.argument("name")
@server_options
def cancel_command(name: str, address: str | None, base_model: str | None, as_json: bool) -> None:
    """Stop the tuning NAME before its next update. One that has ended stays as it is."""
    with display(as_json) as show, connection(address, base_model, show.say) as client:
        tuning = client.cancel_tuning(name)
        show.result(f"{tuning.name}  {tuning.state}", kind="tuning", tuning=tuning)


@tunings_group.command("export")
@click.argument("name")
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(EXPORTS)),
    default="diffusers",
    show_default=True,
    help="diffusers: a folder OUT/unet in place of the base model's. kohya: OUT/lora.safetensors, for web UIs. "
    "peft: a LoRA that diffusers loads from the folder OUT.",
)
@click.option("--rank", type=Between(1, 4096), default=16, show_default=True, help="Of the LoRA: more loses less.")
@output_option
@click.option("--overwrite", is_flag=True, help="Replace what is there under the name of the export.")
@base_model_option
def export_command(name: str, kind: str, rank: int, output: str, overwrite: bool, base_model: str | None) -> None:
    """Write the tuning NAME, made by services of this machine, as files that other programs read; print their path."""
    parts = re.fullmatch(r"tenants/([^/]+)/tunings/([^/]+)", name)
    if parts is None:
        raise InvalidField("NAME", name, "give a tuning's name, such as tenants/default/tunings/t-0a1b")
    exported = Path(output) / EXPORTS[kind]
    if exported.exists() and not overwrite:
        raise InvalidField("--out", Path(output), f"{exported} is there already; give another folder, or --overwrite")
    home = Home.from_environment(os.environ)
    weights = "/".join(("tunings", *parts.groups()))
    if not any(path.is_file() for path in (home.store / weights).rglob("*")):
        remedy = f"no weights of it are in {home.store}; give the name of a tuning that `unitune tunings list` shows"
        raise InvalidField("NAME", name, remedy)
    folder_of(output)
    home.prepare()
    folder = base_model_folder(base_model, home.models)
    where = {"--base-model": folder, "--store": home.store, "--weights": weights}
    with unfinished_folder(exported.parent) as unfinished:
        what = {"--format": kind, "--rank": rank, "--out": unfinished}
        options = [str(word) for option in (where | what).items() for word in option]
        programs.run(
            ["tuner_svc.tuning_export", *options], home.new_logs() / "export.log", StageLog(streams.print_message)
        )
        follow_umask(unfinished / exported.name)
        give_name(unfinished / exported.name, exported, overwrites=overwrite)
    streams.print_result(str(exported))


@tunings_group.command("delete")
@click.argument("name")
@server_options
def delete_command(name: str, address: str | None, base_model: str | None, as_json: bool) -> None:
    """Discard the tuning NAME with its weights, cancelling it if it runs."""
    with (
        space_to_delete(address),
        display(as_json) as show,
        connection(address, base_model, show.say) as client,
    ):
        client.delete_tuning(name)
        show.result(f"{name}  deleted", kind="deleted", tuning=name)


def in_local_time(time: datetime) -> str:
    """Minutes, as the clock of this machine shows them, with its offset from UTC."""
    return f"{time.astimezone():%Y-%m-%d %H:%M %z}"


def space_to_delete(address: str | None) -> AbstractContextManager[None]:
    """The reserve of this machine's services. A server at an address has its own."""
    return nullcontext() if address else Home.from_environment(os.environ).space_to_delete()
