"""`make fuzz`, in short: what nobody should send, to every port of real services."""

from collections import Counter

import pytest

from bench.fuzz.fuzzing import SETTINGS, fuzz
from bench.soak.services import Services
from unitune_client.local.home import Home

pytestmark = pytest.mark.slow  # real services
REQUESTS = 600


def test_changed_requests_broken_pictures_and_garbage_are_refused(
    services_model, engine, tmp_path, built_home: Home
) -> None:
    """Nothing is INTERNAL or without details, no service ends, logs a traceback or grows, and an edit works afterwards
    (check 15)."""
    with Services(services_model, engine, tmp_path / "data", tmp_path / "logs", SETTINGS) as services:
        report = fuzz(services, REQUESTS, seed=1, say=lambda line: None, pictures=25)
    assert report.faults == []
    codes = sum((report.answers[port] for port in ("public", "internal", "sampler", "pictures")), Counter[str]())
    assert codes["OK"] > 20 and codes["INVALID_ARGUMENT"] > 100 and codes["NOT_FOUND"] > 0
