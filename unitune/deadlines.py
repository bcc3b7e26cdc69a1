"""How long a call waits for its client: for the next message of a request, and for a reader to take what was written.

grpc reads and writes here in tasks that nobody cancels: its core uses their memory until they end, which they do with
the call or the connection. What was written last stays so long with a reader that does not read: one message.
"""

import asyncio
from typing import Any

from unitune.errors import DeadlineExceeded

READ_S = 30.0  # longest wait for the next message of a request
WRITE_S = 60.0  # longest wait for a reader to take a message, and
SLOWEST_BYTES_PER_S = 64 << 10  # for a large one as much more as a reader of this speed takes


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


async def write(context: Any, message: bytes) -> None:
    """Send an encoded message and return once the reader's side takes it. Raises ReaderTooSlow."""
    writing = asyncio.ensure_future(context.write(message))
    writing.add_done_callback(_seen)
    try:
        done, _ = await asyncio.wait({writing}, timeout=WRITE_S + len(message) / SLOWEST_BYTES_PER_S)
    except asyncio.CancelledError:
        await asyncio.wait({writing})  # no status can be sent before, and it ends when the client is gone
        raise
    if not done:
        raise ReaderTooSlow(writing)
    writing.result()


def _seen(task: "asyncio.Future[Any]") -> None:
    if not task.cancelled():
        task.exception()  # of a call that is over; one that is not reads it itself


class ReaderTooSlow(DeadlineExceeded):
    """Nobody took what was written (READER_TOO_SLOW). No status can be sent before `writing` has ended."""

    def __init__(self, writing: "asyncio.Future[Any]") -> None:
        super().__init__(
            f"the reader took nothing for {WRITE_S:g} seconds: read the stream to its end, or close it",
            reason="READER_TOO_SLOW",
            metadata={"seconds": f"{WRITE_S:g}"},
        )
        self.writing = writing
