"""One tuning that outlasts restarts of its gateway, the death of its tuner and a drain, and ends READY.

    python -m bench.soak.long_tuning --minutes 21

Real services tune the embedded base model, with as many updates as the machine needs for that time and more.
Meanwhile the gateway is stopped and started again, the tuner killed, the gateway killed, and the tuner drained.
Prints what a watcher sees, with every attempt and the update that it went on from. The exit status is 0 if the tuning
lasted as long as asked for, had an attempt for each tuner that it lost and no more, ended once, and serves an edit.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.inputs import MODEL, PICTURE, PROMPT
from bench.soak.services import Services
from unitune_client import AsyncClient
from unitune_client.events import TuningEvent, TuningProgress, TuningReady, TuningStarted
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

FAULTS: tuple[tuple[float, str, signal.Signals], ...] = (  # at which share of the time, to whom, what
    (0.2, "gateway", signal.SIGTERM),
    (0.4, "tuner", signal.SIGKILL),
    (0.6, "gateway", signal.SIGKILL),
    (0.75, "tuner", signal.SIGTERM),
)
ATTEMPTS = 1 + sum(name == "tuner" for _, name, _ in FAULTS)
MARGIN = 1.35
CHECKPOINTS = 20  # in the time asked for
MEASURED_UPDATES = 24
MAX_UPDATES, MAX_BATCH = 5000, 64
TOLD_EVERY_S = 60.0


class Watched:
    """What a watcher has seen, and whether that is what it must be."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.attempts: list[int] = []
        self.resumed: dict[int, int] = {}  # the update that each attempt went on from
        self.sequences: list[int] = []
        self.is_ready = False
        self.has_moved = asyncio.Event()  # an update was made since this was cleared
        self._say, self._told_s = say, 0.0

    def see(self, event: TuningEvent) -> None:
        """One event."""
        if event.sequence:
            self.sequences.append(event.sequence)
        if isinstance(event, TuningStarted):
            self.attempts.append(event.attempt)
            self._say(f"attempt {event.attempt} begins")
        if isinstance(event, TuningProgress):
            progress = event.progress
            if progress.stage == "updating":
                self.has_moved.set()
            known = self.resumed.get(progress.attempt)
            self.resumed[progress.attempt] = max(known or 0, progress.resumed_update)  # unknown while it prepares
            if self.resumed[progress.attempt] != known or time.monotonic() - self._told_s > TOLD_EVERY_S:
                self._told_s = time.monotonic()
                self._say(
                    f"attempt {progress.attempt}, resumed from update {progress.resumed_update}: "
                    f"update {progress.update} of {progress.total}, {progress.stage}"
                )
        self.is_ready = isinstance(event, TuningReady)

    def wrongs(self) -> list[str]:
        """What is not as it must be."""
        found = []
        if not self.is_ready:
            found.append("the tuning did not end READY")
        if self.attempts != list(range(1, ATTEMPTS + 1)):
            found.append(f"the attempts were {self.attempts}")
        if self.sequences != list(range(1, len(self.sequences) + 1)):
            found.append("the events had gaps or came twice")
        found += [
            f"attempt {number} began anew" for number, update in self.resumed.items() if number > 1 and not update
        ]
        return found


async def long_tuning(services: Services, minutes: float, margin: float, say: Callable[[str], None]) -> list[str]:
    """Run it; what was not as it must be."""
    async with AsyncClient(services.address) as client:
        began = time.monotonic()
        await client.tune(PICTURE, updates=MEASURED_UPDATES, batch=1)
        update_s = (time.monotonic() - began) / MEASURED_UPDATES
        updates, batch = sized(margin * 60 * minutes / update_s)
        say(f"an update of batch 1 takes {update_s:.2f} s; the tuning has {updates} updates of batch {batch}")
        watched, began = Watched(say), time.monotonic()
        tuning = await client.create_tuning(PICTURE, updates=updates, batch=batch)
        faults = asyncio.create_task(inject(services, watched, began, 60 * minutes, say))
        try:
            async for event in client.watch_tuning(tuning.name):
                watched.see(event)
        finally:
            taken_s = time.monotonic() - began
            is_over = faults.done()
            faults.cancel()
            with suppress(asyncio.CancelledError):
                await faults
        say(f"the tuning ended after {taken_s / 60:.1f} minutes")
        wrongs = watched.wrongs()
        if not is_over:
            wrongs.append("the tuning ended before all faults")
        if taken_s < 60 * minutes:
            wrongs.append(f"the tuning lasted less than {minutes:g} minutes")
        result = await client.edit_to_end(await client.get_tuning(tuning.name), PROMPT, num_inference_steps=4)
        say(f"it served an edit: {len(result.images[0].png)} bytes")
        wrongs += misplaced(services.store, tuning.name, watched.attempts[-1])
    return wrongs


def sized(units: float) -> tuple[int, int]:
    """Updates and batch of a tuning that costs so many updates of batch 1."""
    batch = min(MAX_BATCH, max(1, -int(-units // MAX_UPDATES)))
    return max(1, min(MAX_UPDATES, round(units / batch))), batch


def misplaced(store: Path, name: str, attempt: int) -> list[str]:
    """What lies in the store of this tuning beside its last attempt's weights and manifest."""
    tenant, tuning = name.split("/")[1::2]
    folder = store / "tunings" / tenant / tuning
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    right = [f"{attempt}/manifest.json", f"{attempt}/weights.safetensors"]
    return [] if files == right else [f"the store has of it {files}"]


async def inject(services: Services, watched: Watched, began: float, span_s: float, say: Callable[[str], None]) -> None:
    """All faults, each at its time, or later if the tuning does not go on yet after the one before."""
    for share, name, number in FAULTS:
        await asyncio.sleep(began + share * span_s - time.monotonic())
        await watched.has_moved.wait()
        process = services.process(name)
        process.send_signal(number)
        say(f"{number.name} to the {name}")
        await asyncio.to_thread(process.wait)
        say(f"the {name} ended with status {process.returncode}")
        await asyncio.to_thread(services.restart, name)
        say(f"the {name} listens again")
        watched.has_moved.clear()


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=21.0)
    parser.add_argument("--margin", type=float, default=MARGIN, help="for a machine that is faster later on")
    parser.add_argument("--home", type=Path, help="a folder for graphs and engine, kept; a temporary one by default")
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{(time.monotonic() - began) / 60:6.2f} min  {line}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        home = Home((options.home or Path(scratch) / "home").absolute())
        engine = LocalServices(home=home, log=say).build()
        settings = {"UNITUNE_CHECKPOINT_S": f"{60 * options.minutes / CHECKPOINTS:.0f}", "UNITUNE_THREADS": "1"}
        with Services(MODEL, engine, Path(scratch) / "data", Path(scratch) / "logs", settings) as services:
            wrongs = asyncio.run(long_tuning(services, options.minutes, options.margin, say))
    for wrong in wrongs:
        say(f"WRONG: {wrong}")
    if not wrongs:
        say(f"all is well: READY once, after {ATTEMPTS} attempts")
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
