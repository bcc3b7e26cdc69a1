"""Faults of a fleet, in an order that a seed draws. Some last while others begin.

Links are cut, delayed and held by proxies of our own: netem, with which Linux does so to packets, is often not there.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from random import Random

import psycopg

from bench.chaos.fleet import Fleet
from bench.soak.faults import FROZEN, KILLED, STOPPED, Fault, harm_process
from bench.soak.ledger import Ledger

FIRST_S = 2.0
# Of services and the database, of links, and of what the database holds.
CUT, DELAYED, HELD, REFUSED = "cut", "delayed", "held", "refused"
DEAF, EXPIRED = "connections that listen ended", "leases expired"
DATABASE = "database"
LINKS = {"clients": 3, "tuners": 3, "samplers": 2, "database": 3, "store": 3}
OF_LINKS = {CUT: 3, DELAYED: 2, HELD: 2, REFUSED: 2}
OF_SERVICES = {KILLED: 4, STOPPED: 1, FROZEN: 3}
SERVICES = {"gateway": 3, "tuner": 4, "sampler": 2, DATABASE: 3}
KINDS = {"service": 6, "link": 4, DEAF: 1, EXPIRED: 1}
LONGEST_S = {KILLED: 3.0, STOPPED: 3.0, FROZEN: 12.0, DELAYED: 10.0, HELD: 8.0, REFUSED: 8.0}
DELAY_S = 0.1
LOOKS_EVERY_S = 0.2
CRASHED = -signal.SIGKILL  # the status of a tuner that a tuning has killed
AFTER_S = 20.0  # after an outage a gateway that just began may still end for it

Say = Callable[[str], object]


def planned(seconds: float, draws: Random, every_s: float, names: Callable[[str], Sequence[str]]) -> list[Fault]:
    """The faults of a run that lasts so long, one about every `every_s` seconds; `names` are a kind's services."""
    faults, at_s = [], FIRST_S
    while at_s < seconds:
        kind, target = drawn(KINDS, draws), ""
        if kind == "link":
            kind, target = drawn(OF_LINKS, draws), f"link to the {drawn(LINKS, draws)}"
        elif kind == "service":
            kind, service = drawn(OF_SERVICES, draws), drawn(SERVICES, draws)
            target = DATABASE if service == DATABASE else draws.choice(names(service))
            kind = KILLED if service == DATABASE else kind
        lasts_s = draws.uniform(0.0, LONGEST_S.get(kind, 0.0))
        faults.append(Fault(at_s, kind, target, min(lasts_s, max(0.0, seconds - at_s))))
        at_s += draws.uniform(0.5, 1.5) * every_s
    return faults


def drawn(weights: dict[str, int], draws: Random) -> str:
    """One of them."""
    return draws.choices(list(weights), weights=list(weights.values()))[0]


class Injector:
    """Makes faults happen, each at its time, and starts again whatever has ended."""

    def __init__(self, fleet: Fleet, ledger: Ledger, say: Say) -> None:
        self._fleet, self._ledger, self._say = fleet, ledger, say
        self._outage_s = -AFTER_S  # when database, store or a link was last away
        self.crashes = 0  # tuners that a tuning has killed

    async def run(self, faults: Sequence[Fault]) -> None:
        """All of them, to the end of the last one."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, fault.at_s - self._ledger.now_s))
                if self._fleet.harmed[fault.service] and fault.service:  # it is not itself again
                    self._ledger.left_out += 1
                    continue
                self._say(f"{self._ledger.now_s:6.1f} s  {fault.what}, {fault.lasts_s:.1f} s")
                group.create_task(self._inject(fault))

    async def keep_running(self) -> None:
        """Start again what ends by itself, until cancelled. Only a tuner that a tuning has killed may, and a gateway
        that begins in an outage."""
        while True:
            for name in self._fleet.services.by_name:
                status = self._fleet.services.process(name).poll()
                if status is None or self._fleet.harmed[name]:
                    continue
                in_outage = self._ledger.now_s < self._outage_s + AFTER_S
                if name.startswith("tuner") and status == CRASHED:
                    self.crashes += 1
                elif not (name.startswith("gateway") and status == 1 and in_outage):
                    self._ledger.wrong(f"the {name} ended by itself, with status {status}")
                self._fleet.services.restart(name)
            await asyncio.sleep(LOOKS_EVERY_S)

    async def _inject(self, fault: Fault) -> None:
        self._fleet.harmed[fault.service] += 1
        if fault.service == DATABASE or fault.service.startswith("link"):
            self._outage_s = self._ledger.now_s + fault.lasts_s
        try:
            with self._ledger.fault(fault.what):
                await self._make(fault)
        finally:
            self._fleet.harmed[fault.service] -= 1

    async def _make(self, fault: Fault) -> None:
        if fault.service.startswith("link"):
            await self._harm_link(fault)
        elif fault.service == DATABASE:
            await asyncio.to_thread(self._kill_database, fault.lasts_s)
            self._outage_s = self._ledger.now_s
        elif fault.service:
            await asyncio.to_thread(self._signal, fault)
        else:
            await asyncio.to_thread(self._change_database, fault.kind)

    async def _harm_link(self, fault: Fault) -> None:
        proxies = self._fleet.links[fault.service.removeprefix("link to the ")]
        for proxy in proxies:
            if fault.kind == CUT:
                proxy.cut()
            elif fault.kind == DELAYED:
                proxy.delay_s = DELAY_S
            elif fault.kind == HELD:
                proxy.passes.clear()
            else:
                proxy.refuses = True
                proxy.cut()
        await asyncio.sleep(fault.lasts_s)
        for proxy in proxies:
            proxy.delay_s, proxy.refuses = 0.0, False
            proxy.passes.set()

    def _kill_database(self, lasts_s: float) -> None:
        self._fleet.database.kill()
        time.sleep(lasts_s)
        self._fleet.database.start()

    def _change_database(self, kind: str) -> None:
        try:
            if kind == DEAF:
                self._fleet.database.end_backends("LISTEN %")
                return
            with closing(self._fleet.connect()) as connection:
                connection.execute("UPDATE tunings SET lease_s = 0 WHERE lease_s IS NOT NULL")
        except psycopg.Error:  # it is away just now
            self._ledger.left_out += 1

    def _signal(self, fault: Fault) -> None:
        service = self._fleet.services.by_name[fault.service]
        harm_process(fault, service.process, self._ledger, has_work=service.listens())
        if fault.kind != FROZEN:
            self._fleet.services.restart(fault.service)
