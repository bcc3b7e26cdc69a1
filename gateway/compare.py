"""A comparison: one picture and one prompt, edited by one method after the other.

accepted -> (edit ... -> result) for each method -> done | failed

Each edit is an ordinary one, made by `gateway/edit.py`. A method that fails has its error as its result.
"""

import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass

from gateway import validation
from gateway.compared_pictures import ComparedPictures
from gateway.edit import Edits
from gateway.edit_plan import Planner, check_words, in_field, seeds_of, warnings_of, words_of
from gateway.edit_results import CancelledByOwner, EditResults
from gateway.images import Images
from gateway.joined_edits import EDIT_LOST
from gateway.names import DEFAULT_TENANT, parse, parse_parent
from gateway.relay import Relay
from gateway.samplers import Samplers
from gateway.tunings import Tunings
from unitune import telemetry
from unitune.choices import EDIT_METHODS, PROMPT_TO_PROMPT, TUNING_METHODS
from unitune.errors import (
    COST_LIMIT,
    Internal,
    InvalidArgument,
    InvalidField,
    NotFound,
    UniTuneError,
    from_status,
    length_of,
    to_status,
)
from unitune.options import SAMPLING, Flat, check, options_of, put_words
from unitune.picture_file import PictureInfo
from unitune.prompts import mentions, with_words_before, with_words_instead, without
from unitune.v1.edit_pb2 import CompareEvent, CompareRequest, EditEvent, EditRequest
from unitune.v1.image_pb2 import Image
from unitune.v1.tuning_pb2 import TuningConfig

logger = logging.getLogger(__name__)

MOST_BEGINS = 3  # of a method's edit: one that was joined and lost begins again
# The field of the request that each method reads alone, and cannot do without: only the caller can choose such words.
NEEDED = {method: name for name, field in options_of(CompareRequest).items() for method in field.methods}
NEEDED_WORD = {method: word for method, word in NEEDED.items() if method in TUNING_METHODS}  # those of a tuning


@dataclass(frozen=True)
class MethodEdit:
    """One method of a comparison, with the request of its edit. A picture that the comparison's own request has is kept
    there alone."""

    entry: CompareRequest.Entry
    request: EditRequest
    warnings: list[str]


class Comparisons:
    """Runs comparisons."""

    def __init__(
        self,
        planner: Planner,
        edits: Edits,
        tunings: Tunings,
        images: Images,
        samplers: Samplers,
        results: EditResults,
        *,
        heartbeat_s: float,
    ) -> None:
        self._results = results
        self._planner = planner
        self._edits = edits
        self._tunings = tunings
        self._images = images
        self._samplers = samplers
        self._heartbeat_s = heartbeat_s
        self._end_reason: UniTuneError | None = None

    def end(self, reason: UniTuneError) -> None:
        """Begin no further edit. Each comparison ends with `reason` after the edit that runs."""
        self._end_reason = reason

    async def compare(self, request: CompareRequest, timeout_s: float | None) -> AsyncGenerator[CompareEvent, None]:
        """The events of one comparison. The last one is the only terminal event. Closing the generator stops
        the comparison.

        Raises what the request is refused with, before the first event.
        """
        began = time.monotonic()
        method_edits = await self._method_edits(request)
        relay = Relay(
            self._events(request, method_edits, began, timeout_s),
            silence_s=self._heartbeat_s,
            heartbeat=_heartbeat,
            size_of=CompareEvent.ByteSize,
        )
        number = 0
        try:
            async with aclosing(relay.events()) as events:
                async for event in events:
                    number += not event.HasField("heartbeat")
                    yield _numbered(event, number)
        except UniTuneError as error:
            yield _numbered(CompareEvent(failed=to_status(error)), number + 1)
        except Exception:
            telemetry.failure(logger, "comparison failed")
            ours = Internal("the server made a mistake; its log has the details", reason="INTERNAL")
            yield _numbered(CompareEvent(failed=to_status(ours)), number + 1)

    async def _events(
        self, request: CompareRequest, method_edits: list[MethodEdit], began: float, timeout_s: float | None
    ) -> AsyncGenerator[CompareEvent, None]:
        warnings = dict.fromkeys(warning for method_edit in method_edits for warning in method_edit.warnings)
        methods = [method_edit.entry.method for method_edit in method_edits]
        yield CompareEvent(accepted=CompareEvent.Accepted(methods=methods, warnings=warnings))
        for method_edit in () if request.validate_only else method_edits:
            if self._end_reason is not None:
                raise self._end_reason
            left_s = None if timeout_s is None else began + timeout_s - time.monotonic()
            async with aclosing(self._edit(request, method_edit, left_s)) as events:
                async for event in events:
                    event.method = method_edit.entry.method
                    yield event
        yield CompareEvent(done=CompareEvent.Done(total_s=time.monotonic() - began))

    async def _edit(
        self, request: CompareRequest, method_edit: MethodEdit, left_s: float | None
    ) -> AsyncGenerator[CompareEvent, None]:
        """The events of one method's edit, and its result."""
        result = CompareEvent.Result(prompt=method_edit.request.prompt)
        pictures = ComparedPictures(len(seeds_of(method_edit.request)))
        try:
            async with aclosing(self._joined(_with_picture(method_edit.request, request), left_s)) as events:
                async for event in events:
                    match event.WhichOneof("event"):
                        case "image" | "image_part":
                            pictures.add(event)
                        case "done":
                            result.timings.CopyFrom(event.done.timings)
                            result.tuning = event.done.tuning
                        case "failed":
                            raise from_status(event.failed)
                        case "cancelled":
                            raise CancelledByOwner()
                        case "heartbeat" if not event.heartbeat.stage:
                            pass  # the comparison has its own
                        case _:
                            if event.HasField("accepted"):
                                pictures.stored = self._results.kept(event.accepted.edit)
                            yield CompareEvent(edit=event)
            await self._measure(result)
        except UniTuneError as error:
            if self._end_reason is not None and error.reason == self._end_reason.reason:
                raise  # so that the caller asks for this method, too, elsewhere
            pictures = ComparedPictures(1)  # none
            result = CompareEvent.Result(prompt=method_edit.request.prompt, error=to_status(error))
        async for message in pictures.messages(result):
            yield message

    async def _joined(self, request: EditRequest, left_s: float | None) -> AsyncGenerator[EditEvent, None]:
        """The events of one method's edit. One that another comparison had begun, and that was lost, begins again."""
        ends_at = None if left_s is None else time.monotonic() + left_s
        for begins_left in reversed(range(MOST_BEGINS)):
            left_s = None if ends_at is None else ends_at - time.monotonic()
            async with aclosing(self._edits.edit(request, left_s)) as events:
                async for event in events:
                    is_lost = event.HasField("failed") and from_status(event.failed).reason == EDIT_LOST
                    if is_lost and begins_left:
                        break
                    yield event
                else:
                    return

    async def _measure(self, result: CompareEvent.Result) -> None:
        """Add what the edit's events do not say: the seconds of its tuning, and the bytes of its weights."""
        result.edit_s = result.timings.total_s - result.timings.tune_s
        if not result.tuning:
            return
        with suppress(NotFound):  # deleted since
            tuning = await self._tunings.get(result.tuning)
            result.tuning_s = (tuning.end_time.ToMicroseconds() - tuning.start_time.ToMicroseconds()) / 1e6
            result.size_bytes = tuning.weights.size_bytes

    async def _method_edits(self, request: CompareRequest) -> list[MethodEdit]:
        """The edit of each method. Raises as Compare does. Nothing is stored, and no tuning is made."""
        check(request)
        if request.request_id and not request.validate_only:
            validation.check_request_id(request.request_id)
        if request.WhichOneof("target") is None:
            raise InvalidField("target", "unset", "set one of image or image_data")
        entries = list(request.methods) or _all_that_can_run(request)
        _check_names(entries)
        _check_words(request, entries)
        base_model = (await self._samplers.sampler_info()).base_model
        method_edits = []
        for index, entry in enumerate(entries):
            asked = _edit_request(request, entry)
            with _in_entry(request, index):
                config = await self._planner.settle(asked)
                if config is not None:
                    asked.prompt = bound(config, request.prompt)
                    check(asked, only=["prompt"])  # it is longer now
                    check_words(asked, config)
            rare_tokens = config.rare_tokens if config else ""
            is_scored = asked.config.HasField("clip_filter") or asked.config.automatic
            if base_model.has_clip_filter and not is_scored and without(asked.prompt, rare_tokens):
                asked.config.clip_filter.resamples = 0  # the seeds stay those that were asked for
            warnings = warnings_of(words_of(asked, rare_tokens), base_model.vocabulary)
            method_edits.append(MethodEdit(entry, asked, warnings))
        picture = await self._picture(request)
        for index, method_edit in enumerate(method_edits):
            with _in_entry(request, index):
                await self._planner.check_tiles(method_edit.request, picture)
        return method_edits

    async def _picture(self, request: CompareRequest) -> Image | PictureInfo:
        """What is known of the picture. Raises as Compare does."""
        tenant = parse_parent(request.parent)
        if request.WhichOneof("target") == "image":
            name = parse(request.image, "images", "image")
            return await self._images.find(name._replace(tenant=tenant or name.tenant))
        with in_field("image_data"):
            return await self._images.check(tenant or DEFAULT_TENANT, request.image_data)


def bound(config: TuningConfig, prompt: str) -> str:
    """The prompt as an edit with such a tuning needs it: with the words that the method binds.

    The words of UniTune precede every prompt anyway, and Imagic has none. Raises InvalidField for a prompt that has no
    place for the words.
    """
    method = Flat(config).method
    if method not in NEEDED_WORD:
        return prompt
    noun = getattr(config, NEEDED_WORD[method])
    if not mentions(prompt, config.rare_tokens) and not mentions(prompt, noun):
        remedy = f"it must have {noun!r} in it, where {method} puts its own words"
        raise InvalidField("prompt", length_of(prompt), remedy)
    put = with_words_before if method == "dreambooth" else with_words_instead
    return put(prompt, config.rare_tokens, noun)


def _all_that_can_run(request: CompareRequest) -> list[CompareRequest.Entry]:
    return [
        put_words(CompareRequest.Entry(), {"method": method})
        for method in EDIT_METHODS
        if method not in NEEDED or getattr(request, NEEDED[method])
    ]


def _check_names(entries: list[CompareRequest.Entry]) -> None:
    """Raise InvalidField for a method that is unknown or named twice, and for a setting that names another method."""
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        place, method = f"methods[{index}]", Flat(entry).method
        check(entry, f"{place}.", only=["method"])
        if method in seen:
            raise InvalidField(f"{place}.method", method, "name each method once; compare its settings by edits")
        seen.add(method)
        for config in ("config", "tuning_config"):
            named = Flat(getattr(entry, config)).method
            if named and named != method:
                raise InvalidField(f"{place}.{config}.method", named, f"leave it unset: this entry is of {method}")
        if Flat(entry.config).mask_source == "given":
            remedy = "choose another source: a comparison takes no mask"
            raise InvalidField(f"{place}.config.{SAMPLING['mask_source'].path}", "given", remedy)


def _check_words(request: CompareRequest, entries: list[CompareRequest.Entry]) -> None:
    """Raise InvalidField for a word that no method here reads, and for a word that is given twice."""
    for method, word in NEEDED.items():
        given = getattr(request, word)
        if not given:
            continue
        shown = length_of(given) if word == "base_prompt" else given
        index = next((index for index, entry in enumerate(entries) if Flat(entry).method == method), None)
        if index is None:
            raise InvalidField(word, shown, f"leave it unset, or name {method}, which reads it")
        place = "tuning_config" if method in NEEDED_WORD else "config"
        own = getattr(getattr(entries[index], place), word)
        if own and own != given:
            field = f"methods[{index}].{place}.{word}"
            shown_own = length_of(own) if word == "base_prompt" else own
            raise InvalidField(field, shown_own, f"leave it unset: {word} of the request is {shown}")


def _edit_request(request: CompareRequest, entry: CompareRequest.Entry) -> EditRequest:
    """One method's edit, without the picture of `_with_picture`. Its prompt does not have the words yet that the method
    binds."""
    asked = EditRequest(
        parent=request.parent,
        prompt=request.prompt,
        seeds=request.seeds,
        config=entry.config,
        tuning_config=entry.tuning_config,
        omit_metadata=request.omit_metadata,
    )
    if request.WhichOneof("target") == "image":
        asked.image = request.image
    else:
        asked.image_data = request.image_data[:1]  # which stands for it
    asked.config.method, method = entry.method, Flat(entry).method
    if request.request_id and not request.validate_only:
        asked.request_id = str(uuid.uuid5(uuid.UUID(request.request_id), method))  # of this method in any repeat
    word = NEEDED_WORD.get(method)
    if word and getattr(request, word):
        setattr(asked.tuning_config, word, getattr(request, word))
    if method == PROMPT_TO_PROMPT and request.base_prompt:
        asked.config.base_prompt = request.base_prompt
    return asked


def _with_picture(asked: EditRequest, request: CompareRequest) -> EditRequest:
    """The request of one method's edit, with the picture that the comparison's own request has."""
    if request.WhichOneof("target") == "image":
        return asked
    whole = EditRequest()
    whole.CopyFrom(asked)
    whole.image_data = request.image_data
    return whole


@contextmanager
def _in_entry(request: CompareRequest, index: int) -> Iterator[None]:
    """Make a refusal name the field of this request, in place of the edit's field."""
    try:
        yield
    except InvalidArgument as error:
        if error.reason not in ("INVALID_FIELD", COST_LIMIT):
            raise
        field = error.metadata["field"]
        word = field.removeprefix("tuning_config.")
        if word in NEEDED_WORD.values():
            is_own = bool(request.methods) and bool(getattr(request.methods[index].tuning_config, word))
            field = f"methods[{index}].{field}" if is_own else word
        elif field == "config.base_prompt" and request.base_prompt:
            field = "base_prompt"
        elif field.startswith(("config.", "tuning_config")):
            field = f"methods[{index}].{field}"
        remedy = re.sub(r"(?<![\w.])(?=(tuning_)?config\.)", f"methods[{index}].", error.metadata["remedy"])
        raise error.moved(field, remedy) from None


def _numbered(event: CompareEvent, number: int) -> CompareEvent:
    """The event with its number and time. A heartbeat has no number."""
    if not event.HasField("heartbeat"):
        event.sequence = number
    event.create_time.GetCurrentTime()
    return event


def _heartbeat() -> CompareEvent:
    return CompareEvent(heartbeat=CompareEvent.Heartbeat())
