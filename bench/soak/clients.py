"""Clients that tune, edit, watch, cancel, leave and err at random, each by draws of its own.

A client's own pictures are its alone, so what it cancels or deletes is missed by nobody. All clients share three more.
"""

import asyncio
import hashlib
import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from random import Random
from typing import Any

from PIL import Image

from bench.soak.ledger import DONE, KnownTuning, Ledger, may_be_tried_again
from unitune.errors import Cancelled, DataLoss, InvalidArgument, NotFound, ResourceExhausted, UniTuneError
from unitune_client import AsyncClient
from unitune_client.events import (
    CompareResult,
    EditAccepted,
    EditDone,
    TuningProgress,
    TuningReady,
    TuningSnapshot,
    TuningState,
)

LONGEST_S = 300.0  # that any action may take
RECONNECT_S = 120.0
SHORT: dict[str, Any] = {"updates": 2, "batch": 1}
LONG_TUNING: dict[str, Any] = {"updates": 24, "batch": 1}
PROMPTS = ("a cat", "a dog", "a cat at the beach", "a cow by night", "a dog in snow")
SHARED = 3  # pictures
EXPECTED = "refused as expected"
CANCELLED = "cancelled"

Action = Callable[[], Awaitable[str]]


class Client:
    """One caller. It acts until `stopping` is set; how each action ended is in the ledger."""

    def __init__(
        self, name: str, tenant: str, address: str, draws: Random, ledger: Ledger, broken: Sequence[bytes]
    ) -> None:
        """`broken` are files that are no pictures."""
        self.name, self.tenant = name, tenant
        self._address, self._draws, self._ledger = address, draws, ledger
        self._sdk = AsyncClient(address, tenant=tenant, reconnect_s=RECONNECT_S)
        self._other = AsyncClient(address, tenant=tenant, reconnect_s=RECONNECT_S)  # another connection
        self._broken = broken

    async def live(self, stopping: asyncio.Event) -> None:
        """Act until told to stop."""
        actions: dict[Action, int] = {
            self._edit_own: 6,
            self._edit_shared: 8,
            self._edit_without_tuning: 6,
            self._tune_and_watch: 4,
            self._cancel_tuning: 2,
            self._delete_running_tuning: 2,
            self._cancel_edit: 3,
            self._leave_edit: 3,
            self._edit_with_a_deadline: 2,
            self._compare: 1,
            self._broken_upload: 3,
            self._wrong_request: 2,
            self._list: 2,
        }
        try:
            while not stopping.is_set():
                (action,) = self._draws.choices(list(actions), weights=list(actions.values()))
                await self._act(action)
                await asyncio.sleep(self._draws.uniform(0.0, 0.5))
        finally:
            await self._sdk.close()
            await self._other.close()

    async def _act(self, action: Action) -> None:
        name = action.__name__.strip("_").replace("_", " ")
        await self._ledger.note(self.name, name, action, LONGEST_S)

    # Edits

    async def _edit_own(self) -> str:
        """Edit a new picture, ask for the result again, and delete all of it, or not."""
        picture = self._new_picture()
        seeds = [self._draws.randrange(9) for _ in range(self._draws.choice((1, 1, 2)))]
        result = await self._sdk.edit_to_end(
            picture, self._prompt(), seeds=seeds, num_inference_steps=self._draws.randint(2, 5), **SHORT
        )
        self._check(len(result.images) == len(seeds), "an edit has too few pictures")
        self._ledger.tuning(result.tuning, self.tenant)
        if self._draws.random() < 0.5:
            await self._get(result.edit, [image.png for image in result.images])
        if self._draws.random() < 0.5:
            await self._delete(result.tuning)
        return DONE

    async def _edit_shared(self) -> str:
        """Edit a picture that all clients know: the same request gives the same picture."""
        number, prompt, seed = self._draws.randrange(SHARED), self._prompt(), self._draws.randrange(4)
        options: dict[str, Any] = {"num_inference_steps": 3, "seeds": [seed], **SHORT}
        result = await self._sdk.edit_to_end(drawn(number), prompt, **options)
        self._ledger.tuning(result.tuning, self.tenant)
        digest = hashlib.sha256(result.images[0].png).hexdigest()
        self._ledger.same_picture(("shared", str(number), prompt, str(seed)), digest)
        return DONE

    async def _edit_without_tuning(self) -> str:
        number, prompt, seed = self._draws.randrange(SHARED), self._prompt(), self._draws.randrange(4)
        result = await self._sdk.edit_to_end(
            drawn(number), prompt, method="sdedit", num_inference_steps=3, seeds=[seed]
        )
        digest = hashlib.sha256(result.images[0].png).hexdigest()
        self._ledger.same_picture(("sdedit", str(number), prompt, str(seed)), digest)
        return DONE

    async def _cancel_edit(self) -> str:
        """Cancel an edit from another connection, somewhere on its way."""
        after, name = self._draws.randrange(12), ""
        try:
            async with aclosing(self._long_edit()) as stream:
                async for event in stream:
                    if isinstance(event, EditAccepted):
                        name = event.edit
                    if isinstance(event, EditDone):
                        return DONE
                    after -= 1
                    if after == 0 and name:
                        await self._cancel_named(name)
        except Cancelled:
            return CANCELLED
        return "ended without an event"

    async def _cancel_named(self, name: str) -> None:
        try:
            await self._other.cancel_edit(name)
        except NotFound:  # its gateway has been started again, or has not heard of it, and the stream says so
            if not self._ledger.had("gateway", "database", "link"):
                raise

    async def _leave_edit(self) -> str:
        """Close the stream of an edit somewhere on its way."""
        after = self._draws.randrange(12)
        async with aclosing(self._long_edit()) as stream:
            async for event in stream:
                after -= 1
                if after <= 0 or isinstance(event, EditDone):
                    return "left"
        return "ended without an event"

    async def _edit_with_a_deadline(self) -> str:
        try:
            async with aclosing(self._long_edit(timeout_s=self._draws.uniform(0.05, 2.0))) as stream:
                async for event in stream:
                    if isinstance(event, EditDone):
                        return DONE
        except ResourceExhausted as error:
            if error.reason != "DEADLINE_UNREACHABLE":
                raise
            return error.reason
        return "ended without an event"

    def _long_edit(self, **options: Any) -> AsyncGenerator[Any, None]:
        more = {"num_inference_steps": 60, "preview_every": 1, "method": "sdedit", **options}
        return self._sdk.edit(drawn(self._draws.randrange(SHARED)), self._prompt(), **more)

    async def _compare(self) -> str:
        """Two methods, side by side; an error of one may be tried again."""
        picture, number = drawn(0), 0
        methods: dict[str, Any] = {"unitune": {**SHORT, "num_inference_steps": 2}, "sdedit": {"num_inference_steps": 2}}
        async with aclosing(self._sdk.compare(picture, self._prompt(), methods)) as stream:
            async for event in stream:
                if isinstance(event, CompareResult):
                    number += 1
                    if event.error is not None and not may_be_tried_again(event.error):
                        raise event.error
                    if event.tuning:
                        self._ledger.tuning(event.tuning, self.tenant)
        self._check(number == len(methods), f"a comparison of {len(methods)} methods has {number} results")
        return DONE

    async def _get(self, edit: str, pngs: list[bytes]) -> None:
        """Ask for a result again; a store that was full or away, or a deletion, may have taken it."""
        try:
            kept = await self._other.get_edit(edit)
        except (NotFound, DataLoss):
            if not self._ledger.had("full disk", "store", "link"):
                raise
            return
        if kept.images:
            self._check([image.png for image in kept.images] == pngs, "GetEdit has other pictures than the stream")

    # Tunings

    async def _tune_and_watch(self) -> str:
        """Watch a tuning to its end, leaving and coming back on the way."""
        known = await self._created(SHORT if self._draws.random() < 0.7 else LONG_TUNING)
        while not known.ends:
            await self._watch(known, leaves_after=self._draws.randrange(1, 8))
        return known.ends[-1]

    async def _cancel_tuning(self) -> str:
        known = await self._created(LONG_TUNING)
        await asyncio.sleep(self._draws.uniform(0.0, 4.0))
        known.is_cancelled = True
        await self._other.cancel_tuning(known.name)
        while not known.ends:
            await self._watch(known, leaves_after=100)
        self._check(known.ends[-1] != "failed", f"{known.name} was cancelled and is FAILED")
        return known.ends[-1]

    async def _delete_running_tuning(self) -> str:
        known = await self._created(LONG_TUNING)
        await asyncio.sleep(self._draws.uniform(0.0, 4.0))
        await self._delete(known.name)
        return "deleted"

    async def _created(self, config: dict[str, Any]) -> KnownTuning:
        image = await self._sdk.upload_image(self._new_picture())
        self._ledger.images[image.name] = self.tenant
        tuning = await self._sdk.create_tuning(image, labels={"client": self.name}, **config)
        return self._ledger.tuning(tuning.name, self.tenant)

    async def _watch(self, known: KnownTuning, leaves_after: int) -> None:
        """Watch from the last event on, and leave after some events."""
        last = known.sequences[-1] if known.sequences else 0
        try:
            async with aclosing(self._sdk.watch_tuning(known.name, last)) as stream:
                async for event in stream:
                    if event.sequence:
                        is_next = event.sequence == (known.sequences[-1] if known.sequences else 0) + 1
                        if not is_next and not isinstance(event, TuningSnapshot):
                            self._ledger.wrong(f"{known.name}: event {event.sequence} after {known.sequences[-3:]}")
                        known.sequences.append(event.sequence)
                    if isinstance(event, TuningReady):
                        known.ends.append("ready")
                        return
                    leaves_after -= 1
                    if leaves_after <= 0 and isinstance(event, TuningProgress):
                        return
        except Cancelled:
            known.ends.append("cancelled")
            self._check(known.is_cancelled, f"{known.name} was cancelled by nobody")
        except UniTuneError as error:
            if (await self._other.get_tuning(known.name)).state != TuningState.FAILED:
                raise
            known.ends.append("failed")
            self._check(
                error.reason == "WORKER_CRASHED" and self._ledger.count("tuner") >= 3, f"{known.name} FAILED: {error}"
            )

    async def _delete(self, name: str) -> None:
        """Delete a tuning; then it is not there."""
        self._ledger.tuning(name, self.tenant).wanted = False
        await self._other.delete_tuning(name, allow_missing=True)
        try:
            await self._sdk.get_tuning(name)
            self._ledger.wrong(f"{name} is there after its deletion")
        except NotFound:
            pass

    async def _list(self) -> str:
        """Whatever this client made and did not delete is in the list."""
        made = {known.name for known in self._ledger.tunings.values() if known.tenant == self.tenant and known.wanted}
        listed = {tuning.name async for tuning in self._sdk.list_tunings()}
        missing = {name for name in made - listed if self._ledger.tunings[name].wanted}
        self._check(not missing, f"tunings are not listed: {sorted(missing)}")
        self._check(
            all(name.startswith(f"tenants/{self.tenant}/") for name in listed), "another tenant's tuning is listed"
        )
        return DONE

    # What is wrong

    async def _broken_upload(self) -> str:
        """A file that is no picture, or hardly one: refused, or taken."""
        try:
            image = await self._sdk.upload_image(self._draws.choice(self._broken))
        except InvalidArgument:
            return EXPECTED
        self._ledger.images[image.name] = self.tenant
        return "taken"

    async def _wrong_request(self) -> str:
        wrong: dict[str, Any] = self._draws.choice(
            ({"strength": 2.0}, {"num_inference_steps": 0}, {"updates": -1}, {"seeds": [-1]}, {"batch": 99})
        )
        try:
            await self._sdk.edit_to_end(drawn(0), self._prompt(), **wrong)
        except InvalidArgument:
            return EXPECTED
        self._ledger.wrong(f"a wrong request was taken: {wrong}")
        return "taken"

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._ledger.wrong(f"{self.name}: {otherwise}")

    def _prompt(self) -> str:
        return self._draws.choice(PROMPTS)

    def _new_picture(self) -> bytes:
        return drawn(self._draws.getrandbits(40) + SHARED)


def drawn(number: int) -> bytes:
    """A small picture, different for every number."""
    draws = Random(number)
    image = Image.new("RGB", (64, 64), tuple(draws.randrange(256) for _ in range(3)))
    for _ in range(6):
        place = (draws.randrange(48), draws.randrange(48))
        image.paste(tuple(draws.randrange(256) for _ in range(3)), (*place, place[0] + 16, place[1] + 16))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
