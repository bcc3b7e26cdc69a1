"""How many long calls one connection may have open: enough for every use, and fewer than HTTP/2 allows.

A call beyond the streams of a connection would wait in the client's transport without an answer. Long calls are refused
before that. The other streams are left for calls that are answered at once, such as CancelEdit.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unitune.errors import ResourceExhausted

LONG_CALLS = 256  # Edit, Compare, WatchTuning and UploadImage together; `serving.MAX_STREAMS` is four times as many
RETRY_AFTER_S = 5.0


class OpenCalls:
    """The long calls of all connections."""

    def __init__(self, most: int = LONG_CALLS) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def count(self, context: Any) -> Iterator[None]:
        """Count a call for as long as the block lasts. Raises ResourceExhausted (TOO_MANY_CALLS)."""
        peer = context.peer()
        if self._open[peer] >= self._most:
            raise ResourceExhausted(
                f"this connection has {self._most} streams and uploads open: end some, or open another connection",
                reason="TOO_MANY_CALLS",
                metadata={"limit": str(self._most)},
                retry_after_s=RETRY_AFTER_S,
            )
        self._open[peer] += 1
        try:
            yield
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
