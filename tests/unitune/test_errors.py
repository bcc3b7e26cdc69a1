"""The errors and their status: nothing is lost on the way there and back, and nothing leaks."""

from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from unitune import errors
from unitune.errors import (
    DOMAIN,
    Aborted,
    Internal,
    InvalidField,
    NotFound,
    Unavailable,
    UniTuneError,
    from_status,
    to_status,
)

KINDS = UniTuneError.__subclasses__()


def details(status: Status) -> list[object]:
    """The unpacked details of a status."""
    found = []
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found.append(message)
    assert len(found) == len(status.details)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_way_there_and_back(kind: type[UniTuneError]) -> None:
    """Class, code, message, reason, metadata and retry are the same afterwards, also over the wire's bytes."""
    error = kind("what went wrong", reason="SOME_REASON", metadata={"a": "b"}, retry_after_s=0.25)
    status = Status.FromString(to_status(error).SerializeToString())
    back = from_status(status)
    assert type(back) is kind and status.code == kind.code.value[0]
    assert (back.message, back.reason, back.metadata) == ("what went wrong", "SOME_REASON", {"a": "b"})
    assert back.retry_after_s == 0.25 and str(back) == "what went wrong"


def test_the_codes_are_those_of_the_tree() -> None:
    """Each class has the code that the drawing at the top of the module says."""
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if words and words[0] in {kind.__name__ for kind in KINDS}:
            assert getattr(errors, words[0]).code.name == words[-1]
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_a_status_has_each_detail_once() -> None:
    """ErrorInfo always; BadRequest for a field; RetryInfo when a retry is invited."""
    (info,) = details(to_status(Internal("x", reason="Y")))
    assert (info.reason, info.domain) == ("Y", DOMAIN)
    info, bad = details(to_status(InvalidField("config.strength", 2.0, "it must be 0 to 1")))
    assert dict(info.metadata) == {"field": "config.strength", "value": "2.0", "remedy": "it must be 0 to 1"}
    assert bad.field_violations[0].field == "config.strength" and "2.0" in bad.field_violations[0].description
    _, retry = details(to_status(Unavailable("x", reason="Y", retry_after_s=1.5)))
    assert retry.retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize("value", [2, 2.5, "two", "", None, [1]])
def test_an_invalid_field_comes_back_as_one(value: object) -> None:
    """The class, the field and the very message, whatever the value's type was."""
    error = InvalidField("f", value, "use another")
    back = from_status(to_status(error))
    assert isinstance(back, InvalidField) and back.field == "f"
    assert back.message == str(back) == error.message == str(error) and back.metadata == error.metadata


def test_of_a_long_path_the_end_is_shown() -> None:
    """The name of a file tells it apart, not the folders that it lies in."""
    path = Path("/home/" + "folder/" * 20 + "cat.png")
    error = InvalidField("PHOTO", path, "give a picture")
    assert error.message.startswith("PHOTO is '…") and error.message.endswith("/folder/cat.png': give a picture")
    assert error.metadata["value"] == f"…{str(path)[-79:]}"


def test_a_long_value_is_cut() -> None:
    """An error repeats at most 80 characters of what was refused, and stays far below 4 KiB."""
    error = InvalidField("f", "x" * 10_000, "use less")
    assert len(error.metadata["value"]) == errors.MAX_SHOWN_VALUE and error.metadata["value"].endswith("…")
    assert to_status(error).ByteSize() < 1024


def test_foreign_statuses_become_errors_too() -> None:
    """An unknown code is Internal, a status without details has the reason UNKNOWN, foreign details are passed over."""
    odd = from_status(Status(code=grpc.StatusCode.OUT_OF_RANGE.value[0], message="odd"))
    assert type(odd) is Internal and odd.reason == "UNKNOWN" and odd.retry_after_s is None
    foreign = Any()
    foreign.Pack(error_details_pb2.DebugInfo(detail="/secret"))
    status = to_status(Unavailable("x", reason="Y"))
    status.details.append(foreign)
    assert from_status(status).metadata == {} and from_status(status).reason == "Y"


@given(st.text(), st.text(), st.text(), st.integers(1, 3000))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_no_text_makes_a_status_too_large(field: str, value: str, remedy: str, times: int) -> None:
    """Texts of any length and alphabet give details below 4 KiB that come back as the same error (r5)."""
    for error in (
        InvalidField(field * times or "f", value * times, remedy * times),
        Aborted.field_error(field * times or "f", value * times, remedy * times, reason="OTHER"),
        NotFound(value * times, reason="GONE", metadata={f"k{n}": remedy * times for n in range(9)}),
    ):
        status = to_status(error)
        back = from_status(Status.FromString(status.SerializeToString()))
        assert status.ByteSize() <= 4096 and len(status.message.encode()) <= errors.MAX_MESSAGE_BYTES
        assert (type(back), back.message, back.metadata) == (type(error), error.message, error.metadata)


def test_the_remedy_is_told_however_long_the_value_is() -> None:
    """Of a long value the end is cut off, never the remedy behind it (r5)."""
    for value in ("\U000e0001" * 10_000, "ü" * 10_000, "\0" * 10_000, list(range(10_000)), b"\xff" * 10_000):
        error = InvalidField("page_token", value, "use next_page_token")
        assert error.message.endswith(": use next_page_token") and error.message.startswith("page_token is ")


def test_text_that_is_no_unicode_can_be_told() -> None:
    """Half a surrogate pair, as Python has for a file name's bytes, is told by its number (r5)."""
    error = InvalidField("name", "caf\udce9", "give its name in UTF-8")
    assert from_status(to_status(error)).metadata["value"] == r"caf\udce9"
