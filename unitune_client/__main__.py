"""`python -m unitune_client` is `unitune`."""

from unitune_client.cli import main

main(prog_name="unitune")
