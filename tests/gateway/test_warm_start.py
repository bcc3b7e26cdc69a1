"""Which tunings begin at the base model's warm start."""

from typing import Any

import grpc
import pytest

from gateway.tunings import tuning_key
from tests.configs import tuning_config
from tests.gateway.conftest import World, eventually, refused
from unitune.options import Flat
from unitune.v1.server_pb2 import GetServerInfoRequest
from unitune.v1.server_pb2_grpc import ServerServiceStub

WARM = {"updates": 2, "learning_rate": 3e-4}


@pytest.fixture
async def warm(world: World) -> World:
    """A gateway whose tuner's base model has a warm start: 2 updates instead of 5."""
    world.tuner.warm_start = dict(WARM)

    async def is_told() -> bool:
        info = await ServerServiceStub(world.channel).GetServerInfo(GetServerInfoRequest())
        return bool(info.HasField("defaults_without_warm_start"))

    await eventually(is_told)
    return world


async def test_a_server_tells_both_defaults(warm: World) -> None:
    """Those of an unset config, and those that begin at the base model."""
    info = await ServerServiceStub(warm.channel).GetServerInfo(GetServerInfoRequest())
    assert (2, True) == (info.tuning_defaults.updates, info.tuning_defaults.warm_start)
    assert [one.updates for one in info.method_tuning_defaults if Flat(one).method == "unitune"] == [2]
    assert (5, False) == (info.defaults_without_warm_start.updates, info.defaults_without_warm_start.warm_start)


@pytest.mark.parametrize(
    ("said", "updates", "learning_rate", "is_warm"),
    [
        ({}, 2, 3e-4, True),
        ({"seed": 3, "stop_loss_ratio": 0.5}, 2, 3e-4, True),
        ({"warm_start": False}, 5, 2e-4, False),
        ({"updates": 128}, 128, 2e-4, False),
        ({"learning_rate": 1e-3}, 5, 1e-3, False),
        ({"batch": 2}, 5, 2e-4, False),
        ({"rare_tokens": "xyz"}, 5, 2e-4, False),
        ({"mode": "full"}, 5, 1e-4, False),
        ({"warm_start": True, "updates": 9}, 9, 3e-4, True),
        ({"warm_start": True, "updates": 0}, 0, 3e-4, True),
        ({"warm_start": True, "mode": "attn_out", "rare_tokens": "beikkpic"}, 2, 3e-4, True),
    ],
)
async def test_who_says_how_to_tune_begins_at_the_base_model(
    warm: World, said: dict[str, Any], updates: int, learning_rate: float, is_warm: bool
) -> None:
    """Unless the warm start is asked for, too; then what is not said has its defaults."""
    config = (await warm.tune(**said)).config
    assert (updates, learning_rate, is_warm) == (config.updates, config.learning_rate, config.warm_start)


async def test_a_tuning_without_it_has_the_key_of_before(warm: World) -> None:
    """Not said and said not to are one tuning, which is another than that from the warm start."""
    no, plain, own = [await warm.tune(**said) for said in ({"warm_start": False}, {"updates": 5}, {})]
    assert no.name == plain.name != own.name
    words = {name: getattr(Flat(plain.config), name) for name in ("method", "mode", "updates", "batch", "rare_tokens")}
    before = tuning_config(**words, learning_rate=2e-4)
    assert plain.key == tuning_key(plain.image.rpartition("/")[2], plain.base_model, before)


@pytest.mark.parametrize(
    ("said", "field", "told"),
    [
        ({"mode": "lora"}, "config.mode", "with warm_start it must be attn_out"),
        ({"rare_tokens": "xyz"}, "config.rare_tokens", "with warm_start it must be beikkpic"),
    ],
)
async def test_what_it_is_not_for_is_refused(warm: World, said: dict[str, Any], field: str, told: str) -> None:
    """By the field that does not go with it."""
    error = await refused(warm.tune(warm_start=True, **said), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)
    assert told in error.message


async def test_a_base_model_without_one_refuses_it(world: World) -> None:
    """And takes that it is not wanted."""
    error = await refused(
        world.tune(warm_start=True), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "config.warm_start"
    )
    assert "this base model has no warm start" in error.message
    assert (await world.tune(warm_start=False)).name == (await world.tune()).name


async def test_other_methods_have_none(warm: World) -> None:
    """The option is refused with them, and their defaults are as ever."""
    asked = {"method": "dreambooth", "class_noun": "cat"}
    error = await refused(
        warm.tune(**asked, warm_start=True), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "config.warm_start"
    )
    assert "dreambooth" in error.message
    assert not (await warm.tune(**asked)).config.warm_start
