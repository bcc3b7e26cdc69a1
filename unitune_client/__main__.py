"""The program `unitune`, which `python -m unitune_client` is, too."""

import sys

INTERRUPTED = 130  # what a shell reports of a program that SIGINT ended


def main() -> None:
    """Run the command line. Ctrl-C ends it during its imports as it does later."""
    try:
        try:
            from unitune_client.cli.main import main as command
        except ModuleNotFoundError as error:
            if error.name not in ("click", "PIL", "rich"):
                raise
            sys.exit(f"error: the command line needs {error.name}: pip install 'unitune[cli]'")
        command(prog_name="unitune")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
