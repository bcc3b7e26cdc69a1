"""Decoders of pictures that stay warm from one test to the next, as a gateway's do from one picture to the next.

An event loop ends with its test, and asyncio's processes with it. These belong to none.
"""

import asyncio
import atexit
import subprocess
import sys
from typing import ClassVar

from unitune import picture_check


class WarmDecoder:
    """A decoder's process, with what `PictureChecks` asks of one of asyncio's. Threads read and write its pipes."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", picture_check._PROGRAM]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        self._unsent = b""
        self.stdin = self.stdout = self
        self.pid, self.kill, self.send_signal = self._process.pid, self._process.kill, self._process.send_signal

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    async def wait(self) -> int:
        return await asyncio.to_thread(self._process.wait)

    def write(self, data: bytes) -> None:
        self._unsent += data

    async def drain(self) -> None:
        data, self._unsent = self._unsent, b""
        await asyncio.to_thread(self._send, data)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    async def readexactly(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = await asyncio.to_thread(self._process.stdout.read, size)
        if len(data) < size:
            raise asyncio.IncompleteReadError(data, size)
        return data

    def close(self) -> None:
        """Close the pipes of one that has ended."""
        self._process.communicate()


class WarmChecks(picture_check.PictureChecks):
    """Checks pictures in decoders that it leaves to the next test."""

    _left: ClassVar[list[WarmDecoder]] = []

    async def _start(self) -> WarmDecoder:
        while self._left:
            decoder = self._left.pop()
            if decoder.returncode is None:
                return decoder
        return await asyncio.to_thread(WarmDecoder)

    async def close(self) -> None:
        self._left.extend(self._idle)
        self._idle.clear()


@atexit.register
def _end() -> None:
    for decoder in WarmChecks._left:
        decoder.kill()
        decoder.close()
