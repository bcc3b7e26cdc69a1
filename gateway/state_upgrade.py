"""Brings what an earlier version stored to today's contract. In schema 2 the choices of a config were texts."""

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from gateway.tuning_records import etag_of
from unitune.options import TUNING, put_words
from unitune.v1.tuning_pb2 import Tuning, TuningConfig, TuningEvent

CHOICES = {TUNING[name].descriptor.number: name for name in ("method", "mode")}


def upgrade(config: TuningConfig) -> None:
    """Replace in place the texts of choices by their numbers."""
    # Where a number is expected, a text is an unknown field.
    unknown = UnknownFieldSet(config)
    texts = {field.field_number: field.data for field in (unknown[index] for index in range(len(unknown)))}
    config.DiscardUnknownFields()
    put_words(config, {name: texts[number].decode() for number, name in CHOICES.items() if number in texts})


def upgraded_tuning(blob: bytes) -> bytes:
    """A tuning of schema 2 as today. What cannot be read stays as it is: whoever asks for it is told."""
    try:
        tuning = Tuning.FromString(blob)
    except DecodeError:
        return blob
    upgrade(tuning.config)
    tuning.etag = etag_of(tuning)
    return tuning.SerializeToString()


def upgraded_event(blob: bytes) -> bytes:
    """The same of an event, which may tell of a tuning."""
    try:
        event = TuningEvent.FromString(blob)
    except DecodeError:
        return blob
    kind = event.WhichOneof("event")
    if kind in ("snapshot", "ready", "cancelled"):
        tuning = getattr(event, kind)
        tuning.CopyFrom(Tuning.FromString(upgraded_tuning(tuning.SerializeToString())))
    return event.SerializeToString()


def base_model_of(blob: bytes) -> bytes:
    """The digest of a tuning's base model; empty if the tuning cannot be read."""
    try:
        return Tuning.FromString(blob).base_model.encode()
    except DecodeError:
        return b""


MIGRATION_FUNCTIONS = (upgraded_tuning, upgraded_event, base_model_of)
