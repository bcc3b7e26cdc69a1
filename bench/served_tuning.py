"""What serving costs a tuning: the tuner process behind the gateway, against a loop in this process.

    python -m bench.served_tuning

Both tune stickerbook on the same picture with the same seeds, on all cores, and make the weights file. One is idle
while the other computes. Loading the model is not measured: the tuner loads it before it listens.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path

from bench.inputs import MODEL, PICTURE
from bench.measure import Ratio, in_turns
from bench.program import run, say
from tuner_svc import base_model
from tuner_svc.config import DEFAULT_CODEC
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune_client import Client
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

UPDATES = 64  # about 13 s on two cores, so that what does not grow with updates weighs little
QUICK_UPDATES = 4


def served_tuning(rounds: int, *, quick: bool = False) -> dict[str, object]:
    """Seconds of a tuning through the services and in process, and their ratio, by their names in the report."""
    updates = QUICK_UPDATES if quick else UPDATES
    model = base_model.load(MODEL)
    image = images.to_model(images.decode(PICTURE.read_bytes()), model.image_side)
    with (
        tempfile.TemporaryDirectory() as scratch,
        LocalServices(home=Home(Path(scratch)), log=say) as services,
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
        "served_tuning.ratio_to_in_process": asdict(Ratio.divide(taken["served"], taken["in process"])),
    }


def _by_seed(what: str, work: Callable[[int], None], times: int) -> Callable[[], None]:
    """Do the work with seeds 1, 2 and so on, and print each time."""
    seeds = count(1)

    def told() -> None:
        seed = next(seeds)
        say(f"tuning of {what}: {seed} of {times}")
        work(seed)

    return told


if __name__ == "__main__":
    run(served_tuning, __doc__, rounds=3)
