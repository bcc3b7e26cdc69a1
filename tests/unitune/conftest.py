"""The store of each kind."""

from pathlib import Path

import pytest

from tests.bucket import Bucket
from unitune.object_store import ObjectStore


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store: a folder, `store` of the temporary one, or a bucket."""
    if request.param == "folder":
        return ObjectStore(str(tmp_path / "store"))
    bucket: Bucket = request.getfixturevalue("bucket")
    return ObjectStore(bucket.url)
