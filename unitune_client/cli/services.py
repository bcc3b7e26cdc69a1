"""`unitune up`, `unitune build` and `unitune doctor`: what concerns this machine."""

import math
import os
import time
from itertools import chain
from pathlib import Path

import click

from unitune.errors import InvalidField
from unitune_client.channel import PORT
from unitune_client.cli import streams
from unitune_client.cli.credentials import credential_options, credentials_of
from unitune_client.cli.display import Display
from unitune_client.cli.options import Address, Between
from unitune_client.cli.path_option import PathOption
from unitune_client.client import Client
from unitune_client.local import doctor, programs
from unitune_client.local.home import Home
from unitune_client.local.machine import base_model_file, base_model_folder
from unitune_client.local.services import LocalServices
from unitune_client.local.stage_log import StageLog

LOOKS_EVERY_S = 0.5
UNREADABLE = 1  # exit code of doctor when a finding could not be made

base_model_option = click.option(
    "--base-model",
    metavar="PATH",
    type=PathOption(),
    envvar="UNITUNE_BASE_MODEL",
    help="A Stable Diffusion model: a folder in diffusers layout, or a .safetensors file.  "
    "[env: UNITUNE_BASE_MODEL; default: the embedded model]",
)


@click.command("up")
@click.option("--port", type=Between(0, 65535), default=PORT, show_default=True, help="Port of the gateway; 0: any.")
@base_model_option
def up_command(port: int, base_model: str | None) -> None:
    """Run the three services here until Ctrl-C. Other commands on this machine find and use them.

    Everything is kept under UNITUNE_HOME (~/.cache/unitune): engines, tuned weights, state, logs. The gateway listens
    on 127.0.0.1 only and asks for no credentials. A service that ends unasked is started again, a few times; on
    a full disk it is started again when there is space.

    After Ctrl-C what runs gets 30 seconds to end; a second Ctrl-C ends it at once.

    \b
    Example:
      unitune up --port 50051
    """
    show = Display()
    with LocalServices(base_model, log=show.say, port=port, waits=False) as services:
        try:
            services.share()
            streams.print_result(f"listening {services.address}")
            show.say("Ctrl-C stops the services")
            while True:
                services.check()
                time.sleep(LOOKS_EVERY_S)
        except KeyboardInterrupt:
            show.say("stopping the services")
    show.say("stopped")


@click.command("build")
@base_model_option
def build_command(base_model: str | None) -> None:
    """Export a base model and build its engine, so that the first edit begins sooner. Print the engine's folder.

    \b
    Example:
      unitune build --base-model ~/models/stable-diffusion-v1-5
    """
    streams.print_result(str(LocalServices(base_model, log=Display().say).build()))


@click.command("import")
@click.argument("file", type=PathOption())
@click.option("-o", "--out", type=PathOption(), metavar="FOLDER", help="The folder to write.  [default: FILE's name]")
@click.option("--vae", type=PathOption(), metavar="PATH", help="An autoencoder in place of FILE's own: file or folder.")
@click.option(
    "--lora", multiple=True, metavar="FILE[:WEIGHT]", help="A LoRA that is merged into the weights; may be repeated."
)
@click.option(
    "--fast-lora",
    metavar="FILE[:WEIGHT]",
    help="A LoRA that distils to few steps: added while sampling, with --fast; tunings are of the model without it.",
)
@click.option("--prediction", type=click.Choice(("epsilon", "v")), help="What it predicts, if FILE does not say so.")
@click.option(
    "--clip-skip", type=Between(1, 24), help="2 leaves the text encoder's last layer out.  [1 to 24; default: 1]"
)
@click.option(
    "--distilled",
    type=click.Choice(("lcm", "turbo", "lightning", "hyper", "tcd", "no")),
    help="To few steps, and how, if no name of FILE or LoRA says so; with --fast-lora, how that was.",
)
@click.option("--steps", type=Between(2, 50), help="That it was distilled to, if no name says so.  [2 to 50]")
@click.option(
    "--config",
    type=PathOption(),
    metavar="FOLDER",
    help="A diffusers folder of an unusual architecture.",
)
def import_command(
    file: str,
    out: str | None,
    vae: str | None,
    lora: tuple[str, ...],
    fast_lora: str | None,
    prediction: str | None,
    clip_skip: int | None,
    distilled: str | None,
    steps: int | None,
    config: str | None,
) -> None:
    """Write FILE, a base model as one .safetensors file, as a folder for --base-model; print the folder.

    Stable Diffusion 1.x, 2.x and XL. Nothing is downloaded, and FILE is left as it is. Without options --base-model
    takes FILE itself.

    \b
    Examples:
      unitune import ~/models/v1-5-pruned-emaonly.safetensors
      unitune import model.safetensors -o my-model --vae vae.safetensors --lora style.safetensors:0.8
    """
    if base_model_file(file, "FILE") is None:
        raise InvalidField("FILE", Path(file), "it is not a file that can be read; give a .safetensors file")
    folder = Path(out or Path(file).stem).absolute()
    if folder.exists():
        raise InvalidField("--out", folder, "it is there already; give another folder")
    for one in lora:
        check_lora(one)
    if fast_lora is not None:
        check_lora(fast_lora, "--fast-lora")
    home = Home.from_environment(os.environ)
    home.prepare()
    options = {
        "--vae": vae,
        "--fast-lora": fast_lora,
        "--prediction": prediction,
        "--clip-skip": clip_skip,
        "--distilled": distilled,
        "--steps": steps,
        "--config": config,
    }
    words = [str(word) for option in options.items() if option[1] is not None for word in option]
    for one in lora:
        words += ["--lora", one]
    program = ["tuner_svc.single_file", file, "--out", str(folder), *words]
    log = home.new_logs() / "import.log"
    streams.print_result(str(programs.run(program, log, StageLog(streams.print_message))))


def check_lora(given: str, option: str = "--lora") -> None:
    """Raises InvalidField unless this is FILE or FILE:WEIGHT, of a file that is there and a finite weight."""
    path, colon, weight = given.rpartition(":")
    if Path(given).is_file():
        return
    if not colon or not Path(path).is_file():
        raise InvalidField(option, Path(given), "there is no such file; give FILE or FILE:WEIGHT")
    try:
        is_finite = math.isfinite(float(weight))
    except ValueError:
        is_finite = False
    if not is_finite:
        raise InvalidField(option, given, "its weight must be a finite number, as in FILE:0.8")


@click.command("doctor")
@click.option("--vocabulary", is_flag=True, help="Print the words that the base model knows, and nothing else.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    type=Address(),
    envvar="UNITUNE_ADDRESS",
    help="A running server to ask; grpcs://HOST:PORT with TLS.  [env: UNITUNE_ADDRESS]",
)
@credential_options
@base_model_option
def doctor_command(vocabulary: bool, address: str | None, base_model: str | None) -> None:
    """Say what this machine can run and, with --address, what the server there can do.

    Exit status: 0; 1 when something here cannot be read or the server does not answer, though all else is told; 2 for
    a wrong option, such as a --base-model that is none. A missing package is told and is no error: not
    every machine runs every service.

    \b
    Examples:
      unitune doctor
      unitune doctor --address 127.0.0.1:50051
      unitune doctor --vocabulary
    """
    models = Home.from_environment(os.environ).models
    given = base_model_folder(base_model, models) if base_model else None
    if vocabulary:
        say_vocabulary(given, address)
        return
    problems = 0
    told: doctor.Findings = doctor.findings(os.environ)
    if given is not None:
        told = chain(told, doctor.base_model_findings(given))
    for what, found in chain(told, doctor.findings_of_server(address, os.environ, credentials_of(address))):
        if isinstance(found, doctor.Problem):
            problems += 1
        streams.print_result(f"{what + ':':<23}{found}")
    if problems:
        raise click.exceptions.Exit(UNREADABLE)


def say_vocabulary(folder: Path | None, address: str | None) -> None:
    """The words of a base model: that of the folder, else of the server, else the embedded one's."""
    running = None if address or folder else Home.from_environment(os.environ).running()
    address = address or (running.address if running is not None else None)
    if folder is None and address is not None:
        with Client(address, **credentials_of(address)) as client:
            words = {"words": list(client.server_info().base_model.vocabulary)}
    else:
        words = doctor.vocabulary(folder or base_model_folder(None, Path()))
    for kind, some in words.items():
        streams.print_result(f"{kind}: {', '.join(some)}")
    if not any(words.values()):
        streams.print_result("any word: the vocabulary is open")
