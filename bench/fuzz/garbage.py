"""Bytes that are no HTTP/2, or no gRPC, thrown at an open port."""

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from random import Random

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
ANSWER_S = 0.3  # that an answer is waited for


async def throw(address: str, data: bytes) -> int:
    """Send bytes over a new connection and close it; the number of bytes of the answer."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = 0
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(ANSWER_S):
            while answer := await reader.read(1 << 16):
                received += len(answer)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return received


def garbage(draws: Random, path: str) -> tuple[str, bytes]:
    """One kind of it, and what it is in words; `path` is of a call that is there."""
    make = draws.choice(_KINDS)
    return make.__name__.strip("_").replace("_", " "), make(draws, path)


def frame(kind: int, flags: int, stream: int, payload: bytes, size: int | None = None) -> bytes:
    """A frame of HTTP/2; `size` is what it says of its length if that is not the truth."""
    length = len(payload) if size is None else size
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header_block(path: str) -> bytes:
    """The headers of a call, as literals."""
    headers = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    return b"".join(_literal(name.encode(), value.encode()) for name, value in headers.items())


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _opened(path: str) -> bytes:
    """A connection with one call that has no request yet."""
    return PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, header_block(path))


def _noise(draws: Random, path: str) -> bytes:
    return draws.randbytes(draws.randint(1, 2000))


def _noise_after_the_preface(draws: Random, path: str) -> bytes:
    return PREFACE + draws.randbytes(draws.randint(1, 2000))


def _random_frames(draws: Random, path: str) -> bytes:
    frames = [
        frame(draws.randrange(12), draws.randrange(256), draws.randrange(4), draws.randbytes(draws.randrange(60)))
        for _ in range(draws.randint(1, 30))
    ]
    return PREFACE + frame(SETTINGS, 0, 0, b"") + b"".join(frames)


def _HTTP_1(draws: Random, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _TLS(draws: Random, path: str) -> bytes:
    return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draws.randbytes(200)


def _frame_that_is_too_long(draws: Random, path: str) -> bytes:
    return _opened(path) + frame(DATA, 0, 1, bytes(100), size=(1 << 24) - 1)


def _message_of_4_GB(draws: Random, path: str) -> bytes:
    return _opened(path) + frame(DATA, END_STREAM, 1, b"\0\xff\xff\xff\xff" + draws.randbytes(20))


def _compressed_message(draws: Random, path: str) -> bytes:
    return _opened(path) + frame(DATA, END_STREAM, 1, b"\1" + struct.pack(">I", 9) + draws.randbytes(9))


def _message_that_is_cut(draws: Random, path: str) -> bytes:
    return _opened(path) + frame(DATA, END_STREAM, 1, b"\0" + struct.pack(">I", 900) + draws.randbytes(9))


def _message_of_noise(draws: Random, path: str) -> bytes:
    size = draws.randint(1, 400)
    return _opened(path) + frame(DATA, END_STREAM, 1, b"\0" + struct.pack(">I", size) + draws.randbytes(size))


def _calls_that_are_reset(draws: Random, path: str) -> bytes:
    block = header_block(path)
    calls = [
        frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        for stream in range(1, 401, 2)
    ]
    return PREFACE + frame(SETTINGS, 0, 0, b"") + b"".join(calls)


def _headers_without_an_end(draws: Random, path: str) -> bytes:
    return (
        PREFACE
        + frame(SETTINGS, 0, 0, b"")
        + frame(HEADERS, 0, 1, header_block(path))
        + b"".join(frame(CONTINUATION, 0, 1, _literal(b"x" * 20, b"y" * 120)) for _ in range(300))
    )


def _headers_of_1_MB(draws: Random, path: str) -> bytes:
    block = header_block(path) + _literal(b"x" * 20, b"y" * 120) * 100
    frames = b"".join(frame(CONTINUATION, 0, 1, _literal(b"x" * 20, b"y" * 120) * 100) for _ in range(70))
    return PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 0, 1, block) + frames


def _many_pings(draws: Random, path: str) -> bytes:
    return PREFACE + frame(SETTINGS, 0, 0, b"") + frame(PING, 0, 0, bytes(8)) * 500


def _many_settings(draws: Random, path: str) -> bytes:
    return PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", draws.randrange(8), draws.getrandbits(32))) * 300


def _window_that_overflows(draws: Random, path: str) -> bytes:
    return _opened(path) + frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", (1 << 31) - 1)) * 3


def _call_that_is_not_there(draws: Random, path: str) -> bytes:
    other = draws.choice(("", "unitune.v1.No/No", "..", "%00", "a" * 100))
    return _opened(f"/{other}") + frame(DATA, END_STREAM, 1, b"")


_KINDS: tuple[Callable[[Random, str], bytes], ...] = (
    _noise,
    _noise_after_the_preface,
    _random_frames,
    _HTTP_1,
    _TLS,
    _frame_that_is_too_long,
    _message_of_4_GB,
    _compressed_message,
    _message_that_is_cut,
    _message_of_noise,
    _calls_that_are_reset,
    _headers_without_an_end,
    _headers_of_1_MB,
    _many_pings,
    _many_settings,
    _window_that_overflows,
    _call_that_is_not_there,
)
