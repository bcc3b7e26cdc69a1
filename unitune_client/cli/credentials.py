"""What a command shows a server: a key, and by whose certificate it knows the server.

The options are of the context that runs, not of each command: what connects reads them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click

from unitune.errors import InvalidField
from unitune_client.channel import checked_key, refuse_readable_key, split_address
from unitune_client.cli.path_option import PathOption

F = TypeVar("F", bound=Callable[..., Any])

_CA, _KEY_FILE = "unitune_client.ca", "unitune_client.key_file"
NO_TLS = "no-tls"  # of UNITUNE_INSECURE, as for the services


class Credentials(TypedDict):
    """Arguments of a client."""

    key: str | None
    root_certificates: bytes | None
    plaintext_key: bool


def credential_options(command: F) -> F:
    """--key-file and --ca."""
    for name, place, variable, help_text in (
        ("--ca", _CA, "UNITUNE_CA", "PEM file of the authority by whose certificate the server at --address is known."),
        (
            "--key-file",
            _KEY_FILE,
            "UNITUNE_KEY_FILE",
            "File with the API key or token for the server at --address; UNITUNE_KEY may hold the key itself.",
        ),
    ):
        command = click.option(
            name,
            metavar="FILE",
            envvar=variable,
            expose_value=False,
            type=PathOption(),
            callback=_remember(place),
            help=f"{help_text}  [env: {variable}]",
        )(command)
    return command


def credentials_of(address: str | None) -> Credentials:
    """What the options and the environment say for the server at an address; nothing without an address.

    Raises InvalidField, OSError.
    """
    if address is None:
        return {"key": None, "root_certificates": None, "plaintext_key": False}
    host, is_tls = split_address(address)
    ca, key_file = _given(_CA), _given(_KEY_FILE)
    certificates = None
    if ca:
        certificates = Path(ca).read_bytes()
        if b"-----BEGIN CERTIFICATE-----" not in certificates:
            raise InvalidField("--ca", Path(ca), "there is no certificate in it; give a PEM file")
    key: str | None
    key, source = os.environ.get("UNITUNE_KEY") or None, "UNITUNE_KEY"
    if key_file:
        key, source = Path(key_file).read_text(errors="replace"), "--key-file"
    plaintext = NO_TLS in os.environ.get("UNITUNE_INSECURE", "").split(",")
    if key is not None:
        key = checked_key(key, source)
        if not is_tls and certificates is None and not plaintext:
            refuse_readable_key(host, source)
    return {"key": key, "root_certificates": certificates, "plaintext_key": plaintext}


def refuse_credentials() -> None:
    """Raise InvalidField for an option where the services are this machine's own, which ask for no key."""
    context = click.get_current_context(silent=True)
    for option, place in (("--key-file", _KEY_FILE), ("--ca", _CA)):
        if context is not None and f"{place}.typed" in context.meta:
            raise InvalidField(option, Path(context.meta[place]), "leave it out, or give the --address of a server")


def _given(place: str) -> str | None:
    context = click.get_current_context(silent=True)
    return context.meta.get(place) if context is not None else None


def _remember(place: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def remember(context: click.Context, param: click.Parameter, value: str | None) -> None:
        if value:
            context.meta[place] = value
            if context.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE:
                context.meta[f"{place}.typed"] = True

    return remember
