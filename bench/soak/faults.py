"""Faults in an order that a seed draws: services stopped, killed and frozen, connections cut, a disk filled."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.soak.disk import fill
from bench.soak.ledger import Ledger
from bench.soak.proxy import Proxy
from bench.soak.services import NAMES, Services
from unitune.drain import KILLED_AFTER_S
from unitune_client.local.programs import Process

# In the last part of a run nobody is stopped or killed, so that processes live long enough to see whether they grow.
CALM_SHARE = 0.4
FIRST_S = 3.0
STOPPED, KILLED, FROZEN, CUT, FULL = "stopped", "killed", "frozen", "connections cut", "full disk"
OF_SERVICES = (STOPPED, KILLED, FROZEN)
WEIGHTS = {STOPPED: 3, KILLED: 4, FROZEN: 3, CUT: 3, FULL: 2}
CALM_WEIGHTS = {CUT: 3, FROZEN: 1}
LONGEST_FROZEN_S, LONGEST_CALM_FROZEN_S = 16.0, 2.0
LONGEST_FULL_S = 8.0
LONGEST_DOWN_S = 3.0
LATE_S = 10.0  # on a slow machine; what is later than this is left out, so that faults do not come all at once

Say = Callable[[str], object]


@dataclass(frozen=True)
class Fault:
    """What is to happen, when, to which service, and for how long."""

    at_s: float
    kind: str
    service: str
    lasts_s: float

    @property
    def what(self) -> str:
        """In words."""
        return f"{self.service} {self.kind}" if self.service else self.kind


def planned(seconds: float, draws: Random, every_s: float, *, has_disk: bool) -> list[Fault]:
    """The faults of a run that lasts so long, one about every `every_s` seconds."""
    faults, at_s = [], FIRST_S
    while at_s < seconds:
        is_calm = at_s > (1 - CALM_SHARE) * seconds
        weights = {kind: weight for kind, weight in WEIGHTS.items() if kind != FULL or has_disk}
        weights = CALM_WEIGHTS if is_calm else weights
        (kind,) = draws.choices(list(weights), weights=list(weights.values()))
        longest_s = {
            FROZEN: LONGEST_CALM_FROZEN_S if is_calm else LONGEST_FROZEN_S,
            FULL: LONGEST_FULL_S,
            CUT: 0.0,
        }.get(kind, LONGEST_DOWN_S)
        service = draws.choice(NAMES) if kind in OF_SERVICES else ""
        faults.append(Fault(at_s, kind, service, draws.uniform(0.0, longest_s)))
        at_s += draws.uniform(0.5, 1.5) * every_s
    return faults


class Injector:
    """Makes faults happen, one after the other."""

    def __init__(self, services: Services, proxy: Proxy, disk: Path | None, ledger: Ledger, say: Say) -> None:
        self._services, self._proxy, self._disk, self._ledger, self._say = services, proxy, disk, ledger, say

    async def run(self, faults: Sequence[Fault]) -> None:
        """All of them, each at its time or soon after it."""
        for fault in faults:
            if self._ledger.now_s > fault.at_s + LATE_S:
                self._ledger.left_out += 1
                continue
            await asyncio.sleep(max(0.0, fault.at_s - self._ledger.now_s))
            self._say(f"{self._ledger.now_s:6.1f} s  {fault.what}, {fault.lasts_s:.1f} s")
            self._look()
            with self._ledger.fault(fault.what):
                if fault.kind == CUT:
                    self._proxy.cut()
                elif fault.kind == FULL:
                    await self._full(fault.lasts_s)
                else:
                    await asyncio.to_thread(self._signal, fault)
            self._look()

    def _look(self) -> None:
        """Nothing ends by itself."""
        for name in NAMES:
            status = self._services.process(name).poll()
            if status is not None:
                self._ledger.wrong(f"the {name} ended by itself, with status {status}")
                self._services.restart(name)

    async def _full(self, seconds: float) -> None:
        assert self._disk is not None
        ballast = await asyncio.to_thread(fill, self._disk)
        await asyncio.sleep(seconds)
        ballast.unlink()

    def _signal(self, fault: Fault) -> None:
        harm_process(fault, self._services.process(fault.service), self._ledger)
        if fault.kind != FROZEN:
            self._services.restart(fault.service)


def harm_process(fault: Fault, process: Process, ledger: Ledger, *, has_work: bool = True) -> None:
    """Freeze a service's process for a while, or end it, and let it be away for so long.

    It must end in time by SIGTERM, and with status 0; without work, as while it starts, it may end by the signal.
    """
    if fault.kind == FROZEN:
        process.send_signal(signal.SIGSTOP)
        time.sleep(fault.lasts_s)
        process.send_signal(signal.SIGCONT)
        return
    if fault.kind == STOPPED:
        began = time.monotonic()
        process.terminate()
        status, took_s = process.wait(), time.monotonic() - began
        is_right = status == 0 or (status == -signal.SIGTERM and not has_work)
        if not is_right or took_s > KILLED_AFTER_S:
            ledger.wrong(f"the {fault.service} ended with status {status} {took_s:.0f} s after SIGTERM")
    else:
        process.kill()
        process.wait()
    time.sleep(fault.lasts_s)
