"""Every field of the tuner's requests with extreme values: nothing of them is our mistake."""

from collections.abc import Callable
from typing import Any

from tests.answers import fault_of
from tests.configs import tuning_config
from tests.extremes import extremes
from tests.tuner_svc.test_service import NAME, PATH, SHORT, start, store
from unitune.options import TUNING, read_by
from unitune.v1 import tuner_pb2

__all__ = ["start", "store"]  # fixtures

OWN = read_by(TUNING, "unitune")


async def test_no_extreme_value_of_a_run_is_our_mistake(start: Callable[..., Any]) -> None:
    """Numbers, texts and bytes at their ends, one field at a time: a tuning, or a refusal with details (r1, r2)."""
    tuner = await start()
    config = tuning_config(**{**SHORT, "updates": 0})
    base = tuner_pb2.RunTuningRequest(name=NAME, key="key", image=tuner.picture, path=PATH, config=config)
    found = []
    for done, asked in extremes(base):
        if done.startswith("config.") and done.removeprefix("config.").partition("=")[0] not in OWN:
            continue  # what other methods read is not read here
        if fault := await fault_of(tuner.stub.RunTuning(asked, timeout=120)):
            found.append(f"{done}: {fault}")
    assert found == []


async def test_no_extreme_value_of_the_other_calls_is_our_mistake(start: Callable[..., Any]) -> None:
    """A check and a cancel with anything in them: an answer, or a refusal with details (r1, r2)."""
    tuner = await start()
    imagic = {**SHORT, "method": "imagic", "prompt": "a cat", "embedding_updates": 1, "embedding_learning_rate": 1e-3}
    calls = (
        ("CheckTuning", tuner_pb2.CheckTuningRequest(config=tuning_config(**SHORT))),
        ("CheckTuning", tuner_pb2.CheckTuningRequest(config=tuning_config(**imagic))),
        ("CancelTuning", tuner_pb2.CancelRunRequest(name=NAME)),
        ("GetTunerInfo", tuner_pb2.GetTunerInfoRequest()),
    )
    of_the_contract = tuner_pb2.DESCRIPTOR.services_by_name["TunerService"].methods_by_name.keys()
    assert {"RunTuning", *(name for name, _ in calls)} == {*of_the_contract}
    found = []
    for name, base in calls:
        for done, asked in (("as it is", base), *extremes(base)):
            if fault := await fault_of(getattr(tuner.stub, name)(asked, timeout=120)):
                found.append(f"{name} {done}: {fault}")
    assert found == []
