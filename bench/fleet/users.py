"""Users of a fleet: each edits its tuning through one gateway after another, with the pauses of its load."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from bench.fleet.load import Load, User
from bench.inputs import PROMPT
from unitune.errors import UniTuneError
from unitune_client import AsyncClient
from unitune_client.events import EditDone, EditedImage, EditLoading, Tuning

TENANTS = 3


@dataclass(frozen=True)
class Made:
    """An edit that ended as it should."""

    seconds: float  # from the request to the end of the stream
    warm: bool
    refit_s: float
    sampling_s: float  # encoding, denoising and decoding
    queue_s: float
    picture: str  # its digest


@dataclass(frozen=True)
class Lost:
    """One that did not."""

    error: str


class Users:
    """Clients of several tenants at all gateways, in an `async with` block."""

    def __init__(self, addresses: Sequence[str], steps: int) -> None:
        self._addresses, self._steps = addresses, steps
        self._clients: dict[tuple[str, str], AsyncClient] = {}
        self._stack = AsyncExitStack()
        self.tunings: list[Tuning] = []

    async def __aenter__(self) -> "Users":
        for address in self._addresses:
            for number in range(TENANTS):
                tenant = f"tenant{number}"
                client = AsyncClient(address, tenant=tenant)
                self._clients[address, tenant] = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def tune(self, number: int, picture: bytes, updates: int) -> float:
        """Make so many tunings at once, of all tenants and through all gateways; the seconds."""
        began = time.perf_counter()
        self.tunings = await asyncio.gather(
            *(self._client(one, one).tune(picture, updates=updates, tuning_seed=one) for one in range(number))
        )
        return time.perf_counter() - began

    async def live(self, load: Load) -> tuple[list[Made | Lost], float]:
        """All users until their last edit; what became of every edit, user by user, and the seconds."""
        began = time.perf_counter()
        ended = await asyncio.gather(*(self._live(number, user) for number, user in enumerate(load.users)))
        return [edit for edits in ended for edit in edits], time.perf_counter() - began

    async def edit(self, tuning: int, seed: int, gateway: int) -> Made | Lost:
        """One edit."""
        began = time.perf_counter()
        loading, image, done = None, None, None
        try:
            stream = self._client(tuning, gateway).edit(
                self.tunings[tuning], PROMPT, num_inference_steps=self._steps, seeds=[seed], interpolation=0.0
            )
            async with aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, EditLoading):
                        loading = event
                    elif isinstance(event, EditedImage):
                        image = event
                    elif isinstance(event, EditDone):
                        done = event.timings
        except UniTuneError as error:
            return Lost(f"{error.reason}: {error}")
        if loading is None or image is None or done is None:
            return Lost("the stream ended without a picture")
        return Made(
            time.perf_counter() - began,
            loading.warm,
            loading.refit_s,
            done.encode_s + done.denoise_s + done.decode_s,
            done.queue_s,
            hashlib.sha256(image.png).hexdigest(),
        )

    async def _live(self, number: int, user: User) -> list[Made | Lost]:
        edits = []
        for index, pause_s in enumerate(user.pauses_s):
            await asyncio.sleep(pause_s)
            edits.append(await self.edit(user.tuning, 1000 * number + index, gateway=number + index))
        return edits

    def _client(self, tuning: int, gateway: int) -> AsyncClient:
        return self._clients[self._addresses[gateway % len(self._addresses)], f"tenant{tuning % TENANTS}"]
