"""Settings from the environment: what is read, and that nothing wrong is passed over in silence."""

import dataclasses
import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig
from sampler_svc.config import SamplerConfig
from tuner_svc.config import TunerConfig
from unitune.settings import NAMES, TABLES, BadSetting, load, num_cores

ROOT = Path(__file__).resolve().parents[2]


def setting(name: str, help: str = "x", **options: Any) -> Any:
    """A field that reads UNITUNE_{name}."""
    return field(metadata={"env": f"UNITUNE_{name}", "help": help}, **options)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One setting of each kind."""

    needed: str = setting("NEEDED", "the one that has no default")
    count: int = setting("COUNT", default=3)
    share: float = setting("SHARE", default=0.5)
    is_on: bool = setting("ON", default=False)
    folder: Path = setting("FOLDER", default=Path("x"))  # noqa: RUF009 - a path is never changed
    maybe: int | None = setting("MAYBE", default=None)
    hidden: int = 7

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"UNITUNE_COUNT is {self.count}: it must be 0 or more")


def test_every_kind_is_read() -> None:
    """Text becomes what the field's type says; what is not set keeps its default."""
    assert load(Config, {"UNITUNE_NEEDED": "a"}) == Config(needed="a")
    environ = {
        "UNITUNE_NEEDED": "",
        "UNITUNE_COUNT": "12",
        "UNITUNE_SHARE": "1e-3",
        "UNITUNE_ON": "Yes",
        "UNITUNE_FOLDER": "/a/b",
        "UNITUNE_MAYBE": "4",
    }
    read = load(Config, environ)
    assert read == Config(needed="", count=12, share=0.001, is_on=True, folder=Path("/a/b"), maybe=4)
    assert load(Config, {**environ, "UNITUNE_MAYBE": ""}).maybe is None


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("COUNT", "many", "a whole number"),
        ("COUNT", "1.5", "a whole number"),
        ("COUNT", "", "a whole number"),
        ("COUNT", "-1", "0 or more"),
        ("SHARE", "nan", "a finite number"),
        ("ON", "maybe", "true"),
        ("FOLDER", "", "a path"),
        ("COUTN", "3", "did you mean UNITUNE_COUNT?"),
        ("ZZZ", "3", "is not a setting: known are"),
    ],
)
def test_a_bad_setting_stops_the_start(variable: str, value: str, words: str) -> None:
    """One line names the variable and what would be right; uncaught, it is the program's last word."""
    with pytest.raises(BadSetting) as caught:
        load(Config, {"UNITUNE_NEEDED": "a", f"UNITUNE_{variable}": value})
    line = str(caught.value)
    assert f"UNITUNE_{variable}" in line and words in line and "\n" not in line
    assert isinstance(caught.value, SystemExit) and caught.value.code == line


def test_a_missing_setting_is_named_with_its_help() -> None:
    """A setting without default must be given."""
    with pytest.raises(BadSetting, match="UNITUNE_NEEDED is not set: it must be the one that has no default"):
        load(Config, {})


def test_neighbours_variables_are_passed_over() -> None:
    """Other programs' settings, Kubernetes' service links and everything without our prefix are no mistakes."""
    others = dict.fromkeys(NAMES, "x")  # of which UNITUNE_CONFIG is read by programs that have a table
    links = {
        "UNITUNE_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "UNITUNE_GATEWAY_SERVICE_PORT_GRPC": "50051",
        "UNITUNE_GATEWAY_PORT": "tcp://10.0.0.1:50051",
        "UNITUNE_GATEWAY_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    assert load(Config, {"UNITUNE_NEEDED": "a", **others, **links, "HOME": "/"}) == Config(needed="a")


@pytest.mark.parametrize("service", [GatewayConfig, SamplerConfig, TunerConfig])
def test_a_services_settings_are_known_to_all(service: Any) -> None:
    """A neighbour passes over each of them, and the service has a table of its own in the file."""
    assert {field.metadata["env"] for field in dataclasses.fields(service) if "env" in field.metadata} <= NAMES
    assert service.TABLE in TABLES


# Those of the command line, and the one that names a file of settings.
OF_NO_SERVICE = {
    "UNITUNE_ADDRESS",
    "UNITUNE_CA",
    "UNITUNE_CONFIG",
    "UNITUNE_HOME",
    "UNITUNE_KEY",
    "UNITUNE_KEY_FILE",
}


def test_every_known_setting_is_somebodys() -> None:
    """No name is passed over that no program reads."""
    services = (GatewayConfig, SamplerConfig, TunerConfig)
    read = {field.metadata.get("env") for service in services for field in dataclasses.fields(service)}
    assert NAMES - read == OF_NO_SERVICE


def test_the_page_of_settings_is_fresh() -> None:
    """docs/settings.md is what protos/settings_page.py makes of the configurations, and tells every setting."""
    from protos.settings_page import PAGE, page

    assert PAGE.read_text() == page()
    assert all(f"| `{name}` |" in page() for name in NAMES - OF_NO_SERVICE)


def file_of(folder: Path, text: str) -> dict[str, str]:
    """The environment with a file of settings."""
    path = folder / "unitune.toml"
    path.write_text(text)
    return {"UNITUNE_STATE": "s", "UNITUNE_CONFIG": str(path)}


def test_a_file_has_the_settings_of_all_services(tmp_path: Path) -> None:
    """A service takes its own table, and the environment comes before it."""
    environ = file_of(
        tmp_path,
        """
        [gateway]
        store = "/data/store"
        health_address = ""
        connection_age_s = 60
        tenant_requests_per_s = 0.5
        open_edits = 7

        [tuner]
        threads = 3
        base_model = "/models/sd"
        """,
    )
    config = load(GatewayConfig, environ)
    assert (config.store, config.health_address, config.open_edits) == ("/data/store", None, 7)
    assert (config.connection_age_s, config.tenant_requests_per_s) == (60.0, 0.5)
    assert load(GatewayConfig, environ | {"UNITUNE_OPEN_EDITS": "9"}).open_edits == 9
    tuner = load(TunerConfig, environ | {"UNITUNE_STORE": "x"})
    assert tuner.threads == 3 and tuner.base_model == Path("/models/sd")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gateway]\nopen_edit = 3", "[gateway] open_edit of {file} is not a setting: did you mean open_edits?"),
        ("[gateway]\nzzz = 3", "[gateway] zzz of {file} is not a setting: known are address"),
        ("[gatway]\nx = 3", "[gatway] of {file} is not a table of settings: did you mean gateway?"),
        ("store = 3", "[store] of {file} is not a table of settings: known are gateway, sampler, tuner"),
        (
            "[gateway]\nstore = 'x'\nopen_edits = true",
            "[gateway] open_edits of {file} is True: it must be a whole number",
        ),
        (
            "[gateway]\nstore = 'x'\nopen_edits = 1.5",
            "[gateway] open_edits of {file} is 1.5: it must be a whole number",
        ),
        (
            "[gateway]\nstore = 'x'\nopen_edits = '3'",
            "[gateway] open_edits of {file} is '3': it must be a whole number",
        ),
        (
            "[gateway]\nstore = 'x'\nkeep_unused_s = nan",
            "[gateway] keep_unused_s of {file} is nan: it must be a finite number",
        ),
        ("[gateway]\nstore = 3", "[gateway] store of {file} is 3: it must be a text"),
        ("[gateway]\nstore = 'x'\nopen_edits = -1", "[gateway] open_edits of {file} is -1: it must be 0, for no limit"),
        ("[gateway", "UNITUNE_CONFIG is '{file}', which is no TOML: "),
    ],
)
def test_a_bad_file_stops_the_start(tmp_path: Path, text: str, words: str) -> None:
    """One line names the place, its value and what would be right."""
    environ = file_of(tmp_path, text)
    with pytest.raises(BadSetting) as caught:
        load(GatewayConfig, environ)
    assert str(caught.value).startswith(words.format(file=environ["UNITUNE_CONFIG"])) and "\n" not in str(caught.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    """It is told by its variable; an empty one names none."""
    environ = {"UNITUNE_STATE": "s", "UNITUNE_STORE": "x"}
    with pytest.raises(BadSetting, match=r"UNITUNE_CONFIG is '.*none.toml': no such file"):
        load(GatewayConfig, environ | {"UNITUNE_CONFIG": str(tmp_path / "none.toml")})
    assert load(GatewayConfig, environ | {"UNITUNE_CONFIG": ""}).store == "x"


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's share counts and not the machine's cores; where no share is told, the machine's do."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert num_cores() == 2

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert num_cores() == 64


@pytest.mark.parametrize("config", [GatewayConfig, TunerConfig, SamplerConfig])
def test_help_lists_every_setting(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """--help of a service prints each variable with its key and default, though what must be set is not."""
    with pytest.raises(SystemExit) as ended:
        load(config, {}, ["--help"])
    assert 0 == ended.value.code
    told = capsys.readouterr().out
    for one in dataclasses.fields(config):
        if "env" in one.metadata:
            assert f"\n{one.metadata['env']}, {one.name}\n" in told
    assert "[must be set]" in told and f"[{config.TABLE}]" in told


@pytest.mark.parametrize("config", [GatewayConfig, TunerConfig, SamplerConfig])
def test_the_file_of_the_operators_page_starts_each_service(config: Any, tmp_path: Path) -> None:
    """The TOML of docs/operating.md has all that a service on addresses of other machines needs."""
    section = (ROOT / "docs" / "operating.md").read_text().partition("one TOML file for all services:\n")[2]
    lines = [line for line in section.partition("UNITUNE_CONFIG=")[0].splitlines() if line.startswith("    ")]
    file = tmp_path / "unitune.toml"
    file.write_text(textwrap.dedent("\n".join(lines)))
    told = load(config, {"UNITUNE_CONFIG": str(file)})
    assert told.store == "s3://bucket/unitune" and told.peer_files is not None


def test_an_argument_is_not_passed_over() -> None:
    """An operator who gives a service an option learns that its settings are variables."""
    with pytest.raises(BadSetting, match=r"'--port' is an argument, and this program takes none: .*--help"):
        load(Config, {"UNITUNE_NEEDED": "a"}, ["--port", "1"])
