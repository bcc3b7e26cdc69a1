"""What can go wrong, drawn as a tree, and its one table to gRPC status.

    UniTuneError
    ├── InvalidArgument        the request is wrong; do not retry          INVALID_ARGUMENT
    │   └── InvalidField       one field is; names it, its value, the remedy
    ├── Unauthenticated        no credential, or one that is not valid     UNAUTHENTICATED
    ├── PermissionDenied       the credential does not allow this          PERMISSION_DENIED
    ├── NotFound               no such resource, or not yours              NOT_FOUND
    ├── FailedPrecondition     not in this state                           FAILED_PRECONDITION
    ├── Aborted                somebody else changed it; read again        ABORTED
    ├── ResourceExhausted      too much at once; retry later if told so    RESOURCE_EXHAUSTED
    ├── DeadlineExceeded       the caller was too slow; may be tried again DEADLINE_EXCEEDED
    ├── Unavailable            not now; retry                              UNAVAILABLE
    ├── DataLoss               stored weights are not what they should be  DATA_LOSS
    ├── Cancelled              stopped on request                          CANCELLED
    └── Internal               the server's mistake; carries only a reason INTERNAL

Every error carries `reason` (UPPER_SNAKE) and `metadata`, which are sent as google.rpc.ErrorInfo of the domain
"unitune.dev" (AIP-193). Messages never hold paths, traces or prompts. `cut` shortens every text of an error: a caller's
values may be of any length, and gRPC silently drops details beyond 8 KB.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Self, TypedDict, cast

# What turns errors into gRPC's imports gRPC itself: a process that only decodes pictures starts in half of the time.
if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message
    from google.rpc import status_pb2

DOMAIN = "unitune.dev"
MAX_SHOWN_VALUE = 80  # characters of a refused value that an error repeats
MAX_SHOWN_FIELD = 120  # and of its place in the request, which may have a word in it
# Limits of texts in UTF-8. A message is sent three times, once with up to three bytes for each of these.
MAX_MESSAGE_BYTES = 900
MAX_PART_BYTES = 400  # of a value or a remedy
MAX_METADATA_BYTES = 1600  # of all values of the metadata

# Reasons that more than one module uses. `unitune.system_errors` maps errors of the system to them.
STORE_FULL = "STORE_FULL"  # ResourceExhausted: the disk or the quota of the object store
STORE_DOWN = "STORE_DOWN"  # Unavailable: the object store does not answer, or refuses
STORE_CORRUPT = "STORE_CORRUPT"  # DataLoss: an object of the store is not what was written
STORE_PATH = "STORE_PATH"  # InvalidArgument: no store has such a path
STATE_FULL = "STATE_FULL"  # ResourceExhausted: the disk of the gateway's state file
STATE_READ_ONLY = "STATE_READ_ONLY"  # FailedPrecondition: the gateway was started on a state that cannot be written
STATE_DOWN = "STATE_DOWN"  # Unavailable: the gateway's state file cannot be read or written now
STATE_CORRUPT = "STATE_CORRUPT"  # DataLoss: the gateway's state file is damaged
# Reasons of admission. All but the last are ResourceExhausted.
TENANT_TUNING_LIMIT = "TENANT_TUNING_LIMIT"  # the tenant has as many tunings queued or running as it may
TENANT_EDIT_LIMIT = "TENANT_EDIT_LIMIT"  # and as many edits and comparisons open
TENANT_REQUEST_RATE = "TENANT_REQUEST_RATE"  # the tenant asks more often than it may
TENANT_STORAGE_LIMIT = "TENANT_STORAGE_LIMIT"  # the tenant's pictures and weights take all that they may
QUEUE_FULL = "QUEUE_FULL"  # all tenants together have as many tunings, or edits, as the server takes
DEADLINE_UNREACHABLE = "DEADLINE_UNREACHABLE"  # the edit's turn and its run take longer than the caller waits
COST_LIMIT = "COST_LIMIT"  # InvalidArgument: one request asks for more computing than one may


def cut(text: str, characters: int = MAX_MESSAGE_BYTES, size_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """The text, cut to these numbers of characters and of bytes in UTF-8, with "…" for the missing end.

    Invalid characters, such as half of a surrogate pair in a file's name, are shown by their number.
    """
    text = text.encode(errors="backslashreplace").decode()
    if len(text) > characters:
        text = f"{text[: characters - 1]}…"
    data = text.encode()
    if len(data) > size_bytes:
        text = f"{data[: size_bytes - len('…'.encode())].decode(errors='ignore')}…"
    return text


def shown(value: object) -> str:
    """A value that a caller sent, as a message or a metadata value repeats it. Of a long path it is the end."""
    if isinstance(value, PurePath):
        value = _end_of(value)
    if isinstance(value, str | bytes):
        value = value[: MAX_SHOWN_VALUE + 1]  # before repr: a value may have megabytes
    return cut(value if isinstance(value, str) else repr(value), MAX_SHOWN_VALUE, MAX_PART_BYTES)


def _end_of(path: PurePath) -> str:
    text = str(path)
    return text if len(text) <= MAX_SHOWN_VALUE else f"…{text[1 - MAX_SHOWN_VALUE :]}"


class Size(str):
    """What an error says in place of a value that it does not repeat, such as `2001 characters`. It has no quotes."""


def length_of(text: str) -> Size:
    """A text that may be a prompt, which no error repeats, by its length."""
    return Size(f"{len(text)} characters")


class _Code:
    """The gRPC status code of that name, of an error or of its class."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, error: object, kind: type) -> "grpc.StatusCode":
        import grpc

        return grpc.StatusCode[self._name]


class UniTuneError(Exception):
    """Base of all errors that cross a service's edge."""

    code = _Code("INTERNAL")

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """`retry_after_s` asks the caller to try again after these seconds; None does not."""
        message = cut(message)
        super().__init__(message)
        self.message = message
        self.reason = cut(reason, MAX_SHOWN_VALUE)
        metadata = metadata or {}
        share = min(MAX_PART_BYTES, MAX_METADATA_BYTES // max(1, len(metadata)))
        self.metadata = {cut(key, MAX_SHOWN_VALUE): cut(value, size_bytes=share) for key, value in metadata.items()}
        self.retry_after_s = retry_after_s

    @property
    def field(self) -> str | None:
        """The request field that is wrong, if it is one field."""
        return self.metadata.get("field")

    @classmethod
    def field_error(cls, field: str, value: object, remedy: str, *, reason: str) -> Self:
        """An error about one field, with a reason of its own."""
        return cls(**_refusal(field, value, remedy), reason=reason)


class _Refusal(TypedDict):
    message: str
    metadata: dict[str, str]


def _refusal(field: str, value: object, remedy: str) -> _Refusal:
    """Message and metadata of an error about one field. Field, value and remedy are each cut if they are long."""
    if isinstance(value, PurePath):
        value = _end_of(value)
    field, told, remedy = cut(field, MAX_SHOWN_FIELD), shown(value), cut(remedy, size_bytes=MAX_PART_BYTES)
    quoted, verb = told, "is"
    if isinstance(value, Size):
        verb = "has"
    elif isinstance(value, str):
        begin = value if len(value) <= MAX_SHOWN_VALUE else f"{value[: MAX_SHOWN_VALUE - 1]}…"
        quoted = cut(repr(begin), size_bytes=MAX_PART_BYTES)
    metadata = {"field": field, "value": told, "remedy": remedy}
    return {"message": f"{field} {verb} {quoted}: {remedy}", "metadata": metadata}


class InvalidArgument(UniTuneError):
    """The request is wrong as a whole: an image that cannot be decoded, a digest that differs."""

    code = _Code("INVALID_ARGUMENT")

    def in_field(self, field: str) -> "InvalidArgument":
        """The same error about the field in which a request carries what is refused."""
        metadata = {**self.metadata, "field": field}
        verb = "has" if self.message.startswith(f"{self.field} has ") else "is"
        message = f"{field} {verb} {metadata.get('value', 'refused')}: {metadata.get('remedy', self.message)}"
        return InvalidArgument(message, reason=self.reason, metadata=metadata)

    def moved(self, field: str, remedy: str | None = None) -> "InvalidField":
        """The same error by the field's place in another request, with that one's remedy if it is given."""
        value, remedy = self.metadata["value"], self.metadata["remedy"] if remedy is None else remedy
        return InvalidField(field, Size(value) if self.message.startswith(f"{self.field} has ") else value, remedy)


class InvalidField(InvalidArgument):
    """One field of the request is wrong. `remedy` says what would be right."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(**_refusal(field, value, remedy), reason="INVALID_FIELD")


class Unauthenticated(UniTuneError):
    """It is not known whose call this is."""

    code = _Code("UNAUTHENTICATED")


class PermissionDenied(UniTuneError):
    """It is known whose call this is, and they may not make it."""

    code = _Code("PERMISSION_DENIED")


class NotFound(UniTuneError):
    """No such resource, or it belongs to somebody else."""

    code = _Code("NOT_FOUND")


class FailedPrecondition(UniTuneError):
    """The resource is not in a state that allows this."""

    code = _Code("FAILED_PRECONDITION")


class Aborted(UniTuneError):
    """Somebody else changed the resource first."""

    code = _Code("ABORTED")


class ResourceExhausted(UniTuneError):
    """Too much at once."""

    code = _Code("RESOURCE_EXHAUSTED")

    @classmethod
    def of_quota(
        cls, subject: str, limit: float, message: str, *, reason: str, retry_after_s: float | None
    ) -> "ResourceExhausted":
        """A limit of `subject`, such as `tenants/a`, is reached. It is sent as google.rpc.QuotaFailure, too."""
        metadata = {"subject": subject, "limit": f"{limit:g}" if limit != int(limit) else str(int(limit))}
        return cls(message, reason=reason, metadata=metadata, retry_after_s=retry_after_s)

    @property
    def subject(self) -> str | None:
        """Whose limit is reached, if it is a limit of `of_quota`."""
        return self.metadata.get("subject")


class DeadlineExceeded(UniTuneError):
    """The caller took too long to send or to read; the call may be tried again."""

    code = _Code("DEADLINE_EXCEEDED")


class Unavailable(UniTuneError):
    """A service does not answer now; the call may be retried."""

    code = _Code("UNAVAILABLE")


class DataLoss(UniTuneError):
    """Stored data are damaged or missing, or an engine did not accept weights."""

    code = _Code("DATA_LOSS")


class Cancelled(UniTuneError):
    """Stopped on request."""

    code = _Code("CANCELLED")


class Internal(UniTuneError):
    """A mistake of the server. The details are in its log, not here."""

    code = _Code("INTERNAL")


_KINDS: tuple[type[UniTuneError], ...] = (
    InvalidArgument,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    FailedPrecondition,
    Aborted,
    ResourceExhausted,
    DeadlineExceeded,
    Unavailable,
    DataLoss,
    Cancelled,
    Internal,
)


@cache
def _by_code() -> dict[int, type[UniTuneError]]:
    return {kind.code.value[0]: kind for kind in _KINDS}


def to_status(error: UniTuneError) -> "status_pb2.Status":
    """The google.rpc.Status of an error, with ErrorInfo, and BadRequest for a field or QuotaFailure for a quota."""
    from google.protobuf import any_pb2, duration_pb2
    from google.rpc import error_details_pb2, status_pb2

    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, ResourceExhausted) and error.subject is not None:
        reached = error_details_pb2.QuotaFailure.Violation(subject=error.subject, description=error.message)
        details.append(error_details_pb2.QuotaFailure(violations=[reached]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(1000 * error.retry_after_s))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        one = any_pb2.Any()
        one.Pack(detail)
        packed.append(one)
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=packed)


def from_status(status: "status_pb2.Status") -> UniTuneError:
    """The error of a google.rpc.Status; an unknown code becomes Internal."""
    from google.rpc import error_details_pb2

    reason, metadata, retry_after_s = "UNKNOWN", dict[str, str](), None
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    if reason == "INVALID_FIELD" and {"field", "value", "remedy"} <= metadata.keys():
        field_error = InvalidField(metadata["field"], metadata["value"], metadata["remedy"])
        field_error.message = status.message  # it shows a number without the quotes that its text has here
        field_error.args = (status.message,)
        return field_error
    kind = _by_code().get(status.code, Internal)
    return kind(status.message, reason=reason, metadata=metadata, retry_after_s=retry_after_s)


def from_rpc_error(error: "grpc.RpcError") -> UniTuneError:
    """The error of a failed call, with or without details of the server."""
    from grpc_status import rpc_status

    call = cast("grpc.Call", error)
    status = rpc_status.from_call(call)
    if status is not None:
        return from_status(status)
    code, details = call.code(), call.details() or ""
    kind = _by_code().get(code.value[0], Internal)
    return kind(details, reason=code.name)
