"""How long the store keeps what nobody owns: unused pictures, weights that no tuning has, unfinished files.

Code that checks that a picture is unused and then deletes it, or that it exists and then uses it, holds the picture
meanwhile (`Images.holding`).
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from gateway.images import Images
from gateway.names import Name, parse
from gateway.signed_uploads import SignedUploads
from gateway.state import State
from gateway.stored_edits import StoredEdits
from gateway.tuning_records import UNFINISHED
from unitune import store_paths, telemetry
from unitune.errors import DataLoss, FailedPrecondition, NotFound
from unitune.object_store import ObjectStore

logger = logging.getLogger(__name__)

OWNER = "owner"  # the object of the store that names its state
IDENTITY = "identity"  # the key of a state's own random name


class Retention:
    """Deletes from the store of one gateway what nobody owns."""

    def __init__(
        self,
        state: State,
        images: Images,
        store: ObjectStore,
        edits: StoredEdits,
        uploads: SignedUploads,
        *,
        keep_s: float,
        is_known: Callable[[str], bool],
    ) -> None:
        """`keep_s` is how long what nobody owns is kept; 0 keeps it for ever, but for results of edits and uploads.
        `is_known` says whether an edit runs or ended not long ago."""
        self._edits = edits
        self._uploads = uploads
        self._is_known = is_known
        self._state = state
        self._images = images
        self._store = store
        self._keep_s = keep_s
        self._owns = False  # until the store has been read

    async def delete_image(self, name: str, *, allow_missing: bool) -> None:
        """Delete a picture. Raises NotFound (IMAGE_NOT_FOUND), FailedPrecondition (IMAGE_IN_USE)."""
        image = parse(name, "images")
        async with self._images.holding(image):
            try:
                await self._images.find(image)
            except NotFound:
                # A deletion that was killed half-way leaves the file, and is sent again.
                if not allow_missing and not await self._images.time_of(image):
                    raise
            except DataLoss:
                pass  # what is damaged can be deleted
            user = await self._state.live_user_of(name)
            if user is not None:
                raise FailedPrecondition(
                    f"{name} is used by {user}; delete that tuning, which deletes its image, too",
                    reason="IMAGE_IN_USE",
                    metadata={"name": name, "tuning": user},
                )
            await self._images.discard(image)

    async def run(self, every_s: float) -> None:
        """Sweep at intervals."""
        while True:
            try:
                if await self._is_own_store():
                    await self.sweep()
            except Exception:  # such as a store that does not answer; the next round tries again
                telemetry.failure(logger, "store not swept")
            await asyncio.sleep(every_s)

    async def _is_own_store(self) -> bool:
        """Whether the store belongs to this state. Objects that another state knows have an owner.

        The store names its state. A store without a name gets one if it is empty or if this state knows its objects.
        """
        if self._owns:
            return True
        identity = (await self._state.known()).get(IDENTITY)
        if identity is None:
            identity = await self._state.know_first(IDENTITY, secrets.token_hex(16).encode())
        if await self._store.answer(self._store.has, OWNER):
            owner = await self._store.answer(self._store.get, OWNER)
        else:
            owner = identity if await self._knows_the_store() else b""
            if owner:
                await self._store.answer(self._store.put, OWNER, identity)
                owner = await self._store.answer(self._store.get, OWNER)
        self._owns = owner == identity
        if not self._owns:
            problem = "store is of another state; nothing is deleted from it unasked"
            remedy = "set UNITUNE_STORE to an empty folder or prefix, or UNITUNE_STATE to the state that it belongs to"
            telemetry.event(logger, problem, level=logging.WARNING, detail=remedy)
        return self._owns

    async def _knows_the_store(self) -> bool:
        paths = await self._store.answer(self._store.list, store_paths.TUNINGS)
        for attempt in {path.rpartition("/")[0] for path in paths}:
            of = store_paths.read_weights(attempt)
            if of is not None and await self._state.get(str(Name(of.tenant, "tunings", of.tuning))) is not None:
                return True
        return not paths and not await self._store.answer(self._store.list, store_paths.IMAGES)

    async def sweep(self) -> None:
        """Delete what has been without an owner for long enough, results of edits that nobody knows, and uploads that
        nobody claimed."""
        elsewhere = set(await self._state.edit_names()) if self._state.is_shared else set()
        await self._edits.sweep(lambda name: self._is_known(name) or name in elsewhere)
        await self._uploads.sweep()
        if self._keep_s == 0:
            return
        before_s = time.time() - self._keep_s
        await self._sweep_images(before_s)
        await self._sweep_weights(before_s)
        await self._store.answer(self._store.delete_unfinished, before_s)

    async def _sweep_images(self, before_s: float) -> None:
        newest: dict[Name, float] = {}
        for path, time_s in (await self._store.answer(self._store.times, store_paths.IMAGES)).items():
            of = store_paths.read_image(path)
            if of is not None:
                name = Name(of[0], "images", of[1])
                newest[name] = max(newest.get(name, 0.0), time_s)
        for name, time_s in newest.items():
            if time_s >= before_s:
                continue
            async with self._images.holding(name):
                if await self._state.uses_image(str(name)) or await self._images.time_of(name) >= before_s:
                    continue
                await self._images.discard(name)
            telemetry.event(logger, "unused image deleted", image=str(name))

    async def _sweep_weights(self, before_s: float) -> None:
        newest: dict[str, float] = {}
        for path, time_s in (await self._store.answer(self._store.times, store_paths.TUNINGS)).items():
            attempt = path.rpartition("/")[0]
            newest[attempt] = max(newest.get(attempt, 0.0), time_s)
        for attempt, time_s in newest.items():
            of = store_paths.read_weights(attempt)
            if of is None or time_s >= before_s:
                continue
            name = str(Name(of.tenant, "tunings", of.tuning))
            tuning = await self._state.get(name)
            if tuning is not None and (tuning.state in UNFINISHED or tuning.weights.path == attempt):
                continue
            await self._store.answer(self._store.discard, attempt)
            telemetry.event(logger, "weights of no tuning deleted", tuning=name, attempt=of.attempt)
