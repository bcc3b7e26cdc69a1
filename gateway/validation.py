"""What a request may ask for. Each check names the field, the refused value and what would be right.

A prompt is never repeated in an error: a refused one appears by its length.
"""

import math
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from gateway.sampling_options import fill_options
from unitune import images, picture_file
from unitune.choices import (
    ALIGNMENTS,
    EDIT_METHODS,
    GUIDANCE_INTERVAL,
    INVERSIONS,
    MASK_SOURCES,
    MAX_BATCH,
    MAX_CLASS_IMAGES,
    MAX_ETA,
    MAX_GUIDANCE_SCALE,
    MAX_LEARNING_RATE,
    MAX_MASK_BLUR,
    MAX_MASK_PADDING,
    MAX_NOISE_LEVEL,
    MAX_PRIOR_WEIGHT,
    MAX_PROMPT_CHARACTERS,
    MAX_RARE_TOKENS_CHARACTERS,
    MAX_REPEATS,
    MAX_RESAMPLES,
    MAX_SEEDS,
    MAX_SIGMA,
    MAX_STEPS,
    MAX_SUPER_RESOLUTION_STEPS,
    MAX_UPDATES,
    MAX_VECTORS,
    MAX_WORD_CHARACTERS,
    MAX_WORD_WEIGHT,
    MAX_WORDS,
    MODES,
    MOST_IMAGES,
    NULL_TEXT,
    OPTIONS_OF_ALL,
    TUNING_METHODS,
    TUNING_OPTIONS,
    UNCONDITIONAL_MODELS,
)
from unitune.diffusion import solvers
from unitune.errors import InvalidField, ResourceExhausted
from unitune.prompts import mentions
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.image_pb2 import Image
from unitune.v1.server_pb2 import BaseModel, Limits
from unitune.v1.tuning_pb2 import Tuning, TuningConfig

C = TypeVar("C", TuningConfig, SamplingConfig)

SCHEDULERS = tuple(solvers.SCHEDULERS)

PROMPT_CHARACTERS = MAX_PROMPT_CHARACTERS
IMAGE_DATA_BYTES = 3 << 20  # the largest picture that fits a request of 4 MiB with certainty
MASK_BYTES = 768 << 10  # with a picture of 3 MiB it fits such a request
ANSWER_BYTES = (16 << 20) - 4096  # clients take messages of 16 MiB
LABELS = 16
LABEL_CHARACTERS = 63
PAGE_SIZE, MAX_PAGE_SIZE = 50, 200
PAPER_LEARNING_RATE = 1e-4  # arXiv 2210.09477: Adafactor on all weights

LIMITS = Limits(
    upload_bytes=picture_file.MAX_BYTES,
    upload_pixels=picture_file.MAX_PIXELS,
    upload_side=picture_file.MAX_SIDE,
    upload_webp_pixels=picture_file.WEBP_PIXELS,
    chunk_bytes=images.MAX_CHUNK_BYTES,
    prompt_characters=PROMPT_CHARACTERS,
    seeds=MAX_SEEDS,
)


def check_tuning_config(config: TuningConfig, field: str, method: str = "") -> None:
    """Check every field that is set; `field` is the config's own place in the request.

    `method` is that which the edit needs, and stands for a config that names none.
    """
    if config.method:
        _one_of(f"{field}.method", config.method, TUNING_METHODS)
    _refuse_others(config, field, config.method or method or TUNING_METHODS[0])
    if config.mode:
        _one_of(f"{field}.mode", config.mode, MODES)
    if config.HasField("updates"):
        _whole(f"{field}.updates", config.updates, 0, MAX_UPDATES)
    if config.HasField("batch"):
        _whole(f"{field}.batch", config.batch, 1, MAX_BATCH)
    if config.HasField("learning_rate"):
        _rate(f"{field}.learning_rate", config.learning_rate)
    if len(config.rare_tokens) > MAX_RARE_TOKENS_CHARACTERS:
        length = f"{len(config.rare_tokens)} characters"
        raise InvalidField(f"{field}.rare_tokens", length, f"use at most {MAX_RARE_TOKENS_CHARACTERS} characters")
    if config.rare_tokens and (not config.rare_tokens.isprintable() or config.rare_tokens.isspace()):
        raise InvalidField(f"{field}.rare_tokens", config.rare_tokens, "use visible characters")
    _seed(f"{field}.seed", config.seed)
    if config.HasField("embedding_updates"):
        _whole(f"{field}.embedding_updates", config.embedding_updates, 0, MAX_UPDATES)
    if config.HasField("embedding_learning_rate"):
        _rate(f"{field}.embedding_learning_rate", config.embedding_learning_rate)
    if config.HasField("num_class_images"):
        _whole(f"{field}.num_class_images", config.num_class_images, 0, MAX_CLASS_IMAGES)
    if config.HasField("prior_weight"):
        _finite(f"{field}.prior_weight", config.prior_weight, 0, MAX_PRIOR_WEIGHT)
    if config.HasField("num_vectors"):
        _whole(f"{field}.num_vectors", config.num_vectors, 1, MAX_VECTORS)
    _finite(f"{field}.stop_loss_ratio", config.stop_loss_ratio, 0, 1)
    _whole(f"{field}.super_resolution_updates", config.super_resolution_updates, 0, MAX_UPDATES)
    for name in ("class_noun", "initial_word"):
        word = getattr(config, name)
        if word and (not word.isprintable() or word.isspace() or len(word) > MAX_WORD_CHARACTERS):
            shown = word if len(word) <= MAX_WORD_CHARACTERS else f"{len(word)} characters"
            raise InvalidField(f"{field}.{name}", shown, f"use 1 to {MAX_WORD_CHARACTERS} visible characters")
    if config.HasField("num_inference_steps"):
        _whole(f"{field}.num_inference_steps", config.num_inference_steps, 1, MAX_STEPS)
    if config.HasField("guidance_scale"):
        _finite(f"{field}.guidance_scale", config.guidance_scale, 0, MAX_GUIDANCE_SCALE)
    for name in ("prompt", "base_prompt"):
        if getattr(config, name):
            check_prompt(getattr(config, name), f"{field}.{name}")


def check_complete(config: TuningConfig, field: str) -> None:
    """Check that what only a caller can say is said. `config` is checked and has its method."""
    needed = {
        "imagic": ("prompt", "imagic tunes for one text: give the prompt of the edits to come"),
        "dreambooth": ("class_noun", "say what kind of thing the pictures show, such as dog"),
        "textual_inversion": ("initial_word", "give one word that says what the picture shows, such as dog"),
        NULL_TEXT: ("base_prompt", "describe the picture as it is, as the edits to come will"),
    }
    if config.method in needed:
        name, remedy = needed[config.method]
        if not getattr(config, name):
            raise InvalidField(f"{field}.{name}", "", remedy)


def check_number_of_images(number: int, method: str) -> None:
    """1 image for most methods, at most 5 for DreamBooth."""
    most = MOST_IMAGES.get(method, 1)
    if number > most:
        takes = f"{method} tunes on one image" if most == 1 else f"{method} takes at most {most}"
        raise InvalidField("images", f"{number} images in all", f"{takes}; several are for {' or '.join(MOST_IMAGES)}")


def check_size_of_images(size_bytes: int) -> None:
    """The files of all images of a tuning travel to the tuner in one message."""
    if size_bytes > picture_file.MAX_BYTES:
        remedy = f"the images of one tuning may have {picture_file.MAX_BYTES} bytes"
        value = f"{size_bytes} bytes in all"
        raise InvalidField("images", value, remedy)


def check_size_for_second_stage(picture: Image | picture_file.PictureInfo, base_model: BaseModel) -> None:
    """A second stage is tuned on detail that a small picture does not have."""
    side = base_model.super_resolution_height, base_model.super_resolution_width
    if not images.is_as_large(picture.width, picture.height, side):
        raise InvalidField("image", f"{picture.width}x{picture.height} pixels", images.too_small(side))


def check_edit_of(tuning: TuningConfig, prompt: str) -> None:
    """Check that a prompt says what an edit with such a tuning needs."""
    words = tuning.rare_tokens.strip()
    if tuning.method == "imagic" and prompt.strip() != tuning.prompt.strip():
        remedy = "this tuning is for another text; edit with that one, or edit the image, which makes another tuning"
        raise InvalidField("prompt", f"{len(prompt)} characters", remedy)
    if tuning.method == "dreambooth" and not (mentions(prompt, words) and mentions(prompt, tuning.class_noun)):
        remedy = f"it must have both {words!r} and {tuning.class_noun!r} in it, as in 'a {words} {tuning.class_noun}'"
        raise InvalidField("prompt", f"{len(prompt)} characters", remedy)
    if tuning.method == "textual_inversion" and not mentions(prompt, words):
        remedy = f"it must have the placeholder {words!r} in it, where the picture's subject should be"
        raise InvalidField("prompt", f"{len(prompt)} characters", remedy)


def defaults_of(method: str, by_method: Iterable[C], others: C) -> C:
    """The defaults of a method, from those that name theirs."""
    return next((defaults for defaults in by_method if defaults.method == method), others)


def fill_tuning_config(config: TuningConfig, defaults: TuningConfig) -> TuningConfig:
    """A checked config with every field of its method set."""
    filled = TuningConfig()
    filled.CopyFrom(defaults)
    filled.MergeFrom(config)
    filled.method = config.method or TUNING_METHODS[0]
    # The preset's rate belongs to the preset's mode; another mode gets the paper's.
    if not config.HasField("learning_rate") and filled.mode != defaults.mode:
        filled.learning_rate = PAPER_LEARNING_RATE
    return filled


def check_sampling_config(config: SamplingConfig, field: str) -> None:
    """Check every field that is set; `field` is the config's own place in the request."""
    if config.method:
        _one_of(f"{field}.method", config.method, EDIT_METHODS)
    if config.scheduler:
        _one_of(f"{field}.scheduler", config.scheduler, SCHEDULERS)
    if config.HasField("num_inference_steps"):
        _whole(f"{field}.num_inference_steps", config.num_inference_steps, 1, MAX_STEPS)
    if config.HasField("guidance_scale"):
        _finite(f"{field}.guidance_scale", config.guidance_scale, 0, MAX_GUIDANCE_SCALE)
    if config.HasField("strength"):
        _finite(f"{field}.strength", config.strength, 0, 1)
    if config.HasField("interpolation"):
        _finite(f"{field}.interpolation", config.interpolation, 0, 1)
    for prompt in ("negative_prompt", "base_prompt", "mask_text"):
        if len(getattr(config, prompt)) > PROMPT_CHARACTERS:
            length = f"{len(getattr(config, prompt))} characters"
            raise InvalidField(f"{field}.{prompt}", length, f"use at most {PROMPT_CHARACTERS} characters")
    if config.HasField("prompt_guidance_scale"):
        _finite(f"{field}.prompt_guidance_scale", config.prompt_guidance_scale, 0, MAX_GUIDANCE_SCALE)
    if config.unconditional_model:
        _one_of(f"{field}.unconditional_model", config.unconditional_model, UNCONDITIONAL_MODELS)
    if config.HasField("base_mixture"):
        _finite(f"{field}.base_mixture", config.base_mixture, 0, 1)
    if config.mask_source:
        _one_of(f"{field}.mask_source", config.mask_source, MASK_SOURCES)
    if config.HasField("mask_blur"):
        _finite(f"{field}.mask_blur", config.mask_blur, 0, MAX_MASK_BLUR)
    if config.HasField("mask_padding"):
        _whole(f"{field}.mask_padding", config.mask_padding, 0, MAX_MASK_PADDING)
    if config.HasField("repeats"):
        _whole(f"{field}.repeats", config.repeats, 1, MAX_REPEATS)
    if config.HasField("resamples"):
        _whole(f"{field}.resamples", config.resamples, 0, MAX_RESAMPLES)
    if config.HasField("eta"):
        _finite(f"{field}.eta", config.eta, 0, MAX_ETA)
    for end in GUIDANCE_INTERVAL:
        if config.HasField(end):
            _finite(f"{field}.{end}", getattr(config, end), 0, MAX_SIGMA)
    if config.HasField("super_resolution_noise_level"):
        _whole(f"{field}.super_resolution_noise_level", config.super_resolution_noise_level, 0, MAX_NOISE_LEVEL)
    if config.HasField("super_resolution_steps"):
        _whole(f"{field}.super_resolution_steps", config.super_resolution_steps, 1, MAX_SUPER_RESOLUTION_STEPS)
    if config.HasField("super_resolution_guidance_scale"):
        scale = config.super_resolution_guidance_scale
        _finite(f"{field}.super_resolution_guidance_scale", scale, 0, MAX_GUIDANCE_SCALE)
    _check_attention(config, field)
    _refuse_unknown(config, field)


def _check_attention(config: SamplingConfig, field: str) -> None:
    """The options of Prompt-to-Prompt, each by itself."""
    if config.inversion:
        _one_of(f"{field}.inversion", config.inversion, INVERSIONS)
    if config.alignment:
        _one_of(f"{field}.alignment", config.alignment, ALIGNMENTS)
    for name in ("cross_replace", "self_replace"):
        if config.HasField(name):
            _finite(f"{field}.{name}", getattr(config, name), 0, 1)
    for name in ("word_weights", "blend_words"):
        number = len(getattr(config, name))
        if number > MAX_WORDS:
            raise InvalidField(f"{field}.{name}", f"{number} words", f"name at most {MAX_WORDS}")
    for weight in config.word_weights.values():
        _finite(f"{field}.word_weights", weight, -MAX_WORD_WEIGHT, MAX_WORD_WEIGHT)


def _refuse_unknown(config: SamplingConfig, field: str) -> None:
    """Refuse what a newer client, or one of another contract, set and this server would ignore."""
    unknown_fields = UnknownFieldSet(config)
    for index in range(len(unknown_fields)):
        unknown = unknown_fields[index]
        remedy = "leave it unset: this server's SamplingConfig has no such field"
        raise InvalidField(field, f"field number {unknown.field_number}", remedy)


def fill_sampling_config(config: SamplingConfig, mask: bytes, defaults: SamplingConfig, method: str) -> SamplingConfig:
    """A checked config with every field set that the method reads. `mask` is the one of the request."""
    filled = SamplingConfig()
    filled.CopyFrom(defaults)
    filled.MergeFrom(config)
    filled.method = method
    filled.scheduler = filled.scheduler or SCHEDULERS[0]
    fill_options(filled, config, mask)
    return filled


def check_prompt(prompt: str, field: str = "prompt") -> None:
    """1 to 2000 characters, at least one of them visible."""
    remedy = f"describe the edited picture in 1 to {PROMPT_CHARACTERS} characters"
    if not prompt.strip():
        raise InvalidField(field, "blank" if prompt else "", remedy)
    if len(prompt) > PROMPT_CHARACTERS:
        raise InvalidField(field, f"{len(prompt)} characters", remedy)


def check_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds to use: one picture from seed 0 if there are none."""
    wanted = list(seeds) or [0]
    if len(wanted) > MAX_SEEDS:
        raise InvalidField("seeds", f"{len(wanted)} seeds", f"ask for at most {MAX_SEEDS}; each gives one picture")
    for index, seed in enumerate(wanted):
        _seed(f"seeds[{index}]", seed)
    return wanted


def check_preview_every(preview_every: int) -> None:
    """0 for no preview, else so many steps between two."""
    _whole("preview_every", preview_every, 0, MAX_STEPS)


def check_labels(labels: Mapping[str, str], field: str) -> None:
    """At most 16, keys of 1 to 63 characters, values of at most 63."""
    if len(labels) > LABELS:
        raise InvalidField(field, f"{len(labels)} labels", f"use at most {LABELS}")
    for key, value in labels.items():
        if not 1 <= len(key) <= LABEL_CHARACTERS:
            raise InvalidField(field, key, f"a label's key has 1 to {LABEL_CHARACTERS} characters")
        if len(value) > LABEL_CHARACTERS:
            raise InvalidField(f"{field}[{key}]", value, f"a label's value has at most {LABEL_CHARACTERS} characters")


def check_page_size(page_size: int) -> int:
    """The page size to use."""
    if page_size < 0:
        raise InvalidField("page_size", page_size, f"it must be 0 (for {PAGE_SIZE}) to {MAX_PAGE_SIZE}")
    return min(page_size or PAGE_SIZE, MAX_PAGE_SIZE)


def check_future(field: str, moment: Timestamp, otherwise: str) -> None:
    """A time that is to come; `otherwise` says what is for now. The contract lets any number of seconds through."""
    try:
        is_future, shown = moment.ToMicroseconds() > time.time() * 1e6, moment.ToJsonString()
    except ValueError:
        value = f"{moment.seconds} seconds and {moment.nanos} nanoseconds"
        remedy = "seconds must be of the years 1 to 9999, and nanos 0 to 999999999"
        raise InvalidField(field, value, remedy) from None
    if not is_future:
        raise InvalidField(field, shown, f"it must be in the future; {otherwise}")


def check_state(state: int) -> None:
    """A state of a tuning by its number; the contract lets any number through."""
    known = Tuning.State.values()
    if state not in known:
        raise InvalidField("state", state, f"it must be one of {', '.join(Tuning.State.keys())}")


def check_request_id(request_id: str) -> None:
    """A UUID in its usual form."""
    try:
        same = str(uuid.UUID(request_id)) == request_id.lower()
    except ValueError:
        same = False
    if not same:
        raise InvalidField("request_id", request_id, "it must be a UUID, such as uuid.uuid4() makes")


def check_answer(size_bytes: int, problem: str) -> None:
    """Raise ResourceExhausted (MESSAGE_TOO_LARGE) for what no client would take; gRPC would not say why."""
    if size_bytes > ANSWER_BYTES:
        raise ResourceExhausted(problem, reason="MESSAGE_TOO_LARGE", metadata={"size_bytes": str(size_bytes)})


def _refuse_others(config: TuningConfig, field: str, method: str) -> None:
    """Refuse what belongs to other methods than this one."""
    own = {*OPTIONS_OF_ALL, *TUNING_OPTIONS.get(method, ())}
    for found, value in config.ListFields():
        if found.name not in own:
            owners = " or ".join(name for name, options in TUNING_OPTIONS.items() if found.name in options)
            shown = f"{len(value)} characters" if found.name in ("prompt", "base_prompt") else value
            raise InvalidField(
                f"{field}.{found.name}", shown, f"it belongs to method {owners}, and this one's is {method}"
            )


def _rate(field: str, value: float) -> None:
    if not 0 < value <= MAX_LEARNING_RATE:
        raise InvalidField(field, value, f"it must be above 0 and at most {MAX_LEARNING_RATE}")


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidField(field, value, f"it must be {' or '.join(allowed)}")


def _whole(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidField(field, value, f"it must be {low} to {high}")


def _finite(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidField(field, value, f"it must be a number from {low} to {high}")


def _seed(field: str, value: int) -> None:
    if value < 0:
        raise InvalidField(field, value, "it must be 0 or more")
