"""Limits how long a call waits for its client: to send the next message, and to read the last one.

grpc's reads and writes run in tasks that are never cancelled, because its core uses their memory until they end. They
end with the call or the connection. Until then at most one message is kept for a reader that does not read.
"""

import asyncio
from typing import Any

from unitune.errors import DeadlineExceeded

READ_S = 30.0  # longest wait for the next message of a request
WRITE_S = 60.0  # longest wait for a reader to take a message,
SLOWEST_BYTES_PER_S = 64 << 10  # plus the time that a reader of this speed needs for it


async def read(context: Any) -> Any:
    """The next message of the request, or EOF. Raises DeadlineExceeded (REQUEST_TOO_SLOW)."""
    reading = asyncio.ensure_future(context.read())
    reading.add_done_callback(_seen)
    done, _ = await asyncio.wait({reading}, timeout=READ_S)
    if not done:
        raise DeadlineExceeded(
            f"no message of the request came for {READ_S:g} seconds: send it without pauses, or half-close",
            reason="REQUEST_TOO_SLOW",
            metadata={"seconds": f"{READ_S:g}"},
        )
    return reading.result()


async def write(context: Any, message: Any) -> None:
    """Send a message, and return when the reader has taken it. Raises ReaderTooSlow."""
    writing = asyncio.ensure_future(context.write(message))
    writing.add_done_callback(_seen)
    done, _ = await asyncio.wait({writing}, timeout=WRITE_S + message.ByteSize() / SLOWEST_BYTES_PER_S)
    if not done:
        raise ReaderTooSlow(writing)
    writing.result()


def _seen(task: "asyncio.Future[Any]") -> None:
    if not task.cancelled():
        task.exception()  # marks it as retrieved; a running call reads it itself


class ReaderTooSlow(DeadlineExceeded):
    """Nobody took what was written (READER_TOO_SLOW). No status can be sent before `writing` has ended."""

    def __init__(self, writing: "asyncio.Future[Any]") -> None:
        super().__init__(
            f"the reader took nothing for {WRITE_S:g} seconds: read the stream to its end, or close it",
            reason="READER_TOO_SLOW",
            metadata={"seconds": f"{WRITE_S:g}"},
        )
        self.writing = writing
