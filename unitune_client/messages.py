"""Protobuf messages to the plain values of `events`, and options to messages. Nothing else here knows their fields."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, TypedDict, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from unitune.errors import InvalidArgument, InvalidField, UniTuneError, from_status
from unitune.image_pieces import Assembly
from unitune.v1 import edit_pb2, image_pb2, server_pb2, tuning_pb2
from unitune_client import events
from unitune_client.pictures import Picture


class UnknownOption(InvalidField, TypeError):
    """A keyword that no option has: INVALID_ARGUMENT as from a server, and a TypeError as of any function."""


class TuningOptions(TypedDict, total=False):
    """What may be said about a tuning; what is absent or None is the base model's own default (`server_info`).

    method          "unitune", "imagic", "dreambooth", "textual_inversion", or "null_text", for "prompt_to_prompt"
    mode            "full", "attn_out" or "lora": which weights of the UNet change
    updates         optimizer updates, 0 to 5000; of "null_text" for each step
    batch           noise draws of the picture in one update, 1 to 64
    learning_rate   of the optimizer, above 0 to 0.1
    rare_tokens     words that the tuning binds to the picture, at most 32 characters; the placeholder of
                    "textual_inversion"
    tuning_seed     of every random draw of the tuning
    stop_loss_ratio of "unitune", 0 to 1: the tuning ends early when its loss has fallen to this share of the first
                    updates'; 0 never does
    super_resolution_updates   of "unitune" and "imagic", 0 to 5000: the second stage is tuned, too, so many updates

    Of "imagic", which tunes for one text:

    tuning_prompt             that text; an edit of a picture puts its own prompt here
    embedding_updates         0 to 5000, of the text embedding, before those of the UNet
    embedding_learning_rate   above 0 to 0.1

    Of "dreambooth":

    class_noun         what kind of thing the pictures show, such as "dog"
    num_class_images   0 to 1000, drawn by the base model to keep the class what it was
    prior_weight       0 to 100, of the loss on them

    Of "textual_inversion":

    initial_word          one token, from whose embedding the vectors start
    num_vectors           1 to 16, in the placeholder's place
    scale_learning_rate   whether the learning rate is multiplied by the batch

    Of "null_text", as in the edits to come; an edit of a picture puts its own here:

    base_prompt           what the photo shows
    num_inference_steps   1 to 1000, of a run from pure noise
    guidance_scale        weight of the prompt
    """

    method: str | None
    mode: str | None
    updates: int | None
    batch: int | None
    learning_rate: float | None
    rare_tokens: str | None
    tuning_seed: int | None
    stop_loss_ratio: float | None
    super_resolution_updates: int | None
    tuning_prompt: str | None
    embedding_updates: int | None
    embedding_learning_rate: float | None
    class_noun: str | None
    num_class_images: int | None
    prior_weight: float | None
    initial_word: str | None
    num_vectors: int | None
    scale_learning_rate: bool | None
    base_prompt: str | None
    num_inference_steps: int | None
    guidance_scale: float | None


class EditOptions(TuningOptions, total=False):
    """What may be said about an edit; what is absent or None is the base model's own default (`server_info`).

    method                "unitune", "imagic", "dreambooth" or "textual_inversion", which tune, or "sdedit" or
                          "prompt_to_prompt", which do not, but for inversion "null_text"; absent means that of the
                          tuning, and "unitune" for a picture
    strength              0 to 1, how far up the noise schedule the edit starts: more changes more
    guidance_scale        weight of the prompt; 1 is no guidance
    interpolation         0 to 1, how much of the photo comes back outside of the mask, or with mask_source
                          "difference" where the edit left it nearly alone; 1 by default with other masks
    num_inference_steps   steps of a run from pure noise, 1 to 1000; strength leaves the later part of them
    fast                  of "unitune": True takes the base model's few steps in place of them, where it has such
    scheduler             "ddim", "euler" or "dpmpp_2m"
    negative_prompt       what the picture shall not show
    base_prompt           what the photo shows; prompt_guidance_scale and mask_source "diffedit" read it, and
                          "prompt_to_prompt" needs it
    prompt_guidance_scale how far the edit is pushed away from base_prompt
    unconditional_model   "tuned" or "base": whose weights predict the empty or negative prompt
    base_mixture          0 to 1, the base model's share of the prediction in the noisier half of the steps
    mask                  a PNG, bytes, path or uploaded image, as large as the photo: white is edited, black is
                          kept exactly
    mask_source           "given", "word" or "diffedit" (before the first step), "difference" or "attention" (from the
                          finished edit)
    mask_text             what the mask is of, as "the cat" or "cat, tree"; mask_source is then "word" or "attention"
    mask_blur             0 to 256, the radius of the mask's soft edge in pixels of the photo
    only_masked           True edits a crop around the mask at the model's full size, and pastes it back
    mask_padding          0 to 1024, pixels of the photo around the mask that the crop shows
    inverted              True starts from the photo inverted by DDIM, and keeps to that outside of the mask (DiffEdit)
    mask_keeps            True for a mask in which white is kept and black is edited, as in SDEdit's own code
    repeats               1 to 10, whole runs of "sdedit", each from the last one's picture
    automatic             True lets the gate choose strength and guidance_scale from the base model's own points
    gate                  True scores each picture, and tries other seeds in place of one that does not pass
    resamples             0 to 8, how many other seeds the gate may try; 3 by default
    seeds                 one picture each; same seed, same picture
    guidance_sigma_low    0 to 10000; steps of a sigma (noise over signal) up to it are not guided, and cost one pass
    guidance_sigma_high   0 to 10000; nor are steps of a sigma above it. Both unset are the base model's own interval
    eta                   of "imagic", 0 to 2: how far from the picture's embedding towards the prompt's
    super_resolution      True has the base model's second stage enlarge the edited pictures, where it has one
    super_resolution_noise_level     0 to 999, timestep to which the picture is noised for it: more lets it invent more
    super_resolution_steps           1 to 1000, its steps
    super_resolution_guidance_scale  its weight of the prompt; 1 is no guidance
    dynamic_thresholding  False leaves its predictions outside of a picture's range as they are; then guidance is at
                          most 10
    omit_metadata         True leaves out of the PNG files what they otherwise say of their making
    preview_every         a preview each so many steps; 0 is none
    timeout_s             seconds that the whole edit, tuning included, may take

    Of "prompt_to_prompt":

    cross_replace         0 to 1, share of the steps in which words keep the photo's attention
    self_replace          0 to 1, the same for the photo's own layout
    inversion             "direct" or "ddim": whether the photo's branch is put back on the photo at every step; or
                          "null_text", which tunes an embedding for each step that keeps it near
    alignment             "replace" or "refine": word by word, or by the words that both prompts have
    word_weights          word of the prompt to its weight, -10 to 10; above 1 shows more of it
    blend_words           words of either prompt; only where they look is the photo edited

    The options of a tuning are for a picture; a tuning that exists has its own.
    """

    strength: float | None
    interpolation: float | None
    fast: bool | None
    scheduler: str | None
    negative_prompt: str | None
    prompt_guidance_scale: float | None
    unconditional_model: str | None
    base_mixture: float | None
    mask: Picture | None
    mask_source: str | None
    mask_text: str | None
    inverted: bool | None
    mask_blur: float | None
    only_masked: bool | None
    mask_padding: int | None
    mask_keeps: bool | None
    repeats: int | None
    eta: float | None
    cross_replace: float | None
    self_replace: float | None
    inversion: str | None
    alignment: str | None
    word_weights: Mapping[str, float] | None
    blend_words: list[str] | tuple[str, ...] | None
    guidance_sigma_low: float | None
    guidance_sigma_high: float | None
    automatic: bool | None
    gate: bool | None
    resamples: int | None
    super_resolution: bool | None
    super_resolution_noise_level: int | None
    super_resolution_steps: int | None
    super_resolution_guidance_scale: float | None
    dynamic_thresholding: bool | None
    seeds: list[int] | tuple[int, ...] | None
    omit_metadata: bool | None
    preview_every: int | None
    timeout_s: float | None


# Which methods to compare: names, or names with options of their own; None is every one that can run.
Methods = Sequence[str] | Mapping[str, EditOptions] | None

_TUNING_FIELDS = {option: option for option in TuningOptions.__annotations__} | {
    "tuning_seed": "seed",
    "tuning_prompt": "prompt",
}
OF_THE_EDIT = ("method", "base_prompt", "num_inference_steps", "guidance_scale")  # a server takes them over
_SAMPLING_FIELDS = tuple(edit_pb2.SamplingConfig.DESCRIPTOR.fields_by_name)
_REQUEST_FIELDS = ("seeds", "preview_every", "mask", "omit_metadata")

M = TypeVar("M", bound=Message)
S = TypeVar("S", events.TuningState, events.EditState)
T = TypeVar("T")


def tuning_config(options: Mapping[str, Any]) -> tuning_pb2.TuningConfig | None:
    """The config of a tuning; None if no option speaks of it. Raises InvalidField for a value of a wrong type."""
    given = {field: options[option] for option, field in _TUNING_FIELDS.items() if options.get(option) is not None}
    return _filled(tuning_pb2.TuningConfig(), given) if given else None


def edit_request(parent: str, prompt: str, options: Mapping[str, Any]) -> edit_pb2.EditRequest:
    """The request of an edit, still without its target; `mask` is the file's bytes.

    Raises InvalidField for a value of a wrong type.
    """
    given = {option: options[option] for option in _SAMPLING_FIELDS if options.get(option) is not None}
    asked = {option: options[option] for option in _REQUEST_FIELDS if options.get(option) is not None}
    request = _filled(edit_pb2.EditRequest(parent=parent), {"prompt": prompt, **asked})
    if given:
        request.config.CopyFrom(_filled(edit_pb2.SamplingConfig(), given))
    of_tuning = {option: value for option, value in options.items() if option not in OF_THE_EDIT}
    if (config := tuning_config(of_tuning)) is not None:
        request.tuning_config.CopyFrom(config)
    return request


def compare_request(
    parent: str, prompt: str, methods: Methods, seeds: Sequence[int] | None, words: Mapping[str, str | None]
) -> edit_pb2.CompareRequest:
    """The request of a comparison, still without its picture. `words` are class_noun, initial_word and base_prompt.

    Raises InvalidField for a value of a wrong type, TypeError for an option that no method has for itself.
    """
    given = {word: value for word, value in words.items() if value is not None}
    request = _filled(
        edit_pb2.CompareRequest(parent=parent), {"prompt": prompt, "seeds": () if seeds is None else seeds, **given}
    )
    by_method = methods if isinstance(methods, Mapping) else {}
    for method in methods or ():
        options = by_method.get(method, {})
        refuse_unknown(options, EditOptions)
        if shared := {"method", "seeds", "mask", "omit_metadata", "preview_every", "timeout_s"} & options.keys():
            raise TypeError(f"{', '.join(sorted(shared))} is no option of a single method in a comparison")
        edit = edit_request("", "", options)
        entry = _filled(request.methods.add(), {"method": method})
        if edit.HasField("config"):
            entry.config.CopyFrom(edit.config)
        if edit.HasField("tuning_config"):
            entry.tuning_config.CopyFrom(edit.tuning_config)
    return request


def refuse_unknown(options: Mapping[str, Any], known: type) -> None:
    """Raises UnknownOption for a keyword that `known`, a TypedDict, does not have."""
    for option, value in options.items():
        if option not in known.__annotations__:
            near = difflib.get_close_matches(option, known.__annotations__, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            remedy = f"{hint}no option is called {option!r}; there are {', '.join(known.__annotations__)}"
            raise UnknownOption(option, value, remedy)


def _filled(message: M, values: Mapping[str, Any]) -> M:
    for field, value in values.items():
        kind = cast(FieldDescriptor, message.DESCRIPTOR.fields_by_name[field])
        try:
            if _is_map(kind):
                getattr(message, field).update(value)
            elif kind.is_repeated:
                getattr(message, field).extend(_several(value))
            else:
                setattr(message, field, value)
        except (TypeError, ValueError, AttributeError):  # the last for a map's value without keys
            raise InvalidField(field, value, f"give {_wanted(kind)}{_why_not_text(value)}") from None
    return message


def _several(value: Any) -> list[Any]:
    """The values of a list. Raises TypeError for one value, and for a text, which Python would take for its letters."""
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        raise TypeError("one value where several belong")
    return list(value)


def _is_map(kind: FieldDescriptor) -> bool:
    return kind.message_type is not None and kind.message_type.GetOptions().map_entry


def _wanted(kind: FieldDescriptor) -> str:
    """What a field takes."""
    if _is_map(kind):
        return "a mapping from words to numbers, such as {'dog': 2.0}"
    if kind.is_repeated:
        one, example = _LISTS[kind.type]
        return f"a list of {one}, such as {example}"
    return _KINDS[kind.type]


def _why_not_text(value: Any) -> str:
    """Why a text is refused: only a lone surrogate is no Unicode."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    surrogates = any("\ud800" <= letter <= "\udfff" for text in texts if isinstance(text, str) for letter in text)
    return "; this one has bytes that are no Unicode" if surrogates else ""


_KINDS = {
    FieldDescriptor.TYPE_STRING: "a text",
    FieldDescriptor.TYPE_BYTES: "the file's bytes",
    FieldDescriptor.TYPE_BOOL: "True or False",
    FieldDescriptor.TYPE_DOUBLE: "a number",
    FieldDescriptor.TYPE_INT32: "a whole number of at most 2^31",
    FieldDescriptor.TYPE_INT64: "a whole number of at most 2^63",
}
_LISTS = {
    FieldDescriptor.TYPE_STRING: ("texts", "['dog']"),
    FieldDescriptor.TYPE_INT64: ("whole numbers", "[0, 1]"),
}


def of_field(error: InvalidArgument, field: str) -> InvalidArgument:
    """What a file is refused for, naming the field that it is for."""
    return error if error.field != "image" or field == "image" else error.in_field(field)


def image(message: image_pb2.Image) -> events.Image:
    """An uploaded picture."""
    return events.Image(
        name=message.name,
        sha256=message.sha256,
        size_bytes=message.size_bytes,
        width=message.width,
        height=message.height,
        media_type=message.media_type,
        warnings=tuple(message.warnings),
        create_time=_time(message, "create_time"),
    )


def tuning(message: tuning_pb2.Tuning) -> events.Tuning:
    """A tuning as it was when the server answered."""
    return events.Tuning(
        name=message.name,
        image=message.image,
        base_model=message.base_model,
        config=_same_fields(events.TuningConfig, message.config),
        state=_state(events.TuningState, tuning_pb2.Tuning.State, message.state),
        key=message.key,
        progress=_same_fields(events.Progress, message.progress) if message.HasField("progress") else None,
        queue_position=message.queue_position,
        error=from_status(message.error) if message.HasField("error") else None,
        weights=_same_fields(events.Weights, message.weights) if message.HasField("weights") else None,
        labels=dict(message.labels),
        create_time=_time(message, "create_time"),
        start_time=_time(message, "start_time"),
        end_time=_time(message, "end_time"),
        expire_time=_time(message, "expire_time"),
        etag=message.etag,
        images=tuple(message.images),
        warnings=tuple(message.warnings),
    )


def tuning_event(message: tuning_pb2.TuningEvent) -> events.TuningEvent | None:
    """One event of a tuning; None for a kind that a newer server invented."""
    when: Any = {"sequence": message.sequence, "create_time": _time(message, "create_time")}
    match message.WhichOneof("event"):
        case "snapshot":
            return events.TuningSnapshot(tuning=tuning(message.snapshot), **when)
        case "queued":
            return events.TuningQueued(position=message.queued.position, **when)
        case "started":
            return events.TuningStarted(attempt=message.started.attempt, **when)
        case "progress":
            return events.TuningProgress(progress=_same_fields(events.Progress, message.progress), **when)
        case "ready":
            return events.TuningReady(tuning=tuning(message.ready), **when)
        case "failed":
            return events.TuningFailed(error=from_status(message.failed), **when)
        case "cancelled":
            return events.TuningCancelled(tuning=tuning(message.cancelled), **when)
        case "heartbeat":
            return events.Heartbeat(**when)
    return None


def edit_event(message: edit_pb2.EditEvent, assembly: Assembly) -> events.EditEvent | UniTuneError | events.Edit | None:
    """One event of an edit; its error if it failed, the edit if it was cancelled, None for a kind not known here, and
    for a picture that is not whole yet. `assembly` is one for the stream. Raises DataLoss when pieces of one are lost.
    """
    when: Any = {"sequence": message.sequence, "create_time": _time(message, "create_time")}
    match message.WhichOneof("event"):
        case "accepted":
            accepted = message.accepted
            return events.EditAccepted(
                edit=accepted.edit,
                config=_sampling_config(accepted.config),
                effective_strength=accepted.effective_strength,
                seeds=tuple(accepted.seeds),
                warnings=tuple(accepted.warnings),
                **when,
            )
        case "tuning":
            return tuning_event(message.tuning)
        case "loading":
            loading = message.loading
            return events.EditLoading(
                warm=loading.warm, refit_s=loading.refit_s, probe_ratio=loading.probe_ratio, **when
            )
        case "step":
            step = message.step
            return events.EditStep(
                index=step.index,
                total=step.total,
                preview=step.preview or None,
                attempt=step.attempt,
                attempts=step.attempts,
                **when,
            )
        case "warning":
            return events.EditWarning(text=message.warning.text, **when)
        case "image" | "image_part" as kind:
            assembly.begin([message.image]) if kind == "image" else assembly.add(message.image_part)
            return _edited_image(assembly.take()[0], **when) if assembly.is_whole else None
        case "done":
            assembly.take()
            return events.EditDone(
                timings=_same_fields(events.Timings, message.done.timings), tuning=message.done.tuning, **when
            )
        case "failed":
            return from_status(message.failed)
        case "cancelled":
            return edit(message.cancelled)
        case "heartbeat":
            return events.Heartbeat(**when)
    return None


class ComparisonReader:
    """Reads the events of one comparison."""

    def __init__(self) -> None:
        self._assembly = Assembly()
        self._result = edit_pb2.CompareEvent()  # whose pictures are not whole yet

    def event(self, message: edit_pb2.CompareEvent) -> events.CompareEvent | UniTuneError | None:
        """One event; the error of a comparison that failed, None for a kind not known here, and for a result whose
        pictures are not whole yet. Raises DataLoss when pieces of a picture are lost.
        """
        kind = message.WhichOneof("event")
        if kind == "result":
            self._assembly.begin(message.result.images)
            self._result = message
        elif kind == "image_part":
            self._assembly.add(message.image_part)
        else:
            return _compare_event(message)
        if not self._assembly.is_whole:
            return None
        self._assembly.take()  # the pictures are the result's own messages
        return _compare_event(self._result)


def _compare_event(message: edit_pb2.CompareEvent) -> events.CompareEvent | UniTuneError | None:
    when: Any = {"sequence": message.sequence, "create_time": _time(message, "create_time")}
    match message.WhichOneof("event"):
        case "accepted":
            return events.CompareAccepted(
                methods=tuple(message.accepted.methods), warnings=tuple(message.accepted.warnings), **when
            )
        case "edit":
            event = edit_event(message.edit, Assembly())
            if event is None or isinstance(event, (UniTuneError, events.Edit)):
                return None  # the end of an edit, which its method's result tells
            return events.CompareEdit(method=message.method, event=event, **when)
        case "result":
            result = message.result
            return events.CompareResult(
                method=message.method,
                prompt=result.prompt,
                images=tuple(_edited_image(one) for one in result.images),
                tuning_s=result.tuning_s,
                edit_s=result.edit_s,
                size_bytes=result.size_bytes,
                tuning=result.tuning,
                timings=_same_fields(events.Timings, result.timings),
                error=from_status(result.error) if result.HasField("error") else None,
                **when,
            )
        case "done":
            return events.CompareDone(total_s=message.done.total_s, **when)
        case "failed":
            return from_status(message.failed)
        case "heartbeat":
            return events.Heartbeat(**when)
    return None


def edit(message: edit_pb2.Edit) -> events.Edit:
    """An edit as it was when the server answered."""
    return events.Edit(
        name=message.name,
        state=_state(events.EditState, edit_pb2.Edit.State, message.state),
        images=tuple(_edited_image(one) for one in message.images),
        timings=_same_fields(events.Timings, message.timings),
        error=from_status(message.error) if message.HasField("error") else None,
        tuning=message.tuning,
    )


def server_info(message: server_pb2.ServerInfo) -> events.ServerInfo:
    """What a server is."""
    base_model = message.base_model
    return events.ServerInfo(
        version=message.version,
        base_model=events.BaseModel(
            name=base_model.name,
            digest=base_model.digest,
            width=base_model.width,
            height=base_model.height,
            vocabulary=tuple(base_model.vocabulary),
            has_gate=base_model.has_gate,
            has_clipseg=base_model.has_clipseg,
            super_resolution_width=base_model.super_resolution_width,
            super_resolution_height=base_model.super_resolution_height,
            fast_steps=base_model.fast_steps,
        ),
        tuning_defaults=_same_fields(events.TuningConfig, message.tuning_defaults),
        sampling_defaults=_sampling_config(message.sampling_defaults),
        limits=_same_fields(events.Limits, message.limits),
        methods=tuple(message.methods),
        schedulers=tuple(message.schedulers),
        method_tuning_defaults={
            one.method: _same_fields(events.TuningConfig, one) for one in message.method_tuning_defaults
        },
        method_sampling_defaults={one.method: _sampling_config(one) for one in message.method_sampling_defaults},
    )


def _state(kind: type[S], states: Any, number: int) -> S:
    """A state by its number; a newer server may have one that is not known here."""
    known = {states.Value(f"STATE_{state}"): state for state in kind if state != "UNKNOWN"}
    return known.get(number, kind("UNKNOWN"))


def _same_fields(kind: type[T], message: Message) -> T:
    """A value whose fields have the names and the types of the message's."""
    return kind(**{one.name: getattr(message, one.name) for one in fields(kind)})  # type: ignore[arg-type]


def _sampling_config(message: edit_pb2.SamplingConfig) -> events.SamplingConfig:
    """With None for each option that the edit does not read."""
    config = _same_fields(events.SamplingConfig, message)
    unread = [one.name for one in fields(config) if one.default is None and not message.HasField(one.name)]
    nothing: dict[str, Any] = dict.fromkeys(unread)
    config = replace(config, word_weights=dict(message.word_weights), blend_words=tuple(message.blend_words))
    return replace(config, **nothing)


def _edited_image(message: edit_pb2.EditEvent.EditedImage, **when: Any) -> events.EditedImage:
    return events.EditedImage(
        index=message.index,
        seed=message.seed,
        png=message.png,
        mask=message.mask or None,
        scores=_same_fields(events.Scores, message.scores) if message.HasField("scores") else None,
        strength=message.strength or None,
        guidance_scale=message.guidance_scale or None,
        **when,
    )


def _time(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    time: Timestamp = getattr(message, field)
    return time.ToDatetime(tzinfo=UTC)
