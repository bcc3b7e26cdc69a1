"""Every field of an assignment with extreme values: nothing of them is our mistake."""

from collections.abc import Callable
from typing import Any

import pytest

from bench.fuzz.extremes import extremes
from tests.configs import tuning_config
from tests.gateway.conftest import sha256
from tests.tuner_svc.test_service import NAME, PATH, SHORT, events, start, store
from unitune.errors import from_status
from unitune.options import TUNING, read_by
from unitune.v1.tuner_pb2 import Assignment, StoredImage

__all__ = ["start", "store"]  # fixtures

OWN = read_by(TUNING, "unitune")


@pytest.mark.exhaustive  # tests/gateway/test_fuzz.py has the same fields, and test_service.py what a tuner refuses
async def test_no_extreme_value_of_an_assignment_is_our_mistake(start: Callable[..., Any]) -> None:
    """Numbers, texts and bytes at their ends, one field at a time: a tuning, or a failure with details (r1, r2)."""
    tuner = await start()
    picture = StoredImage(name="i", path=f"images/t/{sha256(tuner.picture)}/file", sha256=sha256(tuner.picture))
    tuner.store.put(picture.path, tuner.picture)
    config = tuning_config(**{**SHORT, "updates": 0})
    base = Assignment(name=NAME, attempt=1, key="key", images=[picture], path=PATH, config=config)
    found, kinds = [], set()
    for done, asked in extremes(base):
        if done.startswith("config.") and done.removeprefix("config.").partition("=")[0] not in OWN:
            continue  # what other methods read is not read here
        report = (await events(tuner.pool.assign(asked)))[-1]
        kinds.add(report.WhichOneof("report"))
        error = from_status(report.failed) if report.HasField("failed") else None
        if error is not None and (not error.reason or error.reason == "INTERNAL"):
            found.append(f"{done}: {error}")
        await tuner.is_idle()
    assert found == [] and kinds == {"done", "failed"}
