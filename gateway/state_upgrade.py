"""Brings a config that an earlier version stored to today's contract: its choices were texts."""

from google.protobuf.unknown_fields import UnknownFieldSet

from unitune.options import TUNING, put_words
from unitune.v1.tuning_pb2 import TuningConfig

CHOICES = {TUNING[name].descriptor.number: name for name in ("method", "mode")}


def upgrade(config: TuningConfig) -> None:
    """Replace in place the texts of choices by their numbers."""
    # Where a number is expected, a text is an unknown field.
    unknown = UnknownFieldSet(config)
    texts = {field.field_number: field.data for field in (unknown[index] for index in range(len(unknown)))}
    config.DiscardUnknownFields()
    put_words(config, {name: texts[number].decode() for number, name in CHOICES.items() if number in texts})
