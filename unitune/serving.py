"""Runs every service: bind, health, reflection, errors to status, SIGTERM -> drain -> stop.

Messages, health and reflection share one port; `health_address` adds a port for health alone, since a
Kubernetes probe can neither speak TLS nor carry a credential.
"""

import asyncio
import contextlib
import faulthandler
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer  # `health.aio` in grpc's own words, which its type stubs lack
from grpc_reflection.v1alpha import reflection

from unitune import metrics, telemetry
from unitune.call_context import CarryingChannel
from unitune.drain import DRAIN_S, LEAVE_S
from unitune.error_interceptor import Door, ErrorInterceptor

logger = logging.getLogger(__name__)

INTERNAL_MESSAGE_BYTES = 36 << 20  # a picture of 16 MiB, a mask of the same size, and the other fields
PUBLIC_REQUEST_BYTES = 4 << 20  # larger pictures come in chunks

# A stream between services without events sends a heartbeat. The event loop sends it, so that a busy worker thread does
# not look like a process that hangs.
HEARTBEAT_S = 5.0
# Silence after which such a stream is given up: three missing heartbeats.
SILENCE_S = 3 * HEARTBEAT_S
HANDSHAKE_S = 20.0  # for a new connection to begin HTTP/2, before it is closed

# Of one connection. Further calls wait in the client's transport, unanswered, so long calls are limited below it.
MAX_STREAMS = 1024

# Kubernetes probes these. Liveness stays SERVING during a drain: a draining server is healthy.
LIVENESS, READINESS = "liveness", "readiness"

HEALTH_CALLS = "/grpc.health.v1.Health/"  # how the names of its methods begin

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

Register = Callable[[grpc.aio.Server], list[str]]
Drain = Callable[[], Awaitable[None]]
Option = tuple[str, int | str]


def server_options(max_receive_bytes: int, connection_age_s: float = 0.0) -> list[Option]:
    """Options of a server. All were measured to take effect in grpcio 1.85.

    `connection_age_s` is the age after which a connection takes no more calls; 0 means no limit.
    """
    options: list[Option] = [
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", INTERNAL_MESSAGE_BYTES),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # With the server's default of 5 minutes, a client that pings every 30 s gets "too many pings".
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.max_connection_idle_ms", 900_000),
        ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE_S)),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # With the probe, the window grows until a reader that stopped costs 6 MB instead of 128 KiB.
        ("grpc.http2.bdp_probe", 0),
        # With 1, two servers could share a port unnoticed.
        ("grpc.so_reuseport", 0),
    ]
    if connection_age_s > 0:
        # Without a grace, which would cut running streams: an old connection takes no new call, and ends with its last
        # stream, however long that lasts.
        options.append(("grpc.max_connection_age_ms", round(1000 * connection_age_s)))
    return options


CHANNEL_OPTIONS: list[Option] = [
    ("grpc.max_receive_message_length", INTERNAL_MESSAGE_BYTES),
    ("grpc.max_send_message_length", INTERNAL_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.dns_min_time_between_resolutions_ms", 10_000),
    # The default grows to 2 minutes, for which a tuner that came back would wait for its gateway. It is below the
    # deadline of a short call, which waits for the connection.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # This is the time that an attempt to connect may take, despite its name; 20 s by default. The address of a pod that
    # is gone never answers.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # Otherwise equal channels of one process share a connection and its failures.
    ("grpc.use_local_subchannel_pool", 1),
    # A call with larger messages is not retried; the default of 256 KiB is less than a picture.
    ("grpc.per_rpc_retry_buffer_size", INTERNAL_MESSAGE_BYTES),
    # Services connect directly; grpc would use http_proxy even for 127.0.0.1.
    ("grpc.enable_http_proxy", 0),
]


def channel(
    address: str,
    *,
    service_config: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    name: str = "",
) -> grpc.aio.Channel:
    """A channel to a service. It connects at the first call; the caller closes it. Calls carry the trace along.

    `service_config` is JSON, such as a policy for retries. `credentials` turn TLS on; the server's certificate must be
    of `name` then, whatever its address.
    """
    options = list(CHANNEL_OPTIONS)
    if service_config is not None:
        options += [("grpc.service_config", service_config), ("grpc.enable_retries", 1)]
    if credentials is None:
        return CarryingChannel.around(grpc.aio.insecure_channel(address, options=options))
    options.append(("grpc.ssl_target_name_override", name))
    return CarryingChannel.around(grpc.aio.secure_channel(address, credentials, options=options))


@dataclass
class RunningServer:
    """A server that accepts calls. `address` is HOST:PORT with the bound port."""

    address: str
    _server: grpc.aio.Server
    _health_server: grpc.aio.Server | None
    _health: HealthServicer
    _services: list[str] = field(default_factory=list)

    async def set_ready(self, ready: bool) -> None:
        """Tell probes and clients that check health whether the server takes calls."""
        status = _SERVING if ready else _NOT_SERVING
        for service in ("", READINESS, *self._services):
            await self._health.set(service, status)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new calls, give running ones `drain_s` seconds, then cancel them."""
        await self.set_ready(False)
        await self._server.stop(drain_s)
        if self._health_server is not None:
            await self._health_server.stop(0)


async def start(
    address: str,
    register: Register,
    *,
    health_address: str | None = None,
    reflection_on: bool = False,
    max_receive_bytes: int = INTERNAL_MESSAGE_BYTES,
    connection_age_s: float = 0.0,
    door: Door | None = None,
    credentials: grpc.ServerCredentials | None = None,
    not_serving: Sequence[str] = (),
) -> RunningServer:
    """Start a server and return once it accepts calls.

    `register` adds the servicers and returns their full service names. `connection_age_s` is for public servers, whose
    clients should find new replicas; see `server_options`. `door` says who may call; without one everybody may.
    `credentials` turn TLS on, but for `health_address`. Health tells of `not_serving` that it is not served. Raises
    OSError when an address cannot be bound.
    """
    server = _new_server(max_receive_bytes, connection_age_s, door)
    services = register(server)
    probes = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(probes, server)
    for service in (LIVENESS, READINESS, *services):
        await probes.set(service, _SERVING)
    for service in not_serving:
        await probes.set(service, _NOT_SERVING)
    if reflection_on:
        reflected = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(reflected, server)
    bound = _bind(server, address, credentials)
    health_server = None
    if health_address:
        health_server = _new_server(max_receive_bytes)
        health_pb2_grpc.add_HealthServicer_to_server(probes, health_server)
        _bind(health_server, health_address)
        await health_server.start()
    await server.start()
    return RunningServer(bound, server, health_server, probes, services)


async def serve(
    name: str,
    address: str,
    register: Register,
    *,
    health_address: str | None = None,
    reflection: bool = False,
    drain_s: float = DRAIN_S,
    on_listening: Callable[[str], object] | None = None,
    on_drain: Drain | None = None,
    max_receive_bytes: int = INTERNAL_MESSAGE_BYTES,
    connection_age_s: float = 0.0,
    door: Door | None = None,
    credentials: grpc.ServerCredentials | None = None,
    metrics_address: str | None = None,
    not_serving: Sequence[str] = (),
) -> int:
    """Run a service until SIGTERM or SIGINT; the program's exit code.

    Prints exactly one line, `listening HOST:PORT`, to stdout once calls are accepted (port 0 takes any free one).
    `on_listening` is then called with that address.
    On the first signal, health becomes NOT_SERVING, `on_drain` may end endless calls, and running calls get `drain_s`
    seconds. A second signal cancels both at once. LEAVE_S later the process ends even if its threads run, with exit
    code 1 and the stacks of all threads on stderr. With `metrics_address` Prometheus finds metrics there, and the log
    tells the bound port.
    """
    loop = asyncio.get_running_loop()
    metrics.TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    try:
        if metrics_address:
            telemetry.event(logger, "metrics", address=metrics.serve(metrics_address))
        running = await start(
            address,
            register,
            health_address=health_address,
            reflection_on=reflection,
            max_receive_bytes=max_receive_bytes,
            connection_age_s=connection_age_s,
            door=door,
            credentials=credentials,
            not_serving=not_serving,
        )
    except OSError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    first, second = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        if not first.is_set():
            first.set()
            _leave_within(drain_s + LEAVE_S)
        elif not second.is_set():
            second.set()
            _leave_within(LEAVE_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    with contextlib.suppress(OSError):  # the log's disk may be full; whoever started this may know the address
        print(f"listening {running.address}", flush=True)
    telemetry.event(logger, "listening", address=running.address)
    if on_listening is not None:
        on_listening(running.address)
    await first.wait()
    telemetry.event(logger, "draining")
    await running.set_ready(False)
    hurried = asyncio.create_task(second.wait())
    if on_drain is not None:
        draining = asyncio.ensure_future(on_drain())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.cancel():
            draining.result()
    stopping = asyncio.create_task(running.stop(drain_s))
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await running.stop(0)
    await stopping
    hurried.cancel()
    telemetry.event(logger, "stopped")
    return 0


def _new_server(max_receive_bytes: int, connection_age_s: float = 0.0, door: Door | None = None) -> grpc.aio.Server:
    return grpc.aio.server(
        options=server_options(max_receive_bytes, connection_age_s), interceptors=[ErrorInterceptor(door)]
    )


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:  # grpc's message has several lines about socket calls
        raise OSError(f"cannot listen on {address}: it is in use or not an address of this machine") from error
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def _leave_within(seconds: float) -> None:
    """End the process after this time if it still runs: otherwise Python waits for every worker thread without limit.

    It returns at once. The timer does not need Python's lock, which a thread may hold for long.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
