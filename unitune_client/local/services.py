"""The three services on this machine, as child processes that run while a `with` block does."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from unitune.drain import DRAIN_S
from unitune.v1 import server_pb2, server_pb2_grpc
from unitune_client.channel import NO_PROXY
from unitune_client.local import programs
from unitune_client.local.home import Home, Lock, Running
from unitune_client.local.machine import (
    LocalError,
    base_model_file,
    base_model_folder,
    base_model_name,
    missing_modules,
)
from unitune_client.local.stage_log import StageLog
from unitune_client.local.supervision import Service, Supervisor

CPU_BACKEND = "onnxruntime"  # the only one that needs no fp16 graph
START_S = 300.0  # a large base model is read from a slow disk
LOOKS_EVERY_S = 0.05
NOTICED_S = 1.0  # after which the end of a service is noticed for certain

# The services listen on 127.0.0.1 and ask for no credentials, whatever environment or configuration file say.
WITHOUT_CREDENTIALS = dict.fromkeys(
    (
        "UNITUNE_ADMIN_KEY_FILE",
        "UNITUNE_INSECURE",
        "UNITUNE_OIDC_AUDIENCE",
        "UNITUNE_OIDC_ISSUER",
        "UNITUNE_OIDC_JWKS",
        "UNITUNE_PEER_CA",
        "UNITUNE_PEER_CERT",
        "UNITUNE_PEER_KEY",
        "UNITUNE_TLS_CERT",
        "UNITUNE_TLS_KEY",
    ),
    "",
)

Say = Callable[[str], object]


class LocalServices:
    """Tuner, sampler and gateway: started on entering, stopped on leaving, by an exception too.

        with LocalServices(log=print) as services, Client(services.address) as client:
            ...

    A service that ends unasked is started again at its address, a few times. If this process is killed, the services
    end, too. Their logs are files in the cache folder. Only one program may run services in a cache folder. Another one
    waits for its turn, unless it is told not to.
    """

    def __init__(
        self,
        base_model: str | None = None,
        *,
        home: Home | None = None,
        log: Say = lambda line: None,
        port: int = 0,
        waits: bool = True,
    ) -> None:
        """`base_model` is a folder in diffusers layout or a .safetensors file, the embedded one by default.

        `log` is told what takes long, and of every restart, from another thread. `port` of the gateway; 0 takes a free
        one. Without `waits` a cache folder in which another program runs its services is a LocalError.
        """
        self._home = home or Home.from_environment(os.environ)
        self._file = base_model_file(base_model)
        self._base_model = base_model_folder(base_model, self._home.models)
        self._log, self._port, self._waits = log, port, waits
        self._lock: Lock | None = None
        self._services: dict[str, Service] = {}
        self._supervisor: Supervisor | None = None
        self._began_s = 0.0
        self.logs = Path()
        self.on_failure: Callable[[], object] = lambda: None  # called when a service is given up, from another thread
        self.address = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def build(self) -> Path:
        """The engine's folder for the base model; graphs and engine are made first if they are not there.

        Raises LocalError when something is not installed or a program fails.
        """
        self._prepare()
        self.logs = self._home.new_logs()
        return self._engine()

    def wait_for_turn(self) -> Running | None:
        """Wait until services may start here, which `with` then does. If another program shares its services meanwhile,
        those are returned. Raises LocalError for a cache folder in use, without `waits`.
        """
        return self._wait_for_lock(takes_shared=True)

    def share(self) -> None:
        """Let other commands on this machine use these services."""
        if self._lock is not None:
            self._lock.share(self.address, str(self._base_model), self.logs)

    def check(self) -> None:
        """Raises LocalError if a service has ended and is not started again, with the end of its log."""
        if self._supervisor is not None:
            if self._supervisor.failure is not None:
                raise self._supervisor.failure
            return
        for service in self._services.values():
            if service.process.poll() is not None:
                raise service.failure()

    def check_unbroken(self) -> None:
        """Raises LocalError if a service has ended, though it is started again."""
        gives_up_at = time.monotonic() + NOTICED_S
        while time.monotonic() < gives_up_at:
            self.check()
            if self._supervisor is not None and self._supervisor.last_end is not None:
                raise self._supervisor.last_end
            time.sleep(LOOKS_EVERY_S)

    def stop(self) -> None:
        """Stop the services; there is none left afterwards. What runs in them gets DRAIN_S seconds to end."""
        try:
            if self._supervisor is not None:
                self._supervisor.end()
        finally:
            try:
                # The tuner gives its tuning back while the gateway is there: the next services need not wait for it.
                tuner = self._services.get("tuner")
                programs.stop(
                    [service.process for service in self._services.values()],
                    first=tuner.process if tuner is not None else None,
                    on_wait=self._say_drain,
                )
            finally:
                self._services.clear()
                self._supervisor = None
                if self._lock is not None:
                    self._lock.release()
                    self._lock = None

    def _say_drain(self) -> None:
        self._log(f"what still runs gets {DRAIN_S:.0f} s to end; Ctrl-C again ends it at once")

    def _start(self) -> None:
        if self._lock is None:
            self._wait_for_lock(takes_shared=False)
        self._began_s, self.logs = time.monotonic(), self._home.new_logs()
        with _reserved(self._port), _reserved(0) as internal:
            self._log(f"starting the services; their logs are in {self.logs}")
            store = {"UNITUNE_STORE": str(self._home.store), **WITHOUT_CREDENTIALS}
            tuner = {
                "UNITUNE_TUNER_ADDRESS": "127.0.0.1:0",
                "UNITUNE_GATEWAY": f"127.0.0.1:{internal}",
                "UNITUNE_BASE_MODEL": str(self._base_model),
            }
            # There are engines, so this one is there most likely: the tuner can load meanwhile.
            if self._home.engine_names() and self._base_model.is_dir():
                self._spawn("tuner", "tuner_svc", store | tuner)
            sampler = {"UNITUNE_SAMPLER_ADDRESS": "127.0.0.1:0", "UNITUNE_ENGINE": str(self._engine())}
            self._say_since_start("the engine is there")
            if "tuner" not in self._services:
                self._spawn("tuner", "tuner_svc", store | tuner)
            self._spawn("sampler", "sampler_svc", store | sampler)
            gateway = {
                "UNITUNE_GATEWAY_ADDRESS": f"127.0.0.1:{self._port}",
                "UNITUNE_INTERNAL_ADDRESS": f"127.0.0.1:{internal}",
                "UNITUNE_STATE": str(self._home.state),
                "UNITUNE_SAMPLER": self._listening("sampler"),
            }
            self._listening("tuner")
        # With the lock: should this process be killed, nobody else starts a gateway before this one has ended.
        assert self._lock is not None
        self._spawn("gateway", "gateway", store | gateway, keep_open=[self._lock.fileno()])
        self.address = self._listening("gateway")
        self._wait_until_serving()
        self._say_since_start("the gateway answers")
        self._supervisor = Supervisor(list(self._services.values()), self._log, lambda: self.on_failure())
        self._supervisor.start()

    def _wait_for_lock(self, *, takes_shared: bool) -> Running | None:
        self._prepare()
        told: int | str | None = ""
        while (lock := self._home.lock()) is None:
            running, holder = self._home.running(), self._home.holder()
            if not self._waits:
                raise LocalError(_in_use(self._home, running, holder))
            if running is not None and takes_shared:
                return running
            if holder != told:
                who = f"another program (process {holder})" if holder else "another program"
                self._log(f"{who} runs its services in {self._home.root}; waiting for its end")
                told = holder
            time.sleep(LOOKS_EVERY_S)
        self._lock = lock
        return None

    def _prepare(self) -> None:
        if missing := missing_modules():
            raise LocalError(
                f"the services cannot run here, because {', '.join(missing)} cannot be found: "
                "pip install 'unitune[cli,tuner,sampler,gateway]', or give --address of a server"
            )
        self._home.prepare()

    def _engine(self) -> Path:
        said, name = False, base_model_name(self._base_model)
        known_s = self._home.build_s(name)

        def say(stage: str = "") -> None:
            nonlocal said
            if not said:
                how_long = f"; the last one took {sum(known_s.values()):.0f} s here" if known_s else ""
                self._log(f"building the engine for {name}, once{how_long}")
                said = True
            if stage:
                self._log(stage)

        stages = StageLog(say, known_s)
        if not self._home.engine_names():
            say()
        if self._file is not None and not self._base_model.is_dir():
            write = ["tuner_svc.single_file", str(self._file), "--out", str(self._base_model)]
            programs.run(write, self._log_of("import"), stages)
        export = ["tuner_svc.export", "--base-model", str(self._base_model), "--graphs-root", str(self._home.graphs)]
        build = ["sampler_svc.build", "--engines", str(self._home.engines)]
        backend = os.environ.get("UNITUNE_SAMPLER_BACKEND", CPU_BACKEND)  # the sampler inherits it
        if backend != CPU_BACKEND:
            export.append("--fp16")
            build += ["--backend", backend]
        graphs = programs.run(export, self._log_of("export"), stages)
        build += ["--graphs", str(graphs)]
        engine = programs.run(build, self._log_of("build"), stages)
        if stages.took_s:
            self._home.note_build(name, {**known_s, **stages.took_s})
        return engine

    def _spawn(self, name: str, module: str, settings: dict[str, str], keep_open: Sequence[int] = ()) -> None:
        self._services[name] = Service(name, module, settings, self._log_of(name), keep_open=keep_open)

    def _listening(self, name: str) -> str:
        """The address that a service printed. Raises LocalError when a service ends or this one says nothing."""
        service = self._services[name]
        gives_up_at = time.monotonic() + START_S
        while time.monotonic() < gives_up_at:
            self.check()
            if service.listens():
                self._say_since_start(f"the {name} listens")
                return service.address
            time.sleep(LOOKS_EVERY_S)
        raise programs.failure(f"the {name} did not start within {START_S:.0f} seconds", self._log_of(name))

    def _say_since_start(self, what: str) -> None:
        self._log(f"{what} after {time.monotonic() - self._began_s:.1f} s")

    def _wait_until_serving(self) -> None:
        """Until the gateway is healthy and knows its tuner and its sampler."""
        # Installed with the services, not with the client.
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        gives_up_at = time.monotonic() + START_S
        with grpc.insecure_channel(self.address, options=[NO_PROXY]) as channel:
            health, server = health_pb2_grpc.HealthStub(channel), server_pb2_grpc.ServerServiceStub(channel)
            while time.monotonic() < gives_up_at:
                self.check()
                try:
                    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
                    info = server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=5.0)
                except grpc.RpcError:
                    pass  # not yet
                else:
                    healthy = answer.status == health_pb2.HealthCheckResponse.SERVING
                    if healthy and info.HasField("tuning_defaults") and info.HasField("sampling_defaults"):
                        return
                time.sleep(LOOKS_EVERY_S)
        raise programs.failure(f"the gateway was not ready within {START_S:.0f} seconds", self._log_of("gateway"))

    def _log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"


@contextmanager
def _reserved(port: int) -> Iterator[int]:
    """Keep a port, or any free one for 0, from others until the gateway takes it; its number. Raises LocalError at once
    for one that is not to be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended just now is in nobody's way
        try:
            holder.bind(("127.0.0.1", port))
        except OSError as error:
            why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
            raise LocalError(
                f"the gateway cannot listen on 127.0.0.1:{port}: {why}; give another --port, or 0 for any"
            ) from None
        yield holder.getsockname()[1]


def _in_use(home: Home, running: Running | None, holder: int | None) -> str:
    """Who runs services in a cache folder, and what to do about it."""
    if running is not None:
        remedy = f"commands on this machine use it by themselves; to stop it: kill {running.pid}"
        return f"`unitune up` runs already: {running.address}, process {running.pid}; {remedy}"
    if holder is not None:
        return f"process {holder} runs its services in {home.root}; wait for its end, or stop it: kill {holder}"
    return f"services of a program that was killed are ending in {home.root}; try again in a minute"
