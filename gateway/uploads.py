"""Uploads that have not ended: how long one may take, and how much all of them may hold in memory.

Silence within an upload is cut as in every call (`unitune.deadlines`).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from unitune.errors import DeadlineExceeded, ResourceExhausted

UPLOAD_S = 300.0  # longest upload; 16 MiB in it are 56 KB/s
MAX_UPLOADS = 64  # at a time
MAX_BYTES = 192 << 20  # of them together
RETRY_AFTER_S = 2.0


class Upload:
    """The bytes of one upload that came so far."""

    def __init__(self, uploads: "Uploads", limit: asyncio.Timeout) -> None:
        self._uploads = uploads
        self._limit = limit
        self._data = bytearray()  # a list of tiny chunks would take much more memory
        self.size_bytes = 0

    def check(self, size_bytes: int) -> None:
        """Raise ResourceExhausted (TOO_MANY_UPLOADS) unless so many further bytes may be kept."""
        if self._uploads.size_bytes + size_bytes > self._uploads.max_bytes:
            raise _too_many()

    def add(self, chunk: bytes) -> None:
        """Keep the next chunk. Raises ResourceExhausted (TOO_MANY_UPLOADS)."""
        self.check(len(chunk))
        self._uploads.size_bytes += len(chunk)
        self.size_bytes += len(chunk)
        self._data += chunk

    def take_bytes(self) -> bytes:
        """All bytes, to be taken once. The limit of time ends here: what follows is the server's own time."""
        self._limit.reschedule(None)
        data = bytes(self._data)
        self._data = bytearray()
        return data


class Uploads:
    """All uploads of one gateway."""

    def __init__(
        self, *, upload_s: float = UPLOAD_S, max_uploads: int = MAX_UPLOADS, max_bytes: int = MAX_BYTES
    ) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._upload_s = upload_s
        self._left = max_uploads

    @asynccontextmanager
    async def admit(self) -> AsyncGenerator[Upload, None]:
        """An upload. The block lasts until its picture is checked and kept.

        Raises ResourceExhausted (TOO_MANY_UPLOADS), DeadlineExceeded (UPLOAD_TOO_SLOW).
        """
        if self._left == 0:
            raise _too_many()
        self._left -= 1
        limit = asyncio.timeout(self._upload_s)
        upload = Upload(self, limit)
        try:
            async with limit:
                yield upload
        except TimeoutError:
            raise DeadlineExceeded(
                f"the upload took more than {self._upload_s:g} seconds: send it again, faster",
                reason="UPLOAD_TOO_SLOW",
                metadata={"seconds": f"{self._upload_s:g}"},
            ) from None
        finally:
            self._left += 1
            self.size_bytes -= upload.size_bytes


def _too_many() -> ResourceExhausted:
    return ResourceExhausted(
        "too many pictures are being uploaded now; send this one again in a moment",
        reason="TOO_MANY_UPLOADS",
        retry_after_s=RETRY_AFTER_S,
    )
