"""What the contract declares of options, and how it is checked and said."""

import math

import pytest

from tests.configs import sampling_config, tuning_config
from unitune.diffusion.solvers import SCHEDULERS
from unitune.errors import InvalidArgument, InvalidField
from unitune.options import (
    BASE_MODEL,
    EDIT,
    SAMPLING,
    TUNING,
    check,
    check_base_model,
    check_values,
    clear_unread,
    options_of,
    range_in_words,
    refuse_unread,
    violations,
)
from unitune.v1 import edit_pb2, server_pb2, tuning_pb2
from unitune.v1.edit_pb2 import EditRequest, SamplingConfig
from unitune.v1.tuning_pb2 import TuningConfig

REQUESTS = (SamplingConfig, TuningConfig, EditRequest, edit_pb2.CompareRequest, tuning_pb2.CreateTuningRequest)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (SAMPLING["guidance_scale"], "0 to 64"),
        (TUNING["guidance_scale"], "0 to 64"),
        (TUNING["learning_rate"], "above 0, to 0.1"),
        (TUNING["seed"], "0 or more"),
        (TUNING["mode"], "one of full, attn_out, lora"),
        (TUNING["class_noun"], "1 to 64 visible characters"),
        (SAMPLING["mask_text"], "at most 2000 characters"),
        (EDIT["mask"], "at most 786432 bytes"),
        (SAMPLING["word_weights"], "-10 to 10"),
        (SAMPLING["clip_filter"], ""),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_range_has_one_wording(field: object, words: str) -> None:
    """Ends, lengths and sets are said in words, those that are another field's too."""
    assert words == range_in_words(field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (sampling_config(guidance_scale=64.5), "guidance_scale", "64.5"),
        (sampling_config(guidance_scale=math.nan), "guidance_scale", "nan"),
        (sampling_config(guidance_sigma_high=math.inf), "guidance_interval.high", "inf"),
        (sampling_config(word_weights={"a dog": 11}), 'prompt_to_prompt.word_weights["a dog"]', "11.0"),
        (sampling_config(blend_words=["a"] * 17), "prompt_to_prompt.blend_words", "17 words"),
        (sampling_config(base_prompt="x" * 2001), "base_prompt", "2001 characters"),
        (tuning_config(learning_rate=0), "learning_rate", "0.0"),
        (tuning_config(prompt=" " * 2001), "prompt", "blank"),
        (tuning_config(class_noun="a\ndog"), "class_noun", "a\ndog"),
        (EditRequest(), "prompt", ""),
        (EditRequest(prompt="a cat", seeds=[3, -1]), "seeds[1]", "-1"),
    ],
    ids=str,
)
def test_what_is_out_of_its_range_is_refused(config: object, field: str, value: str) -> None:
    """The error names field, value and what would be right, and never repeats what may be a prompt."""
    with pytest.raises(InvalidField) as raised:
        check(config, "config.")  # type: ignore[arg-type]

    assert (f"config.{field}", value) == (raised.value.field, raised.value.metadata["value"])


def test_ends_are_in_the_range() -> None:
    """What is at an end that counts is taken, and so is what is unset or has no declaration."""
    check(
        sampling_config(
            guidance_scale=0,
            strength=1,
            num_inference_steps=1000,
            clip_filter=True,
            resamples=0,
            blend_words=["a"] * 16,
        )
    )
    check(tuning_config(learning_rate=0.1, updates=0, seed=2**63 - 1, class_noun="x" * 64))
    check_values(TUNING, {"num_vectors": 16, "scale_learning_rate": False})


def test_bytes_that_are_too_many_say_so() -> None:
    """A mask above its limit is UPLOAD_TOO_LARGE, and the remedy names the way for larger ones."""
    with pytest.raises(InvalidArgument, match="mask has 786433 bytes: send at most 786432 bytes, or upload") as raised:
        check(EditRequest(prompt="a cat", mask=bytes(786433)))

    assert "UPLOAD_TOO_LARGE" == raised.value.reason


def test_every_violation_is_found() -> None:
    """Whoever asks for all of them gets each, in the order of the contract."""
    config = sampling_config(eta=3, method=99, strength=-1)

    assert ["method", "strength", "eta"] == [error.field for error in violations(config)]


@pytest.mark.parametrize(
    ("config", "method", "message"),
    [
        (
            sampling_config(eta=1),
            "unitune",
            "eta is 1.0: leave it unset: it is an option of method imagic, not",
        ),
        (sampling_config(mask_padding=3), "unitune", "mask.padding is 3: leave it unset, or set mask.only_masked, too"),
        (
            sampling_config(automatic=True, strength=1),
            "unitune",
            "strength is 1.0: leave it unset: automatic",
        ),
        (
            tuning_config(base_prompt="a secret"),
            "imagic",
            "base_prompt has 8 characters: leave it unset: it is an option of method null_text, not of imagic",
        ),
    ],
    ids=str,
)
def test_what_nothing_would_read_is_refused(config: object, method: str, message: str) -> None:
    """Options of other methods, without what they need, and beside what excludes them."""
    with pytest.raises(InvalidField) as raised:
        refuse_unread(config, method, "")  # type: ignore[arg-type]

    assert raised.value.message.startswith(message)


def test_what_nothing_would_read_is_cleared() -> None:
    """A filled config keeps what its method reads, and passes."""
    config = sampling_config(eta=1, repeats=2, resamples=3, clip_filter=True, cross_replace=0.5, mask_padding=3)

    clear_unread(config, "imagic")

    assert sampling_config(eta=1, resamples=3, clip_filter=True) == config
    refuse_unread(config, "imagic", "")


def test_what_the_base_model_lacks_is_refused() -> None:
    """The remedy is that of the base model's own field."""
    check_base_model(sampling_config(clip_filter=True), server_pb2.BaseModel(has_clip_filter=True), "config.")

    with pytest.raises(
        InvalidField, match=r"config\.clip_filter is 'true': leave it unset: this base model has no CLIP filter"
    ):
        check_base_model(sampling_config(clip_filter=True), server_pb2.BaseModel(fast_steps=3), "config.")


def test_the_schedulers_are_those_that_can_step() -> None:
    """What may be asked for is what there is a solver for."""
    assert tuple(SCHEDULERS) == SAMPLING["scheduler"].choices


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_a_declaration_names_what_there_is(kind: type) -> None:
    """Every option, method and field of a base model that a declaration names exists."""
    fields = options_of(kind)
    methods = {*SAMPLING["method"].choices, *TUNING["method"].choices}
    for field in fields.values():
        assert {field.needs, *field.declared.refused_with} - {""} <= fields.keys(), field.name
        assert set(field.methods) <= methods, field.name
        assert not field.declared.needs_base_model or BASE_MODEL[field.declared.needs_base_model].declared.remedy
