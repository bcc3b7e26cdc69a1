"""What an option becomes when it is unset."""

import pytest

from gateway.edit_plan import warnings_of_steps
from gateway.sampling_options import check_options
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


@pytest.mark.parametrize(
    ("asked", "spacing"),
    [({}, "trailing"), ({"timestep_spacing": "leading"}, "leading"), ({"scheduler": "lcm"}, "")],
)
def test_the_base_models_timestep_spacing_is_filled_in_where_it_is_read(asked: dict[str, str], spacing: str) -> None:
    """A preset's spacing and rescaling are defaults; lcm reads no spacing, and a filled config can be sent."""
    defaults = sampling_config(
        scheduler="euler", num_inference_steps=4, strength=0.75, timestep_spacing="trailing", guidance_rescale=0.7
    )

    config = fill_sampling_config(sampling_config(**asked), b"", defaults, "unitune")  # type: ignore[arg-type]

    assert (spacing, 0.7) == (Flat(config).timestep_spacing, config.guidance_rescale)
    check_options(config, b"", "config", "unitune", "a dog")


@pytest.mark.parametrize(("strength", "steps", "is_told"), [(0.2, 4, True), (0.25, 4, False), (0.0, 4, False)])
def test_a_strength_that_leaves_no_step_is_warned_of(strength: float, steps: int, is_told: bool) -> None:
    """Nothing would be edited; a strength of 0 asks for that."""
    warnings = warnings_of_steps(sampling_config(strength=strength, num_inference_steps=steps))
    assert is_told == bool(warnings)
    assert all("set config.strength to 0.25 or more" in warning for warning in warnings)


def test_a_second_pass_without_a_step_is_warned_of() -> None:
    """Few steps and its default strength leave none; more of either, or no second pass, is not warned of."""
    few = {"strength": 0.75, "num_inference_steps": 4, "second_pass_scale": 2.0}
    (warning,) = warnings_of_steps(sampling_config(**few, second_pass=True, second_pass_strength=0.2))
    assert "there is no second pass: set config.second_pass.strength to 0.25 or more" in warning
    assert not warnings_of_steps(sampling_config(**few, second_pass=True, second_pass_strength=0.25))
    assert not warnings_of_steps(sampling_config(strength=0.75, num_inference_steps=4))
