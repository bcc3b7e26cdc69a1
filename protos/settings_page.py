"""Write docs/settings.md: every setting of the services, as their configurations declare it.

python -m protos.settings_page          # write it
python -m protos.settings_page --check  # say whether it is fresh
"""

import dataclasses
import sys
import typing
from pathlib import Path

from gateway.config import GatewayConfig
from protos.generated_file import ROOT, write
from sampler_svc.config import SamplerConfig
from tuner_svc.config import TunerConfig
from unitune import settings
from unitune.service_settings import ServiceSettings

PAGE = ROOT / "docs" / "settings.md"
SERVICES: dict[type[ServiceSettings], str] = {
    GatewayConfig: "The gateway: `python -m gateway`.",
    TunerConfig: "The tuner: `python -m tuner_svc`.",
    SamplerConfig: "The sampler: `python -m sampler_svc`.",
}
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
HEAD = """# Settings of the services

Each setting is a variable of the environment, or a key in the service's table of one TOML file, which `UNITUNE_CONFIG`
names. The variable comes before the file. This page is made by `make protos` of the services' `config.py` and
`unitune/service_settings.py`; change it there.

    [gateway]
    store = "/var/lib/unitune/store"
    state = "/var/lib/unitune/gateway.sqlite"
    tenant_tunings = 20

    [tuner]
    threads = 4

A service refuses to start, with one line, for a variable that begins with `UNITUNE_` and that no program reads, for a
table or a key that is not known (the nearest known one is told), and for a value that is out of range. It reads its
own table alone. `unitune up` gives its services addresses, store and state itself; everything else they take from the
environment and the file.

`python -m gateway --help` lists a service's settings, too, and so do `tuner_svc` and `sampler_svc`; they take no
other arguments.

The command line `unitune` reads other variables:

| variable | option | what it is |
|---|---|---|
| `UNITUNE_ADDRESS` | `--address` | the server to call |
| `UNITUNE_KEY_FILE`, or `UNITUNE_KEY` | `--key-file` | the file with an API key or token, or the key itself |
| `UNITUNE_CA` | `--ca` | the authority by whose certificate the server is known |
| `UNITUNE_INSECURE` | | `no-tls` sends a key without TLS, where something else encrypts |
| `UNITUNE_BASE_MODEL` | `--base-model` | the base model of services that are started here |
| `UNITUNE_HOME` | | the folder of services that are started here, `~/.cache/unitune` by default |
"""


def kind_of(hint: object) -> str:
    """A field's type in words."""
    options = typing.get_args(hint) or (hint,)
    return " or ".join(WORDS[option] for option in options if option is not type(None))


def default_of(field: "dataclasses.Field[object]") -> str:
    """A field's default, as one would write it."""
    if field.default is dataclasses.MISSING:
        return "none: it must be set"
    if isinstance(field.default, Path):
        return f"`{field.default.relative_to(ROOT)}` beside the program"
    value = settings.default_of(field)
    return value if value == settings.EMPTY else f"`{value}`"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for service, title in SERVICES.items():
        hints = typing.get_type_hints(service)
        parts += [f"## [{service.TABLE}]\n\n{title}\n", "| variable | key | kind | default | what it is |"]
        parts.append("|---|---|---|---|---|")
        for field in dataclasses.fields(service):
            if "env" in field.metadata:
                told = field.metadata["help"].replace("|", "\\|")
                cells = (f"`{field.metadata['env']}`", f"`{field.name}`", kind_of(hints[field.name]), default_of(field))
                parts.append(f"| {' | '.join(cells)} | {told} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(write(PAGE, page()))
