"""The results of edits in the object store, for GetEdit and for readers that are slow.

edits/{tenant}/{edit}/{number}    an event that brings a picture or a piece of one, counted from 1
edits/{tenant}/{edit}/edit        the edit without its pictures, once it is done; written last
edits/{tenant}/{edit}/{name}.png  a picture or mask as a file, once somebody asked for a URL of it
"""

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

from gateway import validation
from gateway.names import Name, parse
from unitune import store_paths, telemetry
from unitune.errors import DataLoss, UniTuneError
from unitune.image_pieces import Assembly
from unitune.object_store import ObjectStore
from unitune.v1.edit_pb2 import Edit, EditEvent

logger = logging.getLogger(__name__)

KEPT_S = 600.0  # after an edit's end
EDIT = "edit"  # the object that is written last

Load = Callable[[], Awaitable[EditEvent]]


class EditPictures:
    """The pictures of one edit."""

    def __init__(self, store: ObjectStore, name: str, *, are_kept: bool = False) -> None:
        """`are_kept` says that the store has them all, and no more come."""
        self._store = store
        self._path = _path(name)
        self._name = name
        self._are_kept = are_kept
        self._count = 0
        self._last: EditEvent | None = None  # that was stored
        self.size_bytes = 0
        self.failure: UniTuneError | None = None  # with which the store refused a part; the others are of no use then

    async def keep(self, event: EditEvent) -> None:
        """Store an event that brings a picture or a piece of one. If the store fails, the edit goes on without it."""
        self._last = None
        if self.failure is not None:
            return
        data = event.SerializeToString()
        try:
            await self._store.answer(self._store.put, f"{self._path}/{self._count + 1}", data)
        except UniTuneError as error:
            telemetry.event(logger, "result not kept", level=logging.WARNING, edit=self._name, reason=error.reason)
            self.failure = error
            return
        self._count += 1
        self._last = event
        self.size_bytes += len(data)

    def close(self) -> None:
        """No more pictures come."""
        self._last = None

    def stored(self, event: EditEvent) -> Load | None:
        """What reads this event again, if it is the one that was stored last."""
        return self.load(self._count) if event is self._last else None

    def load(self, number: int) -> Load | None:
        """What reads an event again by its number, if it was stored."""
        if not self._are_kept and not 1 <= number <= self._count:
            return None
        return lambda: _load(self._store, f"{self._path}/{number}")


class StoredEdits:
    """The results of all edits of one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def pictures(self, name: str, *, are_kept: bool = False) -> EditPictures:
        """Where the pictures of a new edit go, or those of a done one are."""
        return EditPictures(self._store, name, are_kept=are_kept)

    async def finish(self, edit: Edit) -> None:
        """Store what is known of an edit that is done, after its pictures. Without it the edit is not there."""
        try:
            await self._store.answer(self._store.put, f"{_path(edit.name)}/{EDIT}", edit.SerializeToString())
        except UniTuneError as error:  # only another gateway misses it
            telemetry.event(logger, "result not kept", level=logging.WARNING, edit=edit.name, reason=error.reason)

    async def read(self, name: str, *, urls: bool = False) -> Edit | None:
        """An edit that is done, with its pictures, or with URLs of them; None if there is none, or it ended too long
        ago.

        Raises ResourceExhausted (MESSAGE_TOO_LARGE), DataLoss (EDIT_NOT_KEPT) for pictures that are not whole, and,
        with `urls`, FailedPrecondition (NO_SIGNED_URLS).
        """
        path = _path(name)
        times = await self._store.answer(self._store.times, path)
        ended_s = times.pop(f"{path}/{EDIT}", 0.0)
        if ended_s < time.time() - KEPT_S:
            return None
        if not urls:
            size = await self._store.answer(self._store.size_bytes, path)
            validation.check_answer(size, "the pictures of this edit are too large for one answer; its stream had them")
        numbers = _numbers(times)
        try:
            edit = Edit.FromString(await self._store.answer(self._store.get, f"{path}/{EDIT}"))
            assembly = Assembly()
            for number in numbers:
                event = await _load(self._store, f"{path}/{number}")
                if event.HasField("image"):
                    assembly.begin([event.image])
                else:
                    assembly.add(event.image_part)
                if assembly.is_whole:
                    images = assembly.take()
                    if urls:
                        for image in images:
                            await self._by_urls(path, image, ended_s + KEPT_S - time.time())
                    edit.images.extend(images)
        except FileNotFoundError:  # deleted meanwhile
            return None
        return edit

    async def _by_urls(self, path: str, image: EditEvent.EditedImage, left_s: float) -> None:
        """Put URLs of the files in their place."""
        for field in ("png", "mask"):
            file = getattr(image, field)
            if file:
                place = f"{path}/{field}-{image.index}.png"
                url = await self._store.answer(self._store.sign, "GET", place, max(1.0, left_s))
                await self._store.answer(self._store.put, place, file)
                setattr(image, f"{field}_url", url)
            image.ClearField(field)

    async def find(self, name: str) -> Edit | None:
        """An edit that is done, without its pictures; None if the store has none."""
        try:
            return Edit.FromString(await self._store.answer(self._store.get, f"{_path(name)}/{EDIT}"))
        except FileNotFoundError:
            return None

    async def events(self, name: str) -> AsyncGenerator[EditEvent, None]:
        """The events that bring its pictures, in order. Raises DataLoss (EDIT_NOT_KEPT) for one that is gone."""
        path = _path(name)
        for number in _numbers(await self._store.answer(self._store.times, path)):
            yield await _load(self._store, f"{path}/{number}")

    async def discard(self, name: str) -> None:
        """Delete what the store has of an edit."""
        await self._store.answer(self._store.discard, _path(name))

    async def discard_of(self, tuning: str) -> None:
        """Delete the results of all edits of a tuning."""
        tenant = parse(tuning, "tunings").tenant
        for path in await self._store.answer(self._store.list, f"{store_paths.EDITS}/{tenant}"):
            found = store_paths.read_edit(path)
            if found is None or not path.endswith(f"/{EDIT}"):
                continue
            try:
                edit = Edit.FromString(await self._store.answer(self._store.get, path))
            except FileNotFoundError:
                continue
            if edit.tuning == tuning:
                await self.discard(str(Name(found[0], "edits", found[1])))

    async def sweep(self, is_known: Callable[[str], bool]) -> None:
        """Delete the results of edits that nobody knows any more: of a gateway that was killed, or restarted since."""
        newest: dict[str, float] = {}
        for path, time_s in (await self._store.answer(self._store.times, store_paths.EDITS)).items():
            found = store_paths.read_edit(path)
            if found is not None:
                name = str(Name(found[0], "edits", found[1]))
                newest[name] = max(newest.get(name, 0.0), time_s)
        for name, time_s in newest.items():
            if time_s < time.time() - KEPT_S and not is_known(name):
                await self.discard(name)


def not_kept(failure: UniTuneError) -> DataLoss:
    """The error for pictures that the store did not take."""
    return DataLoss(
        "the pictures of this edit could not be kept; its stream had them",
        reason="EDIT_NOT_KEPT",
        metadata={"because": failure.reason},
    )


def _numbers(paths: Iterable[str]) -> list[int]:
    """The numbers of an edit's events that are stored, in order."""
    return sorted(int(part) for one in paths if (part := one.rpartition("/")[2]).isdecimal())


async def _load(store: ObjectStore, path: str) -> EditEvent:
    try:
        return EditEvent.FromString(await store.answer(store.get, path))
    except FileNotFoundError:
        raise DataLoss("a stored picture of this edit is gone: edit again", reason="EDIT_NOT_KEPT") from None


def _path(name: str) -> str:
    parts = parse(name, "edits")
    return store_paths.edit_path(parts.tenant, parts.id)
