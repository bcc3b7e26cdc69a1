"""Small programs under the names of the real ones: what LocalServices starts, without minutes of building.

They serve through the real `unitune.serving`, and leave in the weight store a note of how they were started. The real
programs need a trained model; the tests of the whole flow start those.
"""

import json
import os
import time
from pathlib import Path

SERVICE = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
from unitune import serving
from unitune.v1 import server_pb2, server_pb2_grpc

NAME, ADDRESS = {name!r}, os.environ[{address!r}]
note = {{"pid": os.getpid(), "settings": {{k: v for k, v in os.environ.items() if k.startswith("UNITUNE_")}}}}
(Path(os.environ["UNITUNE_STORE"]) / f"{{NAME}}.json").write_text(json.dumps(note))

class Server(server_pb2_grpc.ServerServiceServicer):
    async def GetServerInfo(self, request, context):
        return server_pb2.ServerInfo(version=NAME, tuning_defaults={{}}, sampling_defaults={{}})

def register(server):
    server_pb2_grpc.add_ServerServiceServicer_to_server(Server(), server)
    return ["unitune.v1.ServerService"]

{fault}
sys.exit(asyncio.run(serving.serve(NAME, ADDRESS, register)))
"""

STEP = """
import sys, time
from pathlib import Path
{fault}
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = Path(arguments[{root!r}]) / {digest!r}
print("a warning of some library", file=sys.stderr)
if not folder.is_dir():
    print({digest!r} + ": working on it ...", file=sys.stderr, flush=True)
    time.sleep(0.3)
    folder.mkdir()
    (folder / "arguments").write_text(repr(arguments))
print("what it says on the way")
print(folder)
"""

# Writes a base model's folder; the option after the file names it.
IMPORT = """
import sys
from pathlib import Path
{fault}
folder = Path(sys.argv[3])
folder.mkdir(parents=True)
(folder / "model_index.json").write_text("{{}}")
(folder / "arguments").write_text(repr(sys.argv[1:]))
print("import: writing ...", file=sys.stderr)
print(folder)
"""

# Code for `write`: the program ends in failure.
DIES = 'sys.exit("cannot: the model is not a model")'


def write(folder: Path, **faults: str) -> None:
    """Write the programs into a folder for PYTHONPATH. `faults` is code that one of them runs before its work."""
    programs = {
        ("tuner_svc", "__main__"): SERVICE.format(
            name="tuner", address="UNITUNE_TUNER_ADDRESS", fault=faults.get("tuner", "")
        ),
        ("sampler_svc", "__main__"): SERVICE.format(
            name="sampler", address="UNITUNE_SAMPLER_ADDRESS", fault=faults.get("sampler", "")
        ),
        ("gateway", "__main__"): SERVICE.format(
            name="gateway", address="UNITUNE_GATEWAY_ADDRESS", fault=faults.get("gateway", "")
        ),
        ("tuner_svc", "export"): STEP.format(root="--graphs-root", digest="g1", fault=faults.get("export", "")),
        ("tuner_svc", "single_file"): IMPORT.format(fault=faults.get("single_file", "")),
        ("sampler_svc", "build"): STEP.format(root="--engines", digest="e1", fault=faults.get("build", "")),
    }
    for (package, module), text in programs.items():
        (folder / package).mkdir(parents=True, exist_ok=True)
        (folder / package / "__init__.py").touch()
        (folder / package / f"{module}.py").write_text(text)


def notes(store: Path) -> dict[str, dict[str, object]]:
    """How each service was started: its pid and its settings."""
    return {path.stem: json.loads(path.read_text()) for path in store.glob("*.json")}


def still_running(pids: list[int], *, within_s: float = 0.0) -> list[int]:
    """Those of the processes that have not ended by then."""
    gives_up_at = time.monotonic() + within_s
    while True:
        alive = [pid for pid in pids if _is_alive(pid)]
        if not alive or time.monotonic() > gives_up_at:
            return alive
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended, and whoever inherits it may be slow to take note; but not while threads of it still end and
    # hold its files and locks.
    status = Path(f"/proc/{pid}/stat")
    if not status.is_file():
        return True
    state, *fields = status.read_text().rpartition(")")[2].split()
    num_threads = int(fields[16])
    return state != "Z" or num_threads > 1
