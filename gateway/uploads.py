"""Uploads that have not ended: how long one may take, and how much all of them may hold in memory. One tenant has at
most half of that, so others find some.

Silence within an upload is cut as in every call (`unitune.deadlines`).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from unitune.errors import DeadlineExceeded, ResourceExhausted

UPLOAD_S = 300.0  # longest upload; 16 MiB in it are 56 KB/s
MAX_UPLOADS = 64  # at a time
MAX_BYTES = 192 << 20  # of them together
UPLOADS_OF_TENANT, BYTES_OF_TENANT = MAX_UPLOADS // 2, MAX_BYTES // 2
RETRY_AFTER_S = 2.0


class Upload:
    """The bytes of one upload that came so far."""

    def __init__(self, uploads: "Uploads", limit: asyncio.Timeout) -> None:
        self._uploads = uploads
        self._limit = limit
        self._tenant = ""
        self._data = bytearray()  # a list of tiny chunks would take much more memory
        self.size_bytes = 0

    def count_for(self, tenant: str) -> None:
        """Count it for a tenant, if it is not counted for one yet. Raises ResourceExhausted (TOO_MANY_UPLOADS)."""
        if tenant and not self._tenant:
            if self._uploads.open_of[tenant] >= UPLOADS_OF_TENANT:
                raise _too_many("of this tenant ")
            self._tenant = tenant
            self._uploads.open_of[tenant] += 1

    def check(self, size_bytes: int) -> None:
        """Raise ResourceExhausted (TOO_MANY_UPLOADS) unless so many further bytes may be kept."""
        if self._tenant and self._uploads.bytes_of[self._tenant] + size_bytes > BYTES_OF_TENANT:
            raise _too_many("of this tenant ")
        if self._uploads.size_bytes + size_bytes > self._uploads.max_bytes:
            raise _too_many()

    def add(self, chunk: bytes) -> None:
        """Keep the next chunk. Raises ResourceExhausted (TOO_MANY_UPLOADS)."""
        self.check(len(chunk))
        self._uploads.size_bytes += len(chunk)
        self._uploads.bytes_of[self._tenant] += len(chunk)
        self.size_bytes += len(chunk)
        self._data += chunk

    def take_bytes(self) -> bytes:
        """All bytes, to be taken once. The limit of time ends here: what follows is the server's own time."""
        self._limit.reschedule(None)
        data = bytes(self._data)
        self._data = bytearray()
        return data

    def end(self) -> None:
        """Let go of what it holds."""
        self._uploads.size_bytes -= self.size_bytes
        self._uploads.bytes_of[self._tenant] -= self.size_bytes
        self._uploads.open_of[self._tenant] -= bool(self._tenant)
        for counted in (self._uploads.bytes_of, self._uploads.open_of):
            if not counted[self._tenant]:
                del counted[self._tenant]


class Uploads:
    """All uploads of one gateway."""

    def __init__(
        self, *, upload_s: float = UPLOAD_S, max_uploads: int = MAX_UPLOADS, max_bytes: int = MAX_BYTES
    ) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.open_of, self.bytes_of = Counter[str](), Counter[str]()  # by tenant
        self._upload_s = upload_s
        self._left = max_uploads

    @asynccontextmanager
    async def admit(self, tenant: str = "") -> AsyncGenerator[Upload, None]:
        """An upload, of a tenant if it is known already. The block lasts until its picture is checked and kept.

        Raises ResourceExhausted (TOO_MANY_UPLOADS), DeadlineExceeded (UPLOAD_TOO_SLOW).
        """
        if self._left == 0:
            raise _too_many()
        limit = asyncio.timeout(self._upload_s)
        upload = Upload(self, limit)
        upload.count_for(tenant)
        self._left -= 1
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
            upload.end()


def _too_many(whose: str = "") -> ResourceExhausted:
    return ResourceExhausted(
        f"too many pictures {whose}are being uploaded now; send this one again in a moment",
        reason="TOO_MANY_UPLOADS",
        retry_after_s=RETRY_AFTER_S,
    )
