"""Tenants of a fleet: one that edits politely, one that tunes as much as it may and more, one whose tunings kill."""

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from bench.chaos.poisoned_tuner import POISON
from bench.soak.clients import LONGEST_S, PROMPTS, RECONNECT_S, SHARED, SHORT, drawn
from bench.soak.ledger import DONE, KnownTuning, Ledger
from unitune.errors import ResourceExhausted, UniTuneError
from unitune_client import AsyncClient
from unitune_client.events import TuningState

POLITE, GREEDY, POISONER = "polite", "greedy", "poisoner"
POLITE_EDIT, GREEDY_TUNING, POISON_TUNING = "polite edit", "greedy tuning", "poison tuning"
LIMITED = "refused beyond the limit"
POLITE_PAUSE_S, POISON_PAUSE_S = 0.5, 30.0
GREEDY_TASKS = 10


class Tenant(ABC):
    """What these tenants share: a client of the SDK, draws and the ledger."""

    def __init__(self, name: str, address: str, draws: Random, ledger: Ledger) -> None:
        self.name, self._draws, self._ledger = name, draws, ledger
        self._sdk = AsyncClient(address, tenant=name, reconnect_s=RECONNECT_S)

    @abstractmethod
    async def live(self, stopping: asyncio.Event) -> None:
        """Act until told to stop."""

    async def close(self) -> None:
        """Close the client."""
        await self._sdk.close()

    async def repeat(
        self, stopping: asyncio.Event, what: str, work: Callable[[], Coroutine[Any, Any, str]], pause_s: float
    ) -> None:
        """Do something again and again until told to stop, and note each time how it ended."""
        while not stopping.is_set():
            await self._ledger.note(self.name, what, work, LONGEST_S)
            try:
                await asyncio.wait_for(stopping.wait(), pause_s)
            except TimeoutError:
                continue

    async def _tuned(self, known: KnownTuning) -> str:
        """Watch a tuning to its end; its last state."""
        try:
            async for event in self._sdk.watch_tuning(known.name):
                if event.sequence:
                    known.sequences.append(event.sequence)
        except UniTuneError as error:
            state = (await self._sdk.get_tuning(known.name)).state
            if state != TuningState.FAILED:
                raise
            known.ends.append(error.reason)
            return error.reason
        known.ends.append("ready")
        return DONE

    async def _create(self, **config: Any) -> KnownTuning:
        image = await self._sdk.upload_image(drawn(self._draws.getrandbits(40) + 99))
        tuning = await self._sdk.create_tuning(image, **{**SHORT, **config})
        return self._ledger.tuning(tuning.name, self.name)


class Polite(Tenant):
    """One small edit after the other."""

    async def live(self, stopping: asyncio.Event) -> None:
        """Edit until told to stop."""
        await self.repeat(stopping, POLITE_EDIT, self._edit, POLITE_PAUSE_S)

    async def _edit(self) -> str:
        """The same request gives the same picture as anybody's."""
        number, prompt = self._draws.randrange(SHARED), self._draws.choice(PROMPTS)
        options: dict[str, Any] = {"method": "sdedit", "num_inference_steps": 3, "seeds": [0]}
        result = await self._sdk.edit_to_end(drawn(number), prompt, **options)
        digest = hashlib.sha256(result.images[0].png).hexdigest()
        self._ledger.same_picture(("sdedit", str(number), prompt, "0"), digest)
        return DONE


class Greedy(Tenant):
    """More tunings at a time than it may have."""

    async def live(self, stopping: asyncio.Event) -> None:
        """Tune until told to stop."""
        async with asyncio.TaskGroup() as group:
            for _ in range(GREEDY_TASKS):
                group.create_task(self.repeat(stopping, GREEDY_TUNING, self._tune, self._draws.uniform(0.2, 1.0)))

    async def _tune(self) -> str:
        try:
            known = await self._create()
        except ResourceExhausted as error:
            if error.reason != "TENANT_TUNING_LIMIT":
                raise
            return LIMITED
        return await self._tuned(known)


class Poisoner(Tenant):
    """A tuning now and then that kills every tuner which takes it."""

    def __init__(self, name: str, address: str, draws: Random, ledger: Ledger) -> None:
        super().__init__(name, address, draws, ledger)
        self.poisons: list[str] = []  # their names

    async def live(self, stopping: asyncio.Event) -> None:
        """Make them until told to stop."""
        await self.repeat(stopping, POISON_TUNING, self._poison, POISON_PAUSE_S)

    async def _poison(self) -> str:
        known = await self._create(tuning_seed=POISON)
        self.poisons.append(known.name)
        return await self._tuned(known)
