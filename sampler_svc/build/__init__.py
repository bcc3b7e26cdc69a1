"""Build an engine from exported graphs."""
