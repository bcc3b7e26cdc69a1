"""`unitune up`, `unitune build` and `unitune doctor`: what concerns this machine."""

import os
import time

import click

from unitune_client import doctor
from unitune_client.cli_options import Between
from unitune_client.client import Client
from unitune_client.display import Display
from unitune_client.home import Home
from unitune_client.local import LocalServices

LOOKS_EVERY_S = 0.5

base_model_option = click.option(
    "--base-model",
    metavar="PATH",
    envvar="UNITUNE_BASE_MODEL",
    help="Folder of a Stable Diffusion model in diffusers layout.  [env: UNITUNE_BASE_MODEL; default: the embedded "
    "model]",
)


@click.command("up")
@click.option("--port", type=Between(0, 65535), default=50051, show_default=True, help="Port of the gateway; 0: any.")
@base_model_option
def up_command(port: int, base_model: str | None) -> None:
    """Run the three services here until Ctrl-C. Other commands on this machine find them by themselves.

    Everything is kept under UNITUNE_HOME (~/.cache/unitune): engines, tuned weights, state, logs. The gateway listens
    on 127.0.0.1 only and asks for no credentials.

    \b
    Example:
      unitune up --port 50051
    """
    show = Display()
    try:
        with LocalServices(base_model, log=show.say, port=port) as services:
            services.share()
            click.echo(f"listening {services.address}")
            show.say("Ctrl-C stops the services")
            while True:
                services.check()
                time.sleep(LOOKS_EVERY_S)
    except KeyboardInterrupt:
        show.say("stopped")


@click.command("build")
@base_model_option
def build_command(base_model: str | None) -> None:
    """Export a base model and build its engine, so that the first edit need not; print the engine's folder.

    \b
    Example:
      unitune build --base-model ~/models/stable-diffusion-v1-5
    """
    click.echo(LocalServices(base_model, log=Display().say).build())


@click.command("doctor")
@click.option("--vocabulary", is_flag=True, help="Print the words that the base model knows, and nothing else.")
@click.option(
    "--address", metavar="HOST:PORT", envvar="UNITUNE_ADDRESS", help="A running server to ask.  [env: UNITUNE_ADDRESS]"
)
@base_model_option
def doctor_command(vocabulary: bool, address: str | None, base_model: str | None) -> None:
    """Say what this machine can run and, with --address, what the server there can do.

    \b
    Examples:
      unitune doctor
      unitune doctor --address 127.0.0.1:50051
      unitune doctor --vocabulary
    """
    home = Home.of(os.environ)
    running = home.running()
    if address is None and running is not None:
        address = running.address
    info = None
    if address is not None:
        with Client(address) as client:
            info = client.server_info()
    if vocabulary:
        words = doctor.vocabulary(base_model) if info is None else {"words": list(info.base_model.vocabulary)}
        for kind, some in words.items():
            click.echo(f"{kind}: {', '.join(some)}")
        if not any(words.values()):
            click.echo("any word: the vocabulary is open")
        return
    for what, found in [*doctor.findings(home), *(doctor.server_findings(info) if info is not None else ())]:
        click.echo(f"{what + ':':<23}{found}")
