"""A TCP proxy in front of a service, whose connections can be cut, delayed, held and refused."""

import asyncio
import contextlib


class Proxy:
    """Passes bytes on, both ways, until `cut`, or until a connection was idle for long.

    Each piece of up to 64 KiB waits for `delay_s`, and for `passes`.
    """

    def __init__(self, target: str, idle_s: float | None = None) -> None:
        """A connection without a byte in either direction for `idle_s` is cut; None cuts none."""
        self._target, self._idle_s = target, idle_s
        self.idle_cuts = 0
        self.delay_s = 0.0
        self.passes = asyncio.Event()  # cleared: no byte passes, as when a cable is out
        self.passes.set()
        self.refuses = False  # new connections
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen on a free port of loopback, in `address`."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> int:
        """Reset every connection; how many there were, each counted once for either side."""
        for writer in self._writers:
            writer.transport.abort()
        return len(self._writers)

    async def stop(self) -> None:
        """Cut everything and accept no more."""
        assert self._server is not None
        self._server.close()
        self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        try:
            if self.refuses:
                raise ConnectionRefusedError
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        last = [asyncio.get_running_loop().time()]  # when there was a byte
        watching = asyncio.create_task(self._watch_idle(last, (writer, back)))
        try:
            await asyncio.gather(self._pass(reader, back, last), self._pass(there, writer, last))
        finally:
            watching.cancel()

    async def _watch_idle(self, last: list[float], writers: tuple[asyncio.StreamWriter, ...]) -> None:
        if self._idle_s is None:
            return
        loop = asyncio.get_running_loop()
        while (left_s := last[0] + self._idle_s - loop.time()) > 0:
            await asyncio.sleep(left_s)
        self.idle_cuts += 1
        for writer in writers:
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, last: list[float]) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                last[0] = asyncio.get_running_loop().time()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self.passes.wait()
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()
