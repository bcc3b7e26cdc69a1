"""The three services on this machine, as processes of ours, for as long as a `with` block lasts."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from unitune.v1 import server_pb2, server_pb2_grpc
from unitune_client import programs
from unitune_client.channel import NO_PROXY
from unitune_client.home import Claim, Home
from unitune_client.machine import LocalError, base_model_folder, base_model_name, missing_modules

LISTENING = re.compile(r"^listening (\S+:\d+)$", re.MULTILINE)
CPU_BACKEND = "onnxruntime"  # the only one that needs no half graph
START_S = 300.0  # a large base model is read from a slow disk
LOOKS_EVERY_S = 0.05

Say = Callable[[str], object]


class LocalServices:
    """Tuner, sampler and gateway: started on entering, stopped on leaving, by an exception too.

        with LocalServices(log=print) as services, Client(services.address) as client:
            ...

    Should this process be killed, they end by themselves. Their logs are files in the home. Only one program may run
    services in a home; another one waits for its turn.
    """

    def __init__(
        self,
        base_model: str | None = None,
        *,
        home: Home | None = None,
        log: Say = lambda line: None,
        port: int = 0,
    ) -> None:
        """`base_model` is a folder in diffusers layout, the embedded one by default. `log` is told what takes long.
        `port` of the gateway; 0 takes a free one.
        """
        self._home = home or Home.of(os.environ)
        self._base_model = base_model_folder(base_model)
        self._log, self._port = log, port
        self._claim: Claim | None = None
        self._logs = Path()
        self._processes: dict[str, programs.Process] = {}
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
        return self._engine()

    def share(self) -> None:
        """Let other commands on this machine use these services."""
        if self._claim is not None:
            self._claim.share(self.address, str(self._base_model))

    def check(self) -> None:
        """Raises LocalError if a service has ended, with the end of its log."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise programs.failure(f"the {name} ended with status {process.returncode}", self._log_of(name))

    def stop(self) -> None:
        """Stop the services; there is none left afterwards."""
        try:
            programs.stop(self._processes.values())
        finally:
            self._processes.clear()
            if self._claim is not None:
                self._claim.release()
                self._claim = None

    def _start(self) -> None:
        self._prepare()
        self._claim = self._wait_for_claim()
        store = {"UNITUNE_STORE": str(self._home.store)}
        tuner = {"UNITUNE_TUNER_ADDRESS": "127.0.0.1:0", "UNITUNE_BASE_MODEL": str(self._base_model)}
        if self._home.engine_names():  # most likely nothing is to be built, and the tuner may load meanwhile
            self._spawn("tuner", "tuner_svc", store | tuner)
        sampler = {"UNITUNE_SAMPLER_ADDRESS": "127.0.0.1:0", "UNITUNE_ENGINE": str(self._engine())}
        if "tuner" not in self._processes:
            self._spawn("tuner", "tuner_svc", store | tuner)
        self._spawn("sampler", "sampler_svc", store | sampler)
        gateway = {
            "UNITUNE_GATEWAY_ADDRESS": f"127.0.0.1:{self._port}",
            "UNITUNE_STATE": str(self._home.state),
            "UNITUNE_TUNER": self._listening("tuner"),
            "UNITUNE_SAMPLER": self._listening("sampler"),
        }
        # With the claim: should this process be killed, nobody else starts a gateway before this one has ended.
        self._spawn("gateway", "gateway", store | gateway, keep_open=[self._claim.fileno()])
        self.address = self._listening("gateway")
        self._wait_until_serving()

    def _prepare(self) -> None:
        if missing := missing_modules():
            raise LocalError(
                f"the services cannot run here, because {', '.join(missing)} cannot be found: "
                "pip install 'unitune[tuner,sampler,gateway]', or give --address of a server"
            )
        self._home.prepare()
        self._logs = self._home.new_logs()

    def _engine(self) -> Path:
        said = False

        def say(stage: str = "") -> None:
            nonlocal said
            if not said:
                name = base_model_name(self._base_model)
                self._log(f"building the engine for {name}, once, about half a minute")
                said = True
            if stage:
                self._log(f"  {stage}")

        if not self._home.engine_names():
            say()
        export = ["tuner_svc.export", "--base-model", str(self._base_model), "--graphs-root", str(self._home.graphs)]
        build = ["sampler_svc.build", "--engines", str(self._home.engines)]
        backend = os.environ.get("UNITUNE_SAMPLER_BACKEND", CPU_BACKEND)  # the sampler inherits it
        if backend != CPU_BACKEND:
            export.append("--half")
            build += ["--backend", backend]
        graphs = programs.run(export, self._log_of("export"), on_stage=say)
        build += ["--graphs", str(graphs)]
        return programs.run(build, self._log_of("build"), on_stage=say)

    def _wait_for_claim(self) -> Claim:
        said = False
        while (claim := self._home.claim()) is None:
            if not said:
                self._log(f"another program runs its services in {self._home.root}; waiting for its end")
                said = True
            time.sleep(LOOKS_EVERY_S)
        return claim

    def _spawn(self, name: str, module: str, settings: dict[str, str], keep_open: Sequence[int] = ()) -> None:
        self._processes[name] = programs.start([module], settings, self._log_of(name), keep_open=keep_open)

    def _listening(self, name: str) -> str:
        """The address that a service printed. Raises LocalError when a service ends or this one says nothing."""
        gives_up_at = time.monotonic() + START_S
        while time.monotonic() < gives_up_at:
            self.check()
            if (found := LISTENING.search(self._log_of(name).read_text(errors="replace"))) is not None:
                return found[1]
            time.sleep(LOOKS_EVERY_S)
        raise programs.failure(f"the {name} did not start within {START_S:.0f} seconds", self._log_of(name))

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
        return self._logs / f"{name}.log"
