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
from bench.started import GATEWAY, SAMPLER, TUNER, Started, free_addresses
from tests.bucket import Bucket, make_bucket
from tests.postgres_server import PostgresServer
from unitune_client.local import programs

START_S = 120.0  # of the bucket
LOOKS_EVERY_S = 0.5
PREFIX = "unitune/"  # of all objects of the bucket


class Fleet:
    """All of it, in an `async with` block: everything runs at its beginning, and nothing at its end.

    Links are called by what they lead to. Whoever ends a service, or finds it ended, starts it again by `restart`.
    """

    def __init__(
        self, base_model: Path, engine: Path, folder: Path, logs: Path, size: Size, settings: Mapping[str, str]
    ):
        """Everything lies in `folder`, and one log of each service in `logs`. `settings` are those of all services."""
        self._base_model, self._engine, self._folder, self._logs = base_model, engine, folder, logs
        self._size, self.services = size, Started(logs, settings)
        self.links: dict[str, list[Proxy]] = {}
        self.addresses: list[str] = []  # of the gateways themselves
        self.harmed: Counter[str] = Counter()  # services and links that somebody has taken away for a while
        self._store: programs.Process | None = None

    @property
    def target(self) -> str:
        """The address for clients, which has all gateways behind their links."""
        return "ipv4:" + ",".join(proxy.address for proxy in self.links["clients"])

    def objects(self) -> list[str]:
        """The paths of all objects of the store."""
        pages = self.bucket.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket.name)
        return sorted(one["Key"].removeprefix(PREFIX) for page in pages for one in page.get("Contents", []))

    def read(self, path: str) -> bytes:
        """An object of the store."""
        data: bytes = self.bucket.s3.get_object(Bucket=self.bucket.name, Key=f"{PREFIX}{path}")["Body"].read()
        return data

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
            self._start()
            await asyncio.to_thread(self.services.await_ready, *self.addresses)
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
        self.database = PostgresServer()
        self.database.start()
        self.url = self.database.new_database()
        (store,) = free_addresses(1)
        host, _, port = store.partition(":")
        self._store = programs.start(["moto.server", "-H", host, "-p", port], {}, self._logs / "store.log")
        gives_up_at = time.monotonic() + START_S
        while True:
            try:
                urlopen(f"http://{store}/moto-api/", timeout=START_S).close()
                break
            except OSError:
                if self._store.poll() is not None or time.monotonic() > gives_up_at:
                    raise programs.failure("the store does not answer", self._logs / "store.log") from None
                time.sleep(LOOKS_EVERY_S)
        self.bucket: Bucket = make_bucket(store)

    async def _link(self) -> None:
        """Put a link before everything."""
        numbers = (self._size.gateways, self._size.gateways, self._size.samplers)
        addresses = iter(free_addresses(sum(numbers)))
        self.addresses, self._internal, self._samplers = ([next(addresses) for _ in range(n)] for n in numbers)
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

    def _start(self) -> None:
        """Start all services."""
        self.services.settings |= {
            **self.bucket.environment,
            "AWS_ENDPOINT_URL": f"http://{self.links['store'][0].address}",
            "UNITUNE_STORE": self.bucket.url,
        }
        samplers = [proxy.address for proxy in self.links["samplers"]]
        for number, name in enumerate(self._size.names(GATEWAY)):
            database = urlsplit(self.url)._replace(netloc=f"postgres@{self.links['database'][number].address}")
            own = self.addresses[number], self._internal[number]
            self.services.start_gateway(name, *own, samplers, database.geturl())
        gateways = [proxy.address for proxy in self.links["tuners"]]
        for number, address in enumerate(free_addresses(self._size.tuners)):
            first = number % len(gateways)  # they do not all call the same one
            self.services.start_tuner(
                self._size.names(TUNER)[number],
                gateways[first:] + gateways[:first],
                self._base_model,
                address=address,
                module="bench.chaos.poisoned_tuner",
            )
        for number, name in enumerate(self._size.names(SAMPLER)):
            engine = shutil.copytree(self._engine, self._folder / f"engine-{number}")  # a sampler writes beside it
            self.services.start_sampler(name, self._samplers[number], engine)

    async def _end(self) -> None:
        await asyncio.to_thread(self.services.stop)
        for proxies in self.links.values():
            for proxy in proxies:
                proxy.passes.set()
                await proxy.stop()
        if self._store is not None:
            self._store.kill()
            self._store.wait()
        if hasattr(self, "database"):
            await asyncio.to_thread(self.database.stop)
