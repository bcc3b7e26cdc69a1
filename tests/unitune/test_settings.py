"""Settings from the environment: what is read, and that nothing wrong is passed over in silence."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig
from unitune.settings import NAMES, BadSetting, load, num_cores


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
    others = dict.fromkeys(NAMES, "x")
    links = {
        "UNITUNE_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "UNITUNE_GATEWAY_SERVICE_PORT_GRPC": "50051",
        "UNITUNE_GATEWAY_PORT": "tcp://10.0.0.1:50051",
        "UNITUNE_GATEWAY_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    assert load(Config, {"UNITUNE_NEEDED": "a", **others, **links, "HOME": "/"}) == Config(needed="a")


def test_the_gateways_settings_are_known_to_all() -> None:
    """A neighbour passes over each of them."""
    assert {field.metadata["env"] for field in dataclasses.fields(GatewayConfig) if "env" in field.metadata} <= NAMES


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's share counts and not the machine's cores; where no share is told, the machine's do."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert num_cores() == 2

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert num_cores() == 64
