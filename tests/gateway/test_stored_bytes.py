"""What a tenant stores is counted while pictures are stored."""

import asyncio
import threading
from pathlib import Path

import pytest

from gateway.stored_bytes import StoredBytes
from unitune.object_store import ObjectStore


class SlowStore(ObjectStore):
    """Lists as ever, but may tell of it late."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.listed, self.tells = threading.Event(), threading.Event()
        self.tells.set()

    def size_bytes(self, prefix: str) -> int:
        found = super().size_bytes(prefix)
        self.listed.set()
        assert self.tells.wait(30)
        return found


async def test_what_is_stored_during_a_count_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is stored after the listing and before its answer is not forgotten: with it there is no room."""
    monkeypatch.setattr("gateway.stored_bytes.COUNTED_S", 0.0)  # every look counts
    store = SlowStore(tmp_path)
    stored = StoredBytes(store, most=100)
    async with stored.storing("t", 60):
        store.tells.clear()
        store.listed.clear()
        counting = asyncio.create_task(stored.refusal("t", 60))
        await asyncio.to_thread(store.listed.wait, 30)
    store.tells.set()
    assert await counting is not None
