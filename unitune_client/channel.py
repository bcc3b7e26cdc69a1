"""The channel to a server: its settings, which calls gRPC repeats, and which errors failures become."""

import asyncio
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import grpc
from grpc_status import rpc_status

from unitune.call_context import CarryingChannel
from unitune.errors import InvalidField, ResourceExhausted, Unavailable, UniTuneError, from_rpc_error, length_of
from unitune.options import EDIT
from unitune_client import forks

MAX_MESSAGE_BYTES = 16 << 20  # of an answer; larger pictures come in pieces
CHUNK_BYTES = 256 << 10
END_S = 1.0  # for a stream to end after its last event
PORT = 50051  # of a gateway, unless it was told another
INLINE_IMAGE_BYTES = EDIT["image_data"].limits.max_len  # larger pictures are uploaded before the edit
INLINE_MASK_BYTES = EDIT["mask"].limits.max_len  # and larger masks

_UNARY_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "3s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Only before the first event: afterwards grpc repeats no stream, and the client does (`repeats`).
_STREAM_RETRY = _UNARY_RETRY | {"maxAttempts": 3, "initialBackoff": "0.1s", "maxBackoff": "1s"}

# UploadImage has no policy: its chunks outgrow grpc's buffer for repeated calls, so the client sends them again itself.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    "methodConfig": [
        {
            "name": [
                {"service": "unitune.v1.TuningService"},
                {"service": "unitune.v1.ImageService", "method": "DeleteImage"},
            ],
            "timeout": "15s",
            "waitForReady": True,
            "retryPolicy": _UNARY_RETRY,
        },
        {
            "name": [
                {"service": "unitune.v1.TuningService", "method": "WatchTuning"},
                {"service": "unitune.v1.EditService", "method": "Edit"},
                {"service": "unitune.v1.EditService", "method": "Compare"},
            ],
            "retryPolicy": _STREAM_RETRY,
        },
        # Not waitForReady: this is a caller's first call, and a wrong address must be told at once.
        {
            "name": [
                {"service": "unitune.v1.ServerService"},
                {"service": "unitune.v1.EditService"},
                # Repeated, the other calls would make another key.
                {"service": "unitune.v1.KeyService", "method": "ListKeys"},
                {"service": "unitune.v1.KeyService", "method": "RevokeKey"},
            ],
            "timeout": "15s",
            "retryPolicy": _UNARY_RETRY,
        },
    ],
}

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.dns_min_time_between_resolutions_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.http2.bdp_probe", 0),
    # Clients of one process share no connection, so that closing one never disturbs another.
    ("grpc.use_local_subchannel_pool", 1),
]


# What a name resolver of grpc takes in place of HOST:PORT.
_RESOLVED = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):.")

NO_PROXY: tuple[str, int] = ("grpc.enable_http_proxy", 0)


Key = str | Callable[[], str]  # a credential, or what gives the one to send now, such as a token that is renewed


def open_channel(
    address: str, tls: bool, root_certificates: bytes | None, key: Key | None = None
) -> "grpc.aio.Channel | KeyedChannel":
    """A channel that connects at its first call. It belongs to the running event loop. Where the caller uses
    OpenTelemetry, calls carry the current trace to the server.

    Raises RuntimeError in a process that was forked while a client was open.
    """
    forks.refuse_spoiled()
    options = [*CHANNEL_OPTIONS, NO_PROXY] if is_this_machine(address) else CHANNEL_OPTIONS
    if tls:
        credentials = grpc.ssl_channel_credentials(root_certificates)
        opened = forks.opened(grpc.aio.secure_channel(address, credentials, options=options))
    else:
        opened = forks.opened(grpc.aio.insecure_channel(address, options=options))
    channel = CarryingChannel.around(opened)
    return KeyedChannel(channel, key) if key else channel


class KeyedChannel:
    """A channel whose every call carries a credential. grpc's own call credentials need TLS, loopback does not."""

    def __init__(self, channel: grpc.aio.Channel, key: Key) -> None:
        self._channel, self._key = channel, key

    def unary_unary(self, *args: Any, **settings: Any) -> Any:
        """As that of the channel, and so the others."""
        return self._keyed(self._channel.unary_unary(*args, **settings))

    def unary_stream(self, *args: Any, **settings: Any) -> Any:
        return self._keyed(self._channel.unary_stream(*args, **settings))

    def stream_unary(self, *args: Any, **settings: Any) -> Any:
        return self._keyed(self._channel.stream_unary(*args, **settings))

    def stream_stream(self, *args: Any, **settings: Any) -> Any:
        return self._keyed(self._channel.stream_stream(*args, **settings))

    async def close(self, grace: float | None = None) -> None:
        """As that of the channel."""
        await self._channel.close(grace)

    def _keyed(self, begin: Any) -> Any:
        def call(*request: Any, **settings: Any) -> Any:
            key = checked_key(self._key if isinstance(self._key, str) else self._key())
            return begin(*request, metadata=(("authorization", f"Bearer {key}"),), **settings)

        return call


def checked_key(key: str, field: str = "key") -> str:
    """The credential, without what a file has around it. Raises InvalidField for what no call can carry."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidField(field, length_of(key), "give an API key or a token as it was handed out: one word")
    return key


def refuse_readable_key(address: str, field: str = "key") -> None:
    """Raise InvalidField for a credential that would be sent where others can read it."""
    if not is_this_machine(address):
        remedy = f"others could read it on its way without TLS: give grpcs://{address} as the address"
        raise InvalidField(field, "set", remedy)


def split_address(address: str) -> tuple[str, bool]:
    """HOST:PORT of a checked address, and whether it asks for TLS."""
    rest = address.removeprefix("grpcs://")
    return rest, rest != address


def checked_address(address: str, field: str = "address") -> str:
    """The address, HOST:PORT or grpcs://HOST:PORT. Raises InvalidField for one without a port, or of another form: gRPC
    would choose a port."""
    scheme, is_url, rest = address.partition("://")
    if is_url and scheme.lower() == "grpcs":
        return f"grpcs://{checked_address(rest, field)}"
    if is_url and scheme.lower() in ("http", "https", "grpc"):
        raise InvalidField(field, address, f"give HOST:PORT alone, such as {_with_port(rest.partition('/')[0])}")
    if _RESOLVED.match(address):
        return address
    host, _, port = address.rpartition(":")
    is_whole = bool(host) and (":" not in host or (host.startswith("[") and host.endswith("]")))
    if not is_whole or not _is_port(port):
        raise InvalidField(field, address, f"give HOST:PORT, such as {_with_port(address)}")
    return address


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16


def _with_port(given: str) -> str:
    """A right address, as near as can be to what was given."""
    host = given.strip().strip("[]")
    try:
        is_ipv6 = ipaddress.ip_address(host).version == 6
    except ValueError:
        is_ipv6 = False
    if is_ipv6:
        return f"[{host}]:{PORT}"
    name, _, port = given.partition(":")
    name = name if re.fullmatch(r"[A-Za-z0-9.-]+", name) else "127.0.0.1"
    return f"{name}:{port if _is_port(port) else PORT}"


def is_this_machine(address: str) -> bool:
    """Whether HOST:PORT is of this machine: grpc would ask the proxy of http_proxy for 127.0.0.1 too."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Unreached(Unavailable):
    """No server answered, or the connection broke before it did: grpc's own error, without a word of ours."""


class Untrusted(Unreached):
    """TLS failed, as it will the next time."""


@contextmanager
def typed_errors(address: str) -> Iterator[None]:
    """Turn what grpc raises into one of `unitune.errors`; Unreached if no server of ours said it."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _typed(error, address) from None


# Words of grpc's for what is wrong with TLS, and ours.
_OF_TLS = {
    "CERTIFICATE_VERIFY_FAILED": "the certificate of the server at {} is of no authority that is trusted here: give "
    "the authority's certificate, as --ca or root_certificates",
    "Hostname Verification Check failed": "the certificate of the server at {} is of another name: give that as the "
    "address",
    "WRONG_VERSION_NUMBER": "the server at {} answers without TLS: give HOST:PORT without grpcs:// and a CA",
}


# What a broken connection looks like behind a proxy, which resets the stream. Our own servers' errors have details.
_OF_RESETS = (grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def _typed(error: grpc.aio.AioRpcError, address: str) -> UniTuneError:
    typed = from_rpc_error(error)
    if typed.reason == "UNAVAILABLE":  # from grpc itself: the servers' own errors name a better reason
        for word, told in _OF_TLS.items():
            if word in typed.message:
                return Untrusted(told.format(address), reason="UNAVAILABLE")
        return Unreached(f"no UniTune server answers at {address}", reason="UNAVAILABLE")
    if error.code() in _OF_RESETS and rpc_status.from_call(cast(grpc.Call, error)) is None:
        return Unreached(f"the connection to the server at {address} broke", reason="CONNECTION_LOST")
    if typed.reason == "RESOURCE_EXHAUSTED" and "larger than max" in typed.message:  # the size of a message
        remedy = "upload pictures and masks, and shorten texts"
        problem = f"the request is larger than the server at {address} takes in one message"
        return ResourceExhausted(f"{problem}: {remedy}", reason="MESSAGE_TOO_LARGE", metadata={"remedy": remedy})
    if typed.reason == "DEADLINE_EXCEEDED":
        return Unreached(f"the server at {address} did not answer in time", reason="DEADLINE_EXCEEDED")
    return typed


async def read_to_end(call: grpc.aio.Call) -> None:
    """Let a stream end by itself after its last event: to the server, one that is cancelled then is a cancelled one."""
    with suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            await call.code()
