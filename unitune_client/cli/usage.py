"""`unitune usage`: what tenants have used and store."""

from datetime import date, datetime

import click

from unitune_client.cli.connection import connection
from unitune_client.cli.display import display
from unitune_client.cli.options import server_options

DAY = click.DateTime(["%Y-%m-%d"])
TITLES = ("tenant", "images", "tunings", "edits", "tuner s", "sampler s", "stored MB")


@click.command("usage")
@click.option("--tenant", help="Only this tenant.  [default: the key's own; all, for an admin or without keys]")
@click.option(
    "--since", "start_day", metavar="DAY", type=DAY, help="The first day, of UTC, as 2026-01-31.  [default: 30 in all]"
)
@click.option("--until", "end_day", metavar="DAY", type=DAY, help="The last day.  [default: today]")
@server_options
def usage_command(
    tenant: str | None,
    start_day: datetime | None,
    end_day: datetime | None,
    address: str | None,
    base_model: str | None,
    as_json: bool,
) -> None:
    """Show what tenants have used from day to day, and what they store now.

    \b
    Examples:
      unitune usage --address grpcs://unitune.example.com:443 --key-file admin.key --since 2026-01-01 --until 2026-01-31
    """
    with display(as_json) as show, connection(address, base_model, show.say) as client:
        rows, days = [TITLES], ""
        for used in client.list_usage(tenant, start_day=_day(start_day), end_day=_day(end_day)):
            days = f"{used.start_day} to {used.end_day}"
            stored = (used.image_bytes + used.weight_bytes + used.result_bytes) / 1e6
            counts = (str(used.images), str(used.tunings), str(used.edits))
            name = used.parent.removeprefix("tenants/")
            rows.append((name, *counts, f"{used.tuner_s:.0f}", f"{used.sampler_s:.0f}", f"{stored:.1f}"))
            if as_json:
                show.result(used.parent, kind="usage", usage=used)
        show.say(f"from {days}, days of UTC" if days else "nobody has used anything")
        show.table(rows)


def _day(moment: datetime | None) -> date | None:
    return moment.date() if moment is not None else None
