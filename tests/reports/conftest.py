"""What users reported is tried on the real services, as a user does."""

from tests.flow.conftest import client, services

__all__ = ["client", "services"]
