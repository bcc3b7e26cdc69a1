"""What all parts of the state have."""

import secrets

from gateway.database import Database


class StatePart:
    """A part of the state of one gateway, or of several. Its operations raise what Database does, too."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._id = secrets.token_hex(8)  # of this gateway, among those that share the state

    @property
    def is_read_only(self) -> bool:
        """Whether every operation that would write fails with FailedPrecondition (STATE_READ_ONLY)."""
        return self.database.is_read_only

    @property
    def is_shared(self) -> bool:
        """Whether several gateways have it."""
        return self.database.is_shared
