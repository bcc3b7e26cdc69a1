"""The flat words of an SDK and the messages of the contract: nothing is lost between them."""

import math
import re
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from unitune.errors import InvalidField
from unitune.options import SAMPLING, TUNING, Field, put_words, to_words, violations
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.tuning_pb2 import TuningConfig
from unitune_client import messages

CONFIGS = ((SamplingConfig, SAMPLING), (TuningConfig, TUNING))
ENDS = (-1, 0, 1, 0.5, 1000, 1e9, math.inf, -math.inf)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=70)


def values_of(field: Field, *, may_be_wrong: bool) -> st.SearchStrategy[Any]:
    """Values of an option's type, out of its range too if they may be wrong."""
    kinds = FieldDescriptor
    if field.choices:
        return st.sampled_from(field.choices)
    if field.is_switch:
        return st.just(True)
    if field.is_map:
        return st.dictionaries(TEXT, st.floats(-20, 20), min_size=1, max_size=20)
    if field.descriptor.is_repeated:
        return st.lists(TEXT, min_size=1, max_size=20)
    if field.descriptor.type == kinds.TYPE_BOOL:
        return st.booleans() if field.descriptor.has_presence else st.just(True)
    if field.descriptor.type == kinds.TYPE_STRING:
        return TEXT
    low, high = (-5, 6000) if may_be_wrong else (1, 1)
    numbers: st.SearchStrategy[Any] = st.integers(low, high)
    if not field.is_whole:
        numbers = st.floats(low, high) | st.sampled_from(ENDS if may_be_wrong else (1.0,))
    return numbers if field.descriptor.has_presence else numbers.filter(bool)


def configs(fields: dict[str, Field], *, may_be_wrong: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Some options of a config, each with the switch that it needs."""

    def with_switches(words: dict[str, Any]) -> dict[str, Any]:
        switches = [fields[name].switch for name in words]
        return words | {switch.name: True for switch in switches if switch is not None}

    options = {name: values_of(field, may_be_wrong=may_be_wrong) for name, field in fields.items()}
    return st.fixed_dictionaries({}, optional=options).map(with_switches)


def exists(descriptor: Descriptor, path: str) -> bool:
    """Whether a path as `mask.blur`, `blend_words[3]` or `word_weights["a.b"]` is one of a message."""
    name, _, rest = re.sub(r'\[(\d+|".*")\]', "", path, flags=re.DOTALL).partition(".")
    field = descriptor.fields_by_name.get(name)
    return field is not None and (not rest or (field.message_type is not None and exists(field.message_type, rest)))


@pytest.mark.parametrize(("kind", "fields"), CONFIGS, ids=lambda value: getattr(value, "__name__", ""))
@given(data=st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_words_come_back_as_they_went(kind: Any, fields: dict[str, Field], data: st.DataObject) -> None:
    """Into a message, over the wire and back, whether valid or not; and what is wrong has a path that there is."""
    words = data.draw(configs(fields, may_be_wrong=data.draw(st.booleans())))

    sent = put_words(kind(), words).SerializeToString()

    message = kind.FromString(sent)
    assert words == to_words(message)
    for error in violations(message, "config."):
        assert error.field is not None and exists(kind.DESCRIPTOR, error.field.removeprefix("config."))


@given(words=configs(dict(SAMPLING), may_be_wrong=True))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_sdk_sends_what_it_was_given(words: dict[str, Any]) -> None:
    """Keywords of an edit are the words of its config."""
    request = messages.edit_request("", "a dog", words)

    assert words == to_words(request.config)


@pytest.mark.parametrize(("kind", "fields"), CONFIGS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_number_that_is_no_choice_is_refused(kind: Any, fields: dict[str, Field]) -> None:
    """The message keeps it, and the error names path, number and words."""
    for field in fields.values():
        if field.choices:
            message, holder = kind(), None
            holder = message
            for parent in field.parents:
                holder = getattr(holder, parent.descriptor.name)
            setattr(holder, field.descriptor.name, 99)

            (error,) = violations(kind.FromString(message.SerializeToString()), "config.")

            assert isinstance(error, InvalidField) and error.field == f"config.{field.path}"
            assert ("99", f"it must be one of {', '.join(field.choices)}") == (
                error.metadata["value"],
                error.metadata["remedy"],
            )


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"scheduler": "pndm"}, "config.scheduler", "pndm"),
        ({"method": "magic"}, "config.method", "magic"),
        ({"mask_source": "guessed"}, "config.mask.source", "guessed"),
        ({"inversion": "null"}, "config.prompt_to_prompt.inversion", "null"),
        ({"alignment": "swap"}, "config.prompt_to_prompt.alignment", "swap"),
        ({"unconditional_model": "other"}, "config.unconditional_model", "other"),
        ({"mode": "half"}, "tuning_config.mode", "half"),
    ],
)
def test_a_word_that_no_choice_has_is_refused_by_the_sdk(options: dict[str, str], field: str, value: str) -> None:
    """As the server refuses an unknown number: by path, value and the words that there are."""
    with pytest.raises(InvalidField, match="it must be one of") as refused:
        messages.edit_request("", "a dog", options)

    assert (field, value) == (refused.value.field, refused.value.metadata["value"])


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"resamples": 2}, "config.clip_filter.resamples", "2"),
        ({"clip_filter": False, "resamples": 2}, "config.clip_filter.resamples", "2"),
        ({"super_resolution_noise_level": 50}, "config.super_resolution.noise_level", "50"),
        ({"dynamic_thresholding": False}, "config.super_resolution.dynamic_thresholding", "false"),
    ],
)
def test_an_option_without_its_switch_is_refused(options: dict[str, Any], field: str, value: str) -> None:
    """In the message it would turn on what was not asked for."""
    with pytest.raises(
        InvalidField, match=r"leave it unset, or set config\.(clip_filter|super_resolution), too"
    ) as refused:
        messages.edit_request("", "a dog", options)

    assert (field, value) == (refused.value.field, refused.value.metadata["value"])


def test_a_group_with_nothing_in_it_is_unset() -> None:
    """What is set to nothing, or cleared, leaves no message behind; a switch stays on."""
    config = put_words(SamplingConfig(), {"mask_text": "", "mask_source": "", "blend_words": [], "clip_filter": True})
    assert SamplingConfig(clip_filter={}) == config

    put_words(config, {"mask_blur": 3.0, "clip_filter": True, "resamples": 2})
    SAMPLING["mask_blur"].clear(config)
    SAMPLING["resamples"].clear(config)

    assert SamplingConfig(clip_filter={}) == config
