"""Generated from protos/unitune/v1 by `make protos`; never edited."""
