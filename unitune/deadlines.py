"""How long a call waits for its client: for the next message of a request, and for a reader to take what was written.

grpc reads and writes here in tasks that nobody cancels: its core uses their memory until they end, which they do with
the call or the connection. What was written last stays so long with a reader that does not read: one message.
"""

import asyncio
import time
from typing import Any

from grpc.aio import EOF  # type: ignore[attr-defined]  # the stubs lack it

from unitune.errors import DeadlineExceeded

READ_S = 30.0  # longest wait for the next message of a request
WRITE_S = 60.0  # longest wait for a reader to take a message, and
SLOWEST_BYTES_PER_S = 64 << 10  # for a large one as much more as a reader of this speed takes
# A client that is refused while it sends may see the failure of its sending, INTERNAL, in place of the refusal:
# grpc.aio 1.85 does that. So what still comes is read first and dropped, for REST_S at most, until nothing came for
# REST_SILENCE_S, and no more than an upload has.
REST_S, REST_SILENCE_S = 1.0, 0.05
REST_BYTES = 20 << 20


class Messages:
    """The messages of one call's request, as they come."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._reading: asyncio.Future[Any] | None = None
        self._is_over = False

    async def read(self) -> Any:
        """The next message of the request, or EOF. Raises DeadlineExceeded (REQUEST_TOO_SLOW)."""
        if not await self._has_next(READ_S):
            raise DeadlineExceeded(
                f"no message of the request came for {READ_S:g} seconds: send it without pauses, or half-close",
                reason="REQUEST_TOO_SLOW",
                metadata={"seconds": f"{READ_S:g}"},
            )
        return self._take()

    async def drop_rest(self) -> None:
        """Read and forget what a refused client still sends."""
        left_bytes, gives_up_s = REST_BYTES, time.monotonic() + REST_S
        while not self._is_over and left_bytes > 0 and time.monotonic() < gives_up_s:
            if not await self._has_next(REST_SILENCE_S):
                return
            try:
                message = self._take()
            except Exception:  # the client is gone
                return
            left_bytes -= message.ByteSize() if hasattr(message, "ByteSize") else REST_BYTES // 16

    async def _has_next(self, wait_s: float) -> bool:
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._context.read())
            self._reading.add_done_callback(_seen)
        done, _ = await asyncio.wait({self._reading}, timeout=wait_s)
        return bool(done)

    def _take(self) -> Any:
        assert self._reading is not None
        reading, self._reading = self._reading, None
        self._is_over = True  # also if it raises: the client is gone
        message = reading.result()
        self._is_over = message is EOF
        return message


async def write(context: Any, message: bytes) -> None:
    """Send an encoded message and return once the reader's side takes it. Raises ReaderTooSlow."""
    writing = asyncio.ensure_future(context.write(message))
    writing.add_done_callback(_seen)
    try:
        done, _ = await asyncio.wait({writing}, timeout=WRITE_S + len(message) / SLOWEST_BYTES_PER_S)
    except asyncio.CancelledError:
        # No status can be sent before. It ends when the client is gone, and not when its key has ended.
        done, _ = await asyncio.wait({writing}, timeout=WRITE_S)
        if not done:
            raise ReaderTooSlow(writing) from None
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
