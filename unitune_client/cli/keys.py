"""`unitune keys`: make, list, rotate and revoke the API keys of a server."""

from datetime import UTC, datetime, timedelta

import click

from unitune.options import options_of
from unitune.v1.key_pb2 import CreateKeyRequest
from unitune_client import events
from unitune_client.cli.credentials import credential_options, credentials_of
from unitune_client.cli.display import Display, display
from unitune_client.cli.options import Address, Between
from unitune_client.client import Client

DEFAULT_SCOPES = ("edit", "tune", "read")
SCOPES = options_of(CreateKeyRequest)["scopes"].choices

address_option = click.option(
    "--address",
    metavar="HOST:PORT",
    type=Address(),
    envvar="UNITUNE_ADDRESS",
    required=True,
    help="The server; grpcs://HOST:PORT with TLS.  [env: UNITUNE_ADDRESS]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per key.")
days_option = click.option(
    "--days", type=Between(0.0, 36500.0, above_low=True), help="Days after which the new key ends.  [default: never]"
)


@click.group("keys")
def keys_group() -> None:
    """Make, list, rotate and revoke the API keys of a server, with a key whose scope is admin.

    The first such key is in the file that UNITUNE_ADMIN_KEY_FILE names to the server.

    \b
    Examples:
      unitune keys create acme --address grpcs://unitune.example.com:443 --key-file admin.key
      unitune keys rotate tenants/acme/keys/k0123456789ab --hours 24
    """


@keys_group.command("create")
@click.argument("tenant")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=DEFAULT_SCOPES,
    show_default=True,
    help="What the key may do; may be repeated.",
)
@days_option
@address_option
@credential_options
@json_option
def create_command(tenant: str, scopes: tuple[str, ...], days: float | None, address: str, as_json: bool) -> None:
    """Make a key of TENANT and print it. It is shown this once: the server keeps a digest of it."""
    with display(as_json) as show, Client(address, **credentials_of(address)) as client:
        _tell_new(show, client.create_key(tenant, scopes, expire_time=_from_now(days=days)))


@keys_group.command("list")
@click.option("--tenant", help="Only keys of this tenant.")
@address_option
@credential_options
@json_option
def list_command(tenant: str | None, address: str, as_json: bool) -> None:
    """List the keys: name, scopes, local time of their making, and how or when they end."""
    with display(as_json) as show, Client(address, **credentials_of(address)) as client:
        for key in client.list_keys(tenant):
            made = f"{key.create_time.astimezone():%Y-%m-%d %H:%M %z}" if key.create_time else "-"
            show.result(f"{key.name}  {','.join(key.scopes):14}  {made}  {_end_of(key)}", kind="key", key=key)


@keys_group.command("rotate")
@click.argument("name")
@click.option(
    "--hours",
    type=Between(0.0, 8760.0),
    default=24.0,
    show_default=True,
    help="Hours that the old key stays valid; 0 ends it at once.",
)
@days_option
@address_option
@credential_options
@json_option
def rotate_command(name: str, hours: float, days: float | None, address: str, as_json: bool) -> None:
    """Make a key of the same tenant and scopes as the key NAME, print it, and let the old one end."""
    with display(as_json) as show, Client(address, **credentials_of(address)) as client:
        old_end = _from_now(hours=hours) if hours else None
        _tell_new(show, client.rotate_key(name, old_expire_time=old_end, expire_time=_from_now(days=days)))


@keys_group.command("revoke")
@click.argument("name")
@address_option
@credential_options
@json_option
def revoke_command(name: str, address: str, as_json: bool) -> None:
    """End the key NAME at once, with the streams that were begun with it. Tunings go on."""
    with display(as_json) as show, Client(address, **credentials_of(address)) as client:
        key = client.revoke_key(name)
        show.result(f"{name}  revoked", kind="key", key=key)


def _tell_new(show: Display, made: events.NewKey) -> None:
    """Standard output has the key alone, so that it can go into a file."""
    show.say(f"{made.api_key.name}: {', '.join(made.api_key.scopes)}; {_end_of(made.api_key)}; it is shown this once")
    show.result(made.secret, kind="key", key=made.api_key)


def _from_now(*, days: float | None = None, hours: float | None = None) -> datetime | None:
    if days is None and hours is None:
        return None
    return datetime.now(UTC) + timedelta(days=days or 0, hours=hours or 0)


def _end_of(key: events.ApiKey) -> str:
    if key.revoke_time is not None:
        return f"revoked {key.revoke_time.astimezone():%Y-%m-%d %H:%M %z}"
    if key.expire_time is None:
        return "no end"
    verb = "expired" if key.expire_time <= datetime.now(UTC) else "ends"
    return f"{verb} {key.expire_time.astimezone():%Y-%m-%d %H:%M %z}"
