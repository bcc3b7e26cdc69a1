"""Configs for tests, by the flat names and the words of the SDK."""

from collections.abc import Iterable
from typing import Any

from unitune.options import Flat, options_of, put_words
from unitune.v1.edit_pb2 import CompareRequest, SamplingConfig
from unitune.v1.tuning_pb2 import TuningConfig


def sampling_config(**words: Any) -> SamplingConfig:
    """How to sample. A choice may be a number, too."""
    return _config(SamplingConfig(), words)


def tuning_config(**words: Any) -> TuningConfig:
    """How to tune. A choice may be a number, too."""
    return _config(TuningConfig(), words)


def entry(method: str, **fields: Any) -> CompareRequest.Entry:
    """One method of a comparison."""
    return put_words(CompareRequest.Entry(**fields), {"method": method})


def methods_of(messages: Iterable[Any]) -> list[str]:
    """The methods of configs, entries or events, as words."""
    return [Flat(message).method for message in messages]


def _config(config: Any, words: dict[str, Any]) -> Any:
    fields = options_of(type(config))
    numbers = {name: value for name, value in words.items() if fields[name].choices and isinstance(value, int)}
    for name, number in numbers.items():
        holder = getattr(config, fields[name].parents[0].descriptor.name) if fields[name].parents else config
        setattr(holder, fields[name].descriptor.name, number)
    return put_words(config, {name: value for name, value in words.items() if name not in numbers})
