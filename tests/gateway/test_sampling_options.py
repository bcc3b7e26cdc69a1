"""What an option becomes when it is unset."""

import pytest

from gateway.validation import fill_sampling_config
from tests.configs import sampling_config
from unitune.options import Flat

DEFAULTS = sampling_config(scheduler="ddim", guidance_scale=2.5, strength=1, guidance_sigma_high=7, repeats=1)


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ({}, None, 7.0),
        ({"strength": 0.5}, None, 7.0),
        ({"guidance_scale": 4.0}, None, None),
        ({"guidance_scale": 4.0, "guidance_sigma_high": 5.0}, None, 5.0),
        ({"guidance_sigma_low": 8.0}, 8.0, None),
        ({"guidance_sigma_high": 5.0}, None, 5.0),
        ({"automatic": True}, None, None),
        ({"automatic": True, "guidance_sigma_high": 5.0}, None, 5.0),
    ],
)
def test_the_base_models_interval_of_guidance_stands_as_a_whole(
    asked: dict[str, float], low: float | None, high: float | None
) -> None:
    """Whoever asks for guidance or one end gets no end that was not asked for; nor do the points of automatic."""
    filled = Flat(fill_sampling_config(sampling_config(**asked), b"", DEFAULTS, "unitune"))  # type: ignore[arg-type]

    ends = [getattr(filled, end) if filled.has(end) else None for end in ("guidance_sigma_low", "guidance_sigma_high")]
    assert [low, high] == ends
