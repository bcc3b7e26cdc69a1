"""The declared options against the checks that were written by hand: the same verdict, field and value."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import sampling_options, validation
from tuner_svc.tuning_config import TuningConfig as TunersConfig
from unitune.choices import EDIT_METHODS, METHODS_WITH, OPTIONS_OF_ALL, TUNING_METHODS, TUNING_OPTIONS
from unitune.errors import InvalidField, UniTuneError
from unitune.options import SAMPLING, TUNING, WORD_CHARACTERS, Field, check_values, read_by, refuse_unread, violations
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.tuning_pb2 import TuningConfig

DRAWS = 600  # a few seconds; more of them on the day of the change
WORDS = ("", " ", "cat", "a\ncat", "\u200bcat", "full", "ddim", "replace", "é" * 3, "null_text")
LENGTHS = (31, 32, 33, 63, 64, 65, 1999, 2000, 2001)


def numbers_of(field: Field) -> st.SearchStrategy[Any]:
    """Numbers at and beside the ends that are declared, and any others."""
    ends = [getattr(field.limits, end) for end in ("gte", "gt", "lte", "lt") if field.limits.HasField(end)]
    if field.is_whole:
        bits = 31 if field.descriptor.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63
        near = [int(end) + step for end in ends for step in (-1, 0, 1)]
        return st.sampled_from(near or [0]) | st.integers(-(2**bits), 2**bits - 1)
    near = [end + step for end in ends for step in (-1, -1e-9, 0, 1e-9, 1)]
    return st.sampled_from([*near, float("nan"), float("inf"), -float("inf")]) | st.floats() | st.floats(0, 1)


def values_of(field: Field) -> st.SearchStrategy[Any]:
    """Values that a field of the contract can have, right and wrong."""
    if field.name == "word_weights":
        words = st.dictionaries(st.text(max_size=5), numbers_of(field), max_size=3)
        return words | st.integers(15, 18).map(lambda n: {str(i): 1.0 for i in range(n)})
    if field.descriptor.is_repeated:
        return st.integers(0, 18).map(lambda n: [f"w{i}" for i in range(n)])
    if field.descriptor.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.descriptor.type == FieldDescriptor.TYPE_STRING:
        long = st.sampled_from(LENGTHS).map(lambda n: "x" * n) | st.sampled_from(LENGTHS).map(lambda n: " " * n)
        return st.sampled_from((*WORDS, *field.choices, *field.choices)) | long | st.text(max_size=6)
    return numbers_of(field)


def configs_of(kind: type[Message], fields: Any) -> st.SearchStrategy[Any]:
    """Configs with some of their fields set, most often few."""

    def build(values: dict[str, Any]) -> Message:
        return kind(**values)

    some = st.lists(st.sampled_from(sorted(fields)), max_size=5, unique=True)
    return some.flatmap(
        lambda names: st.fixed_dictionaries({name: values_of(fields[name]) for name in names}).map(build)
    )


def refusal(check: Callable[[], None]) -> UniTuneError | None:
    """What a check raises."""
    try:
        check()
    except UniTuneError as error:
        return error
    return None


def verdict(error: UniTuneError) -> tuple[str, str]:
    """The field that is refused and its value."""
    return error.metadata["field"], error.metadata["value"]


def is_meant(error: UniTuneError) -> bool:
    """Whether the declaration says another value of the same field, on purpose.

    Words of spaces alone are `blank`, as prompts are. Too many of them are counted by the field's own noun. A text that
    belongs to another method and is longer than a word is told by its length, as every other one. A switch is `true` or
    `false`, as in most refusals.
    """
    field, value = verdict(error)
    return (field.endswith(("rare_tokens", "class_noun", "initial_word")) and not value.strip()) or (
        (field.endswith("word_weights") and value.endswith(" words"))
        or value in ("True", "False")
        or (error.metadata["remedy"].startswith("it belongs to") and len(value) > WORD_CHARACTERS)
    )


def same(old: UniTuneError | None, new: list[UniTuneError], counts: Counter[str]) -> bool:
    """Whether the old check's refusal, or its silence, is among the declaration's; alone if that has one."""
    counts["draws"] += 1
    counts["refused"] += old is not None
    if old is None or not new:
        return old is None and not new
    if is_meant(old):
        counts["meant"] += 1
        return verdict(old)[0] in {verdict(error)[0] for error in new}
    return verdict(old) in {verdict(error) for error in new}


def hold(strategy: st.SearchStrategy[Any], compare: Callable[[Any, Counter[str]], bool], draws: int = DRAWS) -> None:
    """Compare so many draws, and see that they were of both kinds."""
    counts = Counter[str]()

    @settings(
        max_examples=draws, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(drawn: Any) -> None:
        assert compare(drawn, counts)

    run()
    print(dict(counts))
    assert min(counts["refused"], counts["draws"] - counts["refused"]) > draws // 60


def test_sampling_options_are_refused_alike() -> None:
    """Every range, length and set of a SamplingConfig: one verdict, field and value."""

    def compare(config: SamplingConfig, counts: Counter[str]) -> bool:
        old = refusal(lambda: validation.check_sampling_config(config, "config"))
        return same(old, list(violations(config, "config.")), counts)

    hold(configs_of(SamplingConfig, SAMPLING), compare)


@pytest.mark.parametrize("method", TUNING_METHODS)
def test_tuning_options_are_refused_alike(method: str) -> None:
    """Every range, length and set of a TuningConfig, and every option of another method, for each method."""

    def compare(config: TuningConfig, counts: Counter[str]) -> bool:
        config.method = method
        old = refusal(lambda: validation.check_tuning_config(config, "config"))
        unread = refusal(lambda: refuse_unread(config, method, "config."))
        return same(old, [unread] if unread else list(violations(config, "config.")), counts)

    mixed = configs_of(TuningConfig, TUNING) | configs_of(TuningConfig, {n: TUNING[n] for n in read_by(TUNING, method)})
    hold(mixed, compare, DRAWS // 2)


@pytest.mark.parametrize("method", EDIT_METHODS)
def test_sampling_options_of_other_methods_are_refused_alike(method: str) -> None:
    """Every option of a SamplingConfig that a method does not read."""

    def compare(config: SamplingConfig, counts: Counter[str]) -> bool:
        old = refusal(lambda: sampling_options._check_methods(config, "config", method))
        unread = [name for name in METHODS_WITH if method not in METHODS_WITH[name]]
        for name in SAMPLING:
            if name not in METHODS_WITH:
                config.ClearField(name)  # rules between fields are not of the methods alone
        new = refusal(lambda: refuse_unread(config, method, "config."))
        counts["draws"] += 1
        counts["refused"] += old is not None
        set_ones = {f"config.{name}" for name in unread if SAMPLING[name].is_set(config)}
        return (old is None) == (new is None) and (new is None or {verdict(new)[0], verdict(old)[0]} <= set_ones)

    hold(configs_of(SamplingConfig, {name: SAMPLING[name] for name in METHODS_WITH}), compare, DRAWS // 2)


@pytest.mark.parametrize("method", TUNING_METHODS)
def test_the_tuner_refuses_alike(method: str) -> None:
    """Every value of the tuner's own config that its method reads."""
    names = (*OPTIONS_OF_ALL, *TUNING_OPTIONS[method])
    right = {"prompt": "a cat", "class_noun": "cat", "initial_word": "cat", "base_prompt": "a cat"}

    def compare(config: TuningConfig, counts: Counter[str]) -> bool:
        values = right | {field.name: value for field, value in config.ListFields()} | {"method": method}
        values = {name: value for name, value in values.items() if name in names}
        old = refusal(lambda: TunersConfig(**values))
        every = [error for name, value in values.items() for error in TUNING[name].violations(value, f"config.{name}")]
        new = refusal(lambda: check_values(TUNING, values, "config."))
        counts["draws"] += 1
        counts["refused"] += old is not None
        # The tuner took what cannot be seen and seeds below 0; the gateway never lets them through.
        if old is None and new is not None:
            counts["meant"] += 1
            field = new.metadata["field"].removeprefix("config.")
            return field == "seed" or not str(values[field]).isprintable()
        fields = {error.field for error in every}
        return (old is None) == (new is None) and (old is None or old.field in fields)

    hold(configs_of(TuningConfig, {name: TUNING[name] for name in names}), compare, DRAWS // 2)


def test_a_comparison_catches_what_differs() -> None:
    """A refusal of another field, or of another value, is not the same."""
    old, counts = InvalidField("config.eta", 3.0, "it must be 0 to 2"), Counter[str]()
    assert same(old, [InvalidField("config.eta", 3.0, "x")], counts)
    assert not same(old, [InvalidField("config.eta", 4.0, "x")], counts)
    assert not same(old, [InvalidField("config.strength", 3.0, "x")], counts)
    assert not same(old, [], counts) and not same(None, [old], counts)
