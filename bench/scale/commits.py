"""How many transactions PostgreSQL commits a second on this machine, with a notification in each and without.

    python -m bench.scale.commits

Runs pgbench of the server's own package: 16 clients, whose transactions change one row each and are on the disk before
they end. Takes about 25 seconds. `python -m bench.scale` takes the figures by --commits and --notifying.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from tests import postgres_server
from tests.postgres_server import BIN, PostgresServer

CLIENTS, SECONDS = 16, 10
CHANGE = "\\set row random(1, 1000)\nBEGIN;\nUPDATE counted SET number = number + 1 WHERE id = :row;\n"
SCRIPTS = {"commits": f"{CHANGE}COMMIT;\n", "notifying": f"{CHANGE}SELECT pg_notify('unitune', 'e:1');\nCOMMIT;\n"}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    seconds = parser.parse_args().seconds
    postgres_server.SETTINGS |= {"fsync": "on", "full_page_writes": "on"}
    server = PostgresServer()
    try:
        server.start()
        url = server.new_database()
        make = "CREATE TABLE counted AS SELECT id, 0 AS number FROM generate_series(1, 1000) id"
        for statement in (make, "CREATE UNIQUE INDEX ON counted (id)"):
            subprocess.run([BIN / "psql", url, "-qc", statement], check=True)
        for name, script in SCRIPTS.items():
            print(f"{name}: {committed(url, script, seconds):.0f}/s", flush=True)
    finally:
        server.stop()


def committed(url: str, script: str, seconds: int) -> float:
    """Transactions a second."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script"
        file.write_text(script)
        command: list[str | Path] = [
            BIN / "pgbench",
            "-n",
            "-f",
            file,
            "-c",
            str(CLIENTS),
            "-j",
            "2",
            "-T",
            str(seconds),
            url,
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^tps = ([0-9.]+)", output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pgbench says no rate: {output}")
    return float(found[1])


if __name__ == "__main__":
    main()
