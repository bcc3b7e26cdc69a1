"""A fleet on this machine: a database, a bucket, and gateways, tuners and samplers as processes, joined by links that
can fail."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import urlopen

import psycopg

from bench.fleet.services import Size
from bench.soak.proxy import Proxy
from bench.soak.services import free_addresses
from tests.bucket import Bucket, make_bucket
from tests.postgres_server import PostgresServer
from unitune.errors import UniTuneError
from unitune_client import AsyncClient
from unitune_client.local import programs
from unitune_client.local.services import WITHOUT_CREDENTIALS
from unitune_client.local.supervision import Service

MODULES = {"gateway": "gateway", "tuner": "bench.chaos.poisoned_tuner", "sampler": "sampler_svc"}
START_S = 120.0
LOOKS_EVERY_S = 0.5
PREFIX = "unitune/"  # of all objects of the bucket


class Fleet:
    """All of it, in an `async with` block: everything runs at its beginning, and nothing at its end.

    Services are called by kind and number, such as `tuner 2`, and links by what they lead to. Whoever ends a service,
    or finds it ended, starts it again by `start`.
    """

    def __init__(
        self, base_model: Path, engine: Path, folder: Path, logs: Path, size: Size, settings: Mapping[str, str]
    ):
        """Everything lies in `folder`, and one log of each service in `logs`. `settings` are those of all services."""
        self._base_model, self._engine, self._folder, self.logs = base_model, engine, folder, logs
        self._size, self._settings = size, dict(settings)
        self.links: dict[str, list[Proxy]] = {}
        self.services: dict[str, Service] = {}
        self.addresses: list[str] = []  # of the gateways themselves
        self.harmed: Counter[str] = Counter()  # services and links that somebody has taken away for a while
        self._store: programs.Process | None = None

    @property
    def target(self) -> str:
        """The address for clients, which has all gateways behind their links."""
        return "ipv4:" + ",".join(proxy.address for proxy in self.links["clients"])

    def names(self, kind: str) -> list[str]:
        """The services of a kind."""
        return [f"{kind} {number}" for number in range(1, getattr(self._size, f"{kind}s") + 1)]

    def log(self, name: str) -> Path:
        """The log of a service, of all its processes."""
        return self.logs / f"{name.replace(' ', '-')}.log"

    def start(self, name: str, **settings: str) -> None:
        """Start a service that has ended again, at its address, with these settings changed."""
        service = self.services[name]
        service.settings.update(settings)
        service.address = ""  # its settings have it, by the service's own name
        service.restart()

    def objects(self) -> list[str]:
        """The paths of all objects of the store."""
        pages = self.bucket.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket.name)
        return sorted(one["Key"].removeprefix(PREFIX) for page in pages for one in page.get("Contents", []))

    def connect(self) -> "psycopg.Connection[Any]":
        """A connection to the database itself."""
        return psycopg.connect(self.url, autocommit=True, connect_timeout=3)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database answers. Raises psycopg.Error."""
        with closing(self.connect()) as connection:
            return connection.execute(query).fetchall()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._begin)
            await self._link()
            for name, module, settings in self._described():
                self.services[name] = Service(name, module, settings, self.log(name))
            await self._await_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    def _begin(self) -> None:
        """Start database and bucket."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.database = PostgresServer()
        self.database.start()
        self.url = self.database.new_database()
        (store,) = free_addresses(1)
        host, _, port = store.partition(":")
        self._store = programs.start(["moto.server", "-H", host, "-p", port], {}, self.logs / "store.log")
        gives_up_at = time.monotonic() + START_S
        while True:
            try:
                urlopen(f"http://{store}/moto-api/", timeout=START_S).close()
                break
            except OSError:
                if self._store.poll() is not None or time.monotonic() > gives_up_at:
                    raise programs.failure("the store does not answer", self.logs / "store.log") from None
                time.sleep(LOOKS_EVERY_S)
        self.bucket: Bucket = make_bucket(store)

    async def _link(self) -> None:
        """Put a link before everything."""
        kinds = ("gateway", "gateway", "sampler", "sampler")
        numbers = [len(self.names(kind)) for kind in kinds]
        addresses = iter(free_addresses(sum(numbers)))
        self.addresses, self._internal, self._samplers, _ = ([next(addresses) for _ in range(n)] for n in numbers)
        database, store = urlsplit(self.url).netloc.rpartition("@")[2], self.bucket.environment["AWS_ENDPOINT_URL"]
        targets = {
            "clients": self.addresses,
            "tuners": self._internal,
            "samplers": self._samplers,
            "database": [database] * self._size.gateways,  # one of each gateway
            "store": [urlsplit(store).netloc],
        }
        for name, behind in targets.items():
            self.links[name] = [Proxy(address) for address in behind]
            for proxy in self.links[name]:
                await proxy.start()

    def _described(self) -> list[tuple[str, str, dict[str, str]]]:
        """Name, module and settings of every service."""
        common = {
            **WITHOUT_CREDENTIALS,
            **self.bucket.environment,
            "AWS_ENDPOINT_URL": f"http://{self.links['store'][0].address}",
            "UNITUNE_STORE": self.bucket.url,
            **self._settings,
        }
        of: list[tuple[str, dict[str, str]]] = []
        for number, name in enumerate(self.names("gateway")):
            database = urlsplit(self.url)
            behind = database._replace(netloc=f"postgres@{self.links['database'][number].address}")
            settings = {
                "UNITUNE_GATEWAY_ADDRESS": self.addresses[number],
                "UNITUNE_INTERNAL_ADDRESS": self._internal[number],
                "UNITUNE_SAMPLER": ",".join(proxy.address for proxy in self.links["samplers"]),
                "UNITUNE_STATE": behind.geturl(),
            }
            of.append((name, settings))
        tuners = self.names("tuner")
        for number, (name, address) in enumerate(zip(tuners, free_addresses(len(tuners)), strict=True)):
            gateways = [proxy.address for proxy in self.links["tuners"]]
            first = number % len(gateways)  # they do not all call the same one
            settings = {
                "UNITUNE_TUNER_ADDRESS": address,
                "UNITUNE_GATEWAY": ",".join(gateways[first:] + gateways[:first]),
                "UNITUNE_BASE_MODEL": str(self._base_model),
            }
            of.append((name, settings))
        for number, name in enumerate(self.names("sampler")):
            engine = shutil.copytree(self._engine, self._folder / f"engine-{number}")  # a sampler writes beside it
            of.append((name, {"UNITUNE_SAMPLER_ADDRESS": self._samplers[number], "UNITUNE_ENGINE": str(engine)}))
        return [(name, MODULES[name.partition(" ")[0]], common | settings) for name, settings in of]

    async def _await_ready(self) -> None:
        """Return once every gateway knows a tuner and a sampler. Raises LocalError if a service ends before."""
        async with asyncio.timeout(START_S):
            for address in self.addresses:
                async with AsyncClient(address, reconnect_s=0) as client:
                    while not await self._is_ready(client):
                        await asyncio.sleep(LOOKS_EVERY_S)

    async def _is_ready(self, client: AsyncClient) -> bool:
        for service in self.services.values():
            if service.process.poll() is not None:
                raise service.failure()
        try:
            return all(upstream.is_answering for upstream in (await client.server_info()).upstreams)
        except UniTuneError:  # it does not listen yet
            return False

    async def _end(self) -> None:
        processes = [service.process for service in self.services.values()]
        await asyncio.to_thread(programs.stop, processes)
        for proxies in self.links.values():
            for proxy in proxies:
                proxy.passes.set()
                await proxy.stop()
        if self._store is not None:
            self._store.kill()
            self._store.wait()
        if hasattr(self, "database"):
            await asyncio.to_thread(self.database.stop)
