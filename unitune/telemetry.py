"""Writes the log of a service: one JSON object per line on stderr, with field names from one list.

No field has a prompt, picture or credential. Tunings and edits appear only by name, and paths only in messages of the
system. What is logged while a call is answered has the call's request id, which is the same in all services, and the id
of its trace, if there is one.
"""

import json
import logging
import sys
import time
from typing import TextIO, TypedDict, Unpack

from unitune.call_context import request_id
from unitune.tracing import trace_id


class Fields(TypedDict, total=False):
    """The fields of a log line besides `time`, `level`, `service`, `event`, `request`, `trace` and `traceback`."""

    address: str
    api_key: str
    attempt: int
    code: str
    detail: str
    digest: str
    edit: str
    engine: str
    image: str
    method: str
    reason: str
    seconds: float
    size_bytes: int
    tuning: str
    upstream: str
    warm: bool


class _JsonLine(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self.service,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        line |= {name: told for name, told in (("request", request_id.get()), ("trace", trace_id())) if told}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(service: str, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send the whole process's log to stderr as JSON lines. Called once, in `__main__`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLine(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: Unpack[Fields]) -> None:
    """Write one line: the event in a few fixed words, and its fields."""
    logger.log(level, name, extra={"fields": fields})


def failure(logger: logging.Logger, name: str, **fields: Unpack[Fields]) -> None:
    """Write one line at level error with the traceback of the exception being handled."""
    logger.error(name, exc_info=True, extra={"fields": fields})
