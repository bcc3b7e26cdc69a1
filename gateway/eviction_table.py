"""The table of weights that the sampler must still forget. All of it runs on the state file's thread."""

from gateway.sqlite_file import SqliteFile


class EvictionTable:
    """The table."""

    def __init__(self, file: SqliteFile) -> None:
        self._sql = file.sql

    def add(self, digest: str) -> None:
        """Remember weights; twice is once."""
        self._sql("INSERT OR IGNORE INTO evictions (digest) VALUES (?)", digest)

    def all(self) -> list[str]:
        """The digests, the oldest first."""
        return [digest for (digest,) in self._sql("SELECT digest FROM evictions ORDER BY number")]

    def remove(self, digest: str) -> None:
        """Forget weights; those that are not there are fine."""
        self._sql("DELETE FROM evictions WHERE digest = ?", digest)
