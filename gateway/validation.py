"""What a request may ask for. Each check names the field, the refused value and what would be right.

A prompt is never repeated in an error: a refused one appears by its length.
"""

import time
import uuid
from collections.abc import Iterable, Mapping, Sized
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from gateway.config import LIMITS, GatewayConfig
from gateway.sampling_options import fill_options
from unitune import images, picture_header
from unitune.choices import MOST_IMAGES, NULL_TEXT, TUNING_METHODS
from unitune.errors import InvalidField, ResourceExhausted, length_of
from unitune.options import (
    EDIT,
    SAMPLING,
    TUNING,
    Flat,
    check,
    control_characters,
    element,
    options_of,
    put_words,
    refuse_unread,
)
from unitune.picture_file import PictureInfo
from unitune.prompts import mentions
from unitune.tuning_check import BOUND_TO_WARM_START, NO_WARM_START, check_of_warm_start
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.image_pb2 import Image
from unitune.v1.server_pb2 import BaseModel, Limits
from unitune.v1.tuner_pb2 import TunerInfo
from unitune.v1.tuning_pb2 import CreateTuningRequest, Tuning, TuningConfig
from unitune.working_size import fit, working_size

C = TypeVar("C", TuningConfig, SamplingConfig)

SCHEDULERS = SAMPLING["scheduler"].choices
ANSWER_BYTES = (16 << 20) - 4096  # clients take messages of 16 MiB
LABELS = options_of(CreateTuningRequest)["labels"].limits
# A tuning for which one of these is set begins at the base model, unless it asks for the warm start.
WITHOUT_WARM_START = ("mode", "updates", "batch", "learning_rate", "rare_tokens")
PAGE_SIZE, MAX_PAGE_SIZE = 50, 200
PAPER_LEARNING_RATE = 1e-4  # arXiv 2210.09477: Adafactor on all weights


def limits(config: GatewayConfig) -> Limits:
    """What every request must keep, and what this server's configuration allows."""
    return Limits(
        upload_bytes=picture_header.MAX_BYTES,
        upload_pixels=picture_header.MAX_PIXELS,
        upload_side=picture_header.MAX_SIDE,
        upload_webp_pixels=picture_header.WEBP_PIXELS,
        upload_heif_pixels=picture_header.HEIF_PIXELS,
        chunk_bytes=images.MAX_CHUNK_BYTES,
        prompt_characters=EDIT["prompt"].limits.max_len,
        seeds=EDIT["seeds"].limits.max_items,
        **{name: getattr(config, name) for name in LIMITS},
    )


def check_tuning_config(config: TuningConfig, field: str, method: str = "") -> None:
    """Check every field that is set; `field` is the config's own place in the request.

    `method` is that which the edit needs, and stands for a config that names none.
    """
    check(config, f"{field}.", only=["method"])
    refuse_unread(config, Flat(config).method or method or TUNING_METHODS[0], f"{field}.")
    check(config, f"{field}.")


def check_complete(config: TuningConfig, field: str) -> None:
    """Check that what only a caller can say is said. `config` is checked and has its method."""
    needed = {
        "imagic": ("prompt", "imagic tunes for one text: give the prompt of the edits to come"),
        "dreambooth": ("class_noun", "say what kind of thing the pictures show, such as dog"),
        "textual_inversion": ("initial_word", "give one word that says what the picture shows, such as dog"),
        NULL_TEXT: ("base_prompt", "describe the picture as it is, as the edits to come will"),
    }
    method = Flat(config).method
    if method in needed:
        name, remedy = needed[method]
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
    if size_bytes > picture_header.MAX_BYTES:
        remedy = f"the images of one tuning may have {picture_header.MAX_BYTES} bytes"
        value = f"{size_bytes} bytes in all"
        raise InvalidField("images", value, remedy)


def check_size_for_super_resolution(picture: Image | PictureInfo, base_model: BaseModel, stage: str) -> None:
    """A super-resolution stage is tuned on detail that a small picture does not have."""
    size = picture.height, picture.width
    into = working_size(size, (base_model.height, base_model.width), base_model.size_step)
    large = (
        into[0] * getattr(base_model, f"{stage}_height") // base_model.height,
        into[1] * getattr(base_model, f"{stage}_width") // base_model.width,
    )
    place = fit(size, into).scaled(large)
    side = place.height, place.width
    if not images.is_as_large(picture.width, picture.height, side):
        raise InvalidField("image", f"{picture.width}x{picture.height} pixels", images.too_small(side, stage))


def working_size_of(picture: Image | PictureInfo, base_model: BaseModel) -> tuple[int, int] | None:
    """Height and width at which a picture is tuned on; None if they are the base model's own."""
    own = base_model.height, base_model.width
    found = working_size((picture.height, picture.width), own, base_model.size_step)
    return found if found != own else None


def check_edit_of(tuning: TuningConfig, prompt: str) -> None:
    """Check that a prompt says what an edit with such a tuning needs."""
    words, method = tuning.rare_tokens.strip(), Flat(tuning).method
    if method == "imagic" and prompt.strip() != tuning.prompt.strip():
        remedy = "this tuning is for another text; edit with that one, or edit the image, which makes another tuning"
        raise InvalidField("prompt", length_of(prompt), remedy)
    if method == "dreambooth" and not (mentions(prompt, words) and mentions(prompt, tuning.class_noun)):
        remedy = f"it must have both {words!r} and {tuning.class_noun!r} in it, as in 'a {words} {tuning.class_noun}'"
        raise InvalidField("prompt", length_of(prompt), remedy)
    if method == "textual_inversion" and not mentions(prompt, words):
        remedy = f"it must have the placeholder {words!r} in it, where the picture's subject should be"
        raise InvalidField("prompt", length_of(prompt), remedy)


def defaults_of(method: str, by_method: Iterable[C], others: C) -> C:
    """The defaults of a method, from those that name theirs."""
    return next((defaults for defaults in by_method if Flat(defaults).method == method), others)


def tuning_defaults_of(config: TuningConfig, info: TunerInfo, field: str) -> TuningConfig:
    """The defaults of a checked config: from the base model's warm start, unless it says otherwise or how to tune.

    Raises InvalidField for a warm start that is not there, and for settings that it is not for.
    """
    asked, method = Flat(config), Flat(config).method or TUNING_METHODS[0]
    defaults = defaults_of(method, info.method_defaults, info.tuning_defaults)
    if not TUNING["warm_start"].is_read_by(method):
        return defaults
    if not info.HasField("warm_start_defaults"):
        if config.warm_start:
            raise InvalidField(f"{field}.warm_start", True, NO_WARM_START)
        return defaults
    says_how = any(TUNING[name].is_set(config) for name in WITHOUT_WARM_START)
    if not (config.warm_start if asked.has("warm_start") else not says_how):
        return defaults
    own = Flat(info.warm_start_defaults)
    for name in BOUND_TO_WARM_START:
        if asked.has(name):
            check_of_warm_start(name, getattr(asked, name), getattr(own, name), f"{field}.")
    return info.warm_start_defaults


def fill_tuning_config(config: TuningConfig, defaults: TuningConfig) -> TuningConfig:
    """A checked config with every field of its method set."""
    filled = TuningConfig()
    filled.CopyFrom(defaults)
    filled.MergeFrom(config)
    put_words(filled, {"method": Flat(config).method or TUNING_METHODS[0]})
    # The preset's rate belongs to the preset's mode; another mode gets the paper's.
    if not config.HasField("learning_rate") and filled.mode != defaults.mode:
        filled.learning_rate = PAPER_LEARNING_RATE
    return filled


def check_sampling_config(config: SamplingConfig, field: str) -> None:
    """Check every field that is set; `field` is the config's own place in the request."""
    check(config, f"{field}.")
    _refuse_unknown(config, field)


def _refuse_unknown(config: SamplingConfig, field: str) -> None:
    """Refuse what a newer client, or one of another contract, set and this server would ignore."""
    groups = {parent.path: parent for option in SAMPLING.values() for parent in option.parents}
    messages: dict[str, Message] = {field: config}
    messages |= {f"{field}.{path}": group.raw(config) for path, group in groups.items()}
    for place, message in messages.items():
        unknown_fields = UnknownFieldSet(message)
        for index in range(len(unknown_fields)):
            remedy = f"leave it unset: this server's {message.DESCRIPTOR.name} has no such field"
            raise InvalidField(place, f"field number {unknown_fields[index].field_number}", remedy)


def fill_sampling_config(config: SamplingConfig, mask: Sized, defaults: SamplingConfig, method: str) -> SamplingConfig:
    """A checked config with every field set that the method reads. `mask` is as long as the one of the request."""
    filled = SamplingConfig()
    filled.CopyFrom(defaults)
    filled.MergeFrom(config)
    put_words(filled, {"method": method, "scheduler": Flat(filled).scheduler or SCHEDULERS[0]})
    fill_options(filled, config, mask)
    return filled


def check_labels(labels: Mapping[str, str], field: str) -> None:
    """At most 16, keys of 1 to 63 characters, values of at most 63."""
    if len(labels) > LABELS.max_items:
        raise InvalidField(field, f"{len(labels)} labels", f"use at most {LABELS.max_items}")
    for key, value in labels.items():
        if not 1 <= len(key) <= LABELS.max_len:
            raise InvalidField(field, key, f"a label's key has 1 to {LABELS.max_len} characters")
        if len(value) > LABELS.max_len:
            place = element(field, key)
            raise InvalidField(place, value, f"a label's value has at most {LABELS.max_len} characters")
        for error in (*control_characters(key, element(field, key)), *control_characters(value, element(field, key))):
            raise error


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
