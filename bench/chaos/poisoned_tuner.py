"""The tuner, which tunings with one seed kill, as a picture might that no tuner survives."""

import os
import runpy
import signal
from typing import Any

import tuner_svc.service

POISON = 666  # the seed


def main() -> None:
    """Run it as `python -m tuner_svc` does."""
    service: Any = tuner_svc.service
    tune = service.tune

    def deadly(model: Any, image: Any, config: Any, **more: Any) -> Any:
        if config.seed == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return tune(model, image, config, **more)

    service.tune = deadly
    runpy.run_module("tuner_svc", run_name="__main__")


if __name__ == "__main__":
    main()
