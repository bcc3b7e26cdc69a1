"""Decodes the pictures of callers in child processes with a limit of memory, so that no picture can end a service.

There are few children. They are started when first needed and stay warm. One that dies or takes too long is replaced.
The header of a file is checked in this process, before a child gets the file. `unitune.picture_decoder` is the child's
program.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from unitune.errors import Unavailable
from unitune.picture_decoder import ANSWER, DECODING_BYTES, MASK, PICTURE, REQUEST, MaskInfo
from unitune.picture_file import PictureInfo
from unitune.picture_header import PNG, Header, header, refusal

CHILDREN = 2
# The largest pictures take a few seconds, and others wait meanwhile. If the child has computed for half of this time,
# the picture is the reason. Otherwise the machine is, or somebody stopped the child.
DEADLINE_S = 20.0
RETRY_AFTER_S = 2.0
DYING_S = 5.0  # from a child's last output to its end

_ROOT = str(Path(__file__).resolve().parent.parent)
_PROGRAM = f"import sys; sys.path.insert(0, {_ROOT!r}); from unitune.picture_decoder import main; main()"


class PictureChecks:
    """Checks pictures. It belongs to one event loop; `close` ends its children."""

    def __init__(self, *, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._children = asyncio.Semaphore(CHILDREN)
        self._idle: list[asyncio.subprocess.Process] = []
        self._order = asyncio.Lock()  # the first comer gets memory first, however large its picture is
        self._freed = asyncio.Condition()
        self._decoding_bytes = 0

    async def picture(self, data: bytes) -> PictureInfo:
        """What a picture's file holds, all of which decodes. Raises InvalidArgument as `picture_file.read` does, and
        Unavailable (BACKEND_DOWN) when no process can be started, or none is given its time.
        """
        head = header(data)
        found = await self._checked(PICTURE, data, "image", head)
        return PictureInfo(**{**found, "warnings": tuple(found["warnings"])})

    async def mask(self, data: bytes) -> MaskInfo:
        """The same of a mask, which is a PNG; errors name the field `mask`."""
        head = header(data, "mask", (PNG,))
        return MaskInfo(**await self._checked(MASK, data, "mask", head))

    async def close(self) -> None:
        """End the children."""
        while self._idle:
            await _end(self._idle.pop())

    async def _checked(self, what: int, data: bytes, field: str, head: Header) -> dict[str, Any]:
        shown = f"{head.width}x{head.height} pixels"
        if head.checking_bytes > DECODING_BYTES:
            raise refusal(
                field, "IMAGE_TOO_LARGE", shown, "it needs too much memory to be decoded; send a smaller copy"
            )
        async with self._space(head.checking_bytes), self._children:
            for is_last in (False, True):
                child = await self._start() if is_last else await self._warm()
                code, began_s = None, _computed_s(child)
                try:
                    async with asyncio.timeout(self._deadline_s):
                        answer = await _ask(child, what, data)
                except TimeoutError:
                    computed_s = _computed_s(child) - began_s
                    await _end(child)
                    if computed_s >= self._deadline_s / 2:
                        remedy = f"it takes more than {self._deadline_s:g} seconds to be decoded; send a smaller copy"
                        raise refusal(field, "IMAGE_TOO_LARGE", shown, remedy) from None
                    continue
                except (OSError, EOFError):
                    code = await _exit_code(child)  # it may have died while it was idle: try a fresh one
                    continue
                except BaseException:
                    await _end(child)
                    raise
                self._idle.append(child)
                if "refused" in answer:
                    raise refusal(*answer["refused"])
                return dict(answer)
            if code is None:
                raise _unavailable(f"a picture could not be checked within {self._deadline_s:g} seconds: try again")
            if code == -signal.SIGKILL:
                remedy = "it needs more memory to be decoded than there is; send a smaller copy"
                raise refusal(field, "IMAGE_TOO_LARGE", shown, remedy)
            raise refusal(field, "IMAGE_UNDECODABLE", shown, "the file ends its decoder; save it anew and send that")

    async def _warm(self) -> asyncio.subprocess.Process:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        return await self._start()

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        try:
            return await asyncio.create_subprocess_exec(
                # -P: a folder called `unitune` where the service happens to stand is not ours.
                *(sys.executable, "-P", "-c", _PROGRAM),
                stdin=pipe,
                stdout=pipe,
                start_new_session=True,  # Ctrl-C is for the service, which ends its children itself
            )
        except OSError as error:
            raise _unavailable(f"no process can be started to check the picture: {error.strerror}") from error

    @asynccontextmanager
    async def _space(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` bytes of DECODING_BYTES for the block."""
        async with self._order, self._freed:
            await self._freed.wait_for(lambda: self._decoding_bytes + size <= DECODING_BYTES)
            self._decoding_bytes += size
        try:
            yield
        finally:
            self._decoding_bytes -= size
            async with self._freed:
                self._freed.notify_all()


async def _ask(child: asyncio.subprocess.Process, what: int, data: bytes) -> dict[str, Any]:
    """The child's answer. Raises OSError or EOFError when the child has died."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(REQUEST.pack(what, len(data)))
    child.stdin.write(data)
    await child.stdin.drain()
    (size,) = ANSWER.unpack(await child.stdout.readexactly(ANSWER.size))
    answer: dict[str, Any] = json.loads(await child.stdout.readexactly(size))
    return answer


def _computed_s(child: asyncio.subprocess.Process) -> float:
    """The processor time that a child has had, in seconds; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


def _unavailable(problem: str) -> Unavailable:
    metadata = {"upstream": "picture decoder"}
    return Unavailable(problem, reason="BACKEND_DOWN", metadata=metadata, retry_after_s=RETRY_AFTER_S)


async def _exit_code(child: asyncio.subprocess.Process) -> int:
    """The exit code of a child that has closed its pipes, and so is dead or dying.

    Killing it at once might take the code before asyncio does, which would then make one up (255).
    """
    try:
        async with asyncio.timeout(DYING_S):
            await child.wait()
    except TimeoutError:
        pass
    return await _end(child)


async def _end(child: asyncio.subprocess.Process) -> int:
    """End a child, unless it has ended; its exit code."""
    with suppress(ProcessLookupError):
        child.kill()
    code = await child.wait()
    if child.stdin is not None:
        child.stdin.close()
    return code
