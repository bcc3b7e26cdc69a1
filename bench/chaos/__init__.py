"""A fleet of real services under faults, and what must hold in it."""
