"""What serving costs a tuning: the tuner as its own process, asked through the gateway, against a loop in this process.

    python -m bench.served_tuning

Both tune stickerbook on the same picture with the same seeds, on all cores, and make the weights file. One process of
the two idles while the other computes. Loading the model is left out: the tuner has done it before it listens.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path

from bench.inputs import MODEL, PICTURE
from bench.measure import Ratio, in_turns
from tuner_svc import base_model
from tuner_svc.config import DEFAULT_CODEC
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune_client import Client
from unitune_client.home import Home
from unitune_client.local import LocalServices

UPDATES = 64  # about 13 s on two cores, so that what does not grow with updates weighs little
QUICK_UPDATES = 4


def served_tuning(rounds: int, *, quick: bool = False) -> dict[str, object]:
    """Seconds of a tuning through the services and in process, and their ratio, by their names in the report."""
    updates = QUICK_UPDATES if quick else UPDATES
    model = base_model.load(MODEL)
    image = images.to_model(images.decode(PICTURE.read_bytes()), model.image_side)
    with (
        tempfile.TemporaryDirectory() as scratch,
        LocalServices(home=Home(Path(scratch)), log=_say) as services,
        Client(services.address) as client,
    ):

        def served(seed: int) -> None:
            client.tune(PICTURE, updates=updates, tuning_seed=seed)  # a seed of its own: else an old one is found again

        def in_process(seed: int) -> None:
            config = TuningConfig(updates=updates, seed=seed)
            pack_tuned(model, tune(model, image, config), config, str(seed), DEFAULT_CODEC)

        works = {"served": served, "in process": in_process}
        told = {name: _by_seed(f"{updates} updates, {name}", work, rounds + 1) for name, work in works.items()}
        taken = in_turns(told, rounds)
    return {
        "served_tuning.s": {name: round(measured.median_s, 3) for name, measured in taken.items()},
        "served_tuning.ratio_to_in_process": asdict(Ratio.of(taken["served"], taken["in process"])),
    }


def _by_seed(what: str, work: Callable[[int], None], times: int) -> Callable[[], None]:
    """The work with seeds 1, 2 and so on; each time is told, of so many."""
    seeds = count(1)

    def told() -> None:
        seed = next(seeds)
        _say(f"tuning of {what}: {seed} of {times}")
        work(seed)

    return told


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it runs; its figures say nothing")
    options = parser.parse_args()
    for name, values in served_tuning(1 if options.quick else options.rounds, quick=options.quick).items():
        print(f"{name:36} {json.dumps(values)}")


if __name__ == "__main__":
    main()
