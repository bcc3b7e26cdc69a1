"""What one request may cost: the steps of an edit, and the pixels that a tuning passes through the denoiser.

The contract bounds each field. Together they could still ask for hours.
"""

import math

from unitune import working_size
from unitune.base_model import SUPER_RESOLUTION_STAGES
from unitune.choices import (
    DEFAULT_RESAMPLES,
    DEFAULT_SECOND_PASS_SCALE,
    DEFAULT_SECOND_PASS_STRENGTH,
    NULL_TEXT,
)
from unitune.diffusion.schedule import num_late_steps
from unitune.errors import COST_LIMIT, InvalidArgument
from unitune.options import SAMPLING, TUNING, Flat
from unitune.tile_starts import tile_starts
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import TuningConfig

AUTOMATIC_ATTEMPTS = 3  # how many points a base model's preset has, unless it lists its own
USUAL_STEPS = 50
USUAL_UPDATES = 128
USUAL_TILES = 9
USUAL_PREDICTIONS = 2  # of a step: of the prompt, and of the empty one
PIXELS_EACH = 8  # of a latent, along a side, where a base model tells no size_step


def edit_steps(config: SamplingConfig, num_seeds: int, tiles: int = 0, stages: int = 1) -> int:
    """The most steps that an edit with a filled config may run: (steps x repeats + those of the second pass x tiles) x
    attempts x seeds, and those of super-resolution.

    A step with more predictions than usual counts as more. `stages` is what `super_resolution_stages` says.
    """
    asked = Flat(config)
    own = asked.num_inference_steps * max(1, asked.repeats) + tiles * _second_pass_steps(config)
    share = max(1.0, _predictions(config) / USUAL_PREDICTIONS)
    return math.ceil(num_seeds * (own * _attempts(config) * share + stages * asked.super_resolution_steps))


def most_tiles(config: SamplingConfig, size: tuple[int, int], base_model: BaseModel) -> int:
    """The most tiles that the second pass of an edit may have over a picture of `size` (height, width); 0 without one.

    What only_masked edits of it is not known yet, so it is any part.
    """
    asked = Flat(config)
    if not _second_pass_steps(config):
        return 0
    side, step = (base_model.height, base_model.width), base_model.size_step
    each = step or PIXELS_EACH
    scale = asked.second_pass_scale if asked.has("second_pass_scale") else DEFAULT_SECOND_PASS_SCALE

    def tiles(height: int, width: int) -> int:
        return math.prod(
            len(tile_starts(length, min(length, most), each))
            for length, most in zip((height, width), side, strict=True)
        )

    if asked.only_masked:
        sizes = working_size.working_sizes(side, step)
        return max(tiles(*(each * math.ceil(scale * length / each) for length in one)) for one in sizes)
    place = working_size.fit(size, working_size.working_size(size, side, step))
    enlarged = working_size.enlarged(size, place, scale, each)
    return tiles(*enlarged.size) if enlarged is not None else 0


def super_resolution_stages(config: SamplingConfig, base_model: BaseModel) -> int:
    """The steps of super-resolution's first stage that cost as much as one of each stage that an edit asks for."""
    first = base_model.super_resolution_width * base_model.super_resolution_height
    second = base_model.super_resolution_2_width * base_model.super_resolution_2_height
    is_second = second and Flat(config).super_resolution_width == base_model.super_resolution_2_width
    return 1 + second // first if is_second else 1


def least_steps(config: SamplingConfig, num_seeds: int) -> int:
    """The fewest steps that it runs: without those below its strength, and with one attempt."""
    asked = Flat(config)
    late = 0 if config.automatic else num_late_steps(asked.num_inference_steps, asked.strength)
    return num_seeds * (max(1, late) * max(1, asked.repeats) + asked.super_resolution_steps)


def check_edit_cost(
    config: SamplingConfig, num_seeds: int, most: int, field: str = "config", *, tiles: int = 0, stages: int = 1
) -> None:
    """Raise InvalidArgument (COST_LIMIT) for a filled config with more than `most` steps; 0 means no limit. `tiles` are
    those of its second pass, `stages` is what `super_resolution_stages` says."""
    steps = edit_steps(config, num_seeds, tiles, stages)
    if not 0 < most < steps:
        return
    asked, attempts = Flat(config), _attempts(config)
    # The field that is farthest above what is usual is told.
    factors = {
        f"{field}.num_inference_steps": (asked.num_inference_steps, USUAL_STEPS),
        "seeds": (num_seeds, 1),
        f"{field}.repeats": (max(1, asked.repeats), 1),
        f"{field}.{SAMPLING['resamples'].path}": (0 if config.automatic else attempts - 1, 1),
        f"{field}.{SAMPLING['super_resolution_steps'].path}": (stages * asked.super_resolution_steps, USUAL_STEPS),
    }
    scale = f"{field}.{SAMPLING['second_pass_scale'].path}"
    shown = {name: value for name, (value, _) in factors.items()}
    shown |= {"seeds": f"{num_seeds} seeds", scale: asked.second_pass_scale}
    shown |= {f"{field}.{SAMPLING['super_resolution_steps'].path}": asked.super_resolution_steps}
    factors[scale] = (tiles, USUAL_TILES)
    name = max(factors, key=lambda one: factors[one][0] / factors[one][1])
    value = shown[name]
    made = (
        f"{num_seeds} seeds x {attempts} attempts x {max(1, asked.repeats)} repeats x {asked.num_inference_steps} steps"
    )
    if tiles:
        each = _second_pass_steps(config)
        made += f" + {num_seeds} seeds x {attempts} attempts x {tiles} tiles x {each} steps of the second pass"
    if (predictions := _predictions(config)) > USUAL_PREDICTIONS:
        made = f"({made}) x {predictions} / {USUAL_PREDICTIONS} predictions"
    if asked.super_resolution_steps:
        made += f" + {num_seeds} seeds x {asked.super_resolution_steps} steps of super-resolution"
        made += f" x {stages}, since the second stage's are larger" if stages > 1 else ""
    remedy = f"lower it, or ask for less of the others: {made} are {steps} steps, and this server allows {most}"
    raise InvalidArgument.field_error(name, value, remedy, reason=COST_LIMIT)


def tuning_pixels(config: TuningConfig, base_model: BaseModel) -> int:
    """The pixels of all pictures of all updates of a filled config: updates x batch x pixels, and the same of
    super-resolution, whose second stage is tuned on crops of the first one's size."""
    asked = Flat(config)
    updates = asked.updates * (asked.num_inference_steps if asked.method == NULL_TEXT else 1)
    own = (updates + asked.embedding_updates) * base_model.width * base_model.height
    large = base_model.super_resolution_width * base_model.super_resolution_height
    return max(1, asked.batch) * (own + (asked.super_resolution_updates + asked.super_resolution_2_updates) * large)


def check_tuning_cost(config: TuningConfig, base_model: BaseModel, most: int, field: str) -> None:
    """Raise InvalidArgument (COST_LIMIT) for a filled config of more than `most` pixels; 0 means no limit."""
    pixels = tuning_pixels(config, base_model)
    if not 0 < most < pixels:
        return
    asked = Flat(config)
    names = ("updates", "embedding_updates", *(f"{stage}_updates" for stage in SUPER_RESOLUTION_STAGES))
    values = {name: (getattr(asked, name), USUAL_UPDATES) for name in names} | {"batch": (asked.batch, 4)}
    name = max(values, key=lambda one: values[one][0] / values[one][1])
    remedy = (
        f"lower it, or ask for less of the others: updates x batch x pixels are {pixels}, and this server allows {most}"
    )
    raise InvalidArgument.field_error(f"{field}.{TUNING[name].path}", values[name][0], remedy, reason=COST_LIMIT)


def _second_pass_steps(config: SamplingConfig) -> int:
    """Of each tile."""
    asked = Flat(config)
    strength = asked.second_pass_strength if asked.has("second_pass_strength") else DEFAULT_SECOND_PASS_STRENGTH
    return num_late_steps(asked.num_inference_steps, strength) if asked.second_pass else 0


def _predictions(config: SamplingConfig) -> int:
    """The most predictions of a step: one for each term of its guidance that has a weight."""
    asked = Flat(config)
    guided = config.automatic or asked.guidance_scale != 1
    return 1 + guided + (asked.prompt_guidance_scale > 0) + (asked.base_mixture > 0)


def _attempts(config: SamplingConfig) -> int:
    """How often the CLIP filter may have the whole edit run."""
    if config.automatic:
        return AUTOMATIC_ATTEMPTS
    if not config.HasField("clip_filter"):
        return 1
    resamples = config.clip_filter.resamples if config.clip_filter.HasField("resamples") else DEFAULT_RESAMPLES
    return 1 + resamples
