"""Long runs of real services under faults, and what must hold in them."""
