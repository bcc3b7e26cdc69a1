"""The table of weights that the sampler must still forget. All of it runs on the state file's thread."""

from gateway.sqlite_file import SqliteFile

SCHEMA = """
CREATE TABLE IF NOT EXISTS evictions (number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE);
"""


class EvictionTable:
    """The table; it is made if the file is an older one."""

    def __init__(self, file: SqliteFile) -> None:
        self._sql = file.sql

    def prepare(self) -> None:
        """Make the table if it is missing."""
        self._sql(SCHEMA)

    def add(self, digest: str) -> None:
        """Remember weights; twice is once."""
        self._sql("INSERT OR IGNORE INTO evictions (digest) VALUES (?)", digest)

    def all(self) -> list[str]:
        """The digests, the oldest first."""
        return [digest for (digest,) in self._sql("SELECT digest FROM evictions ORDER BY number")]

    def remove(self, digest: str) -> None:
        """Forget weights; those that are not there are fine."""
        self._sql("DELETE FROM evictions WHERE digest = ?", digest)
