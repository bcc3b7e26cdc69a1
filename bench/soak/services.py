"""Gateway, tuner and sampler on this machine, over a state file and a folder as their store."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.started import GATEWAY, SAMPLER, TUNER, Started, free_addresses

NAMES = (GATEWAY, TUNER, SAMPLER)


class Services(Started):
    """The three services, in a `with` block: all of them run at its beginning, and none at its end."""

    def __init__(
        self, base_model: Path, engine: Path, folder: Path, logs: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        """State and store lie in `folder`, one log of each service in `logs`. `settings` are those of all services."""
        self.store, self.state = folder / "store", folder / "state" / "gateway.sqlite"
        for path in (self.store, self.state.parent):
            path.mkdir(parents=True, exist_ok=True)
        super().__init__(logs, {"UNITUNE_STORE": str(self.store), **(settings or {})})
        self.address, self._internal, self._sampler, *metrics = free_addresses(3 + len(NAMES))
        self.metrics = dict(zip(NAMES, metrics, strict=True))
        self._base_model, self._engine = base_model, engine

    @property
    def ports(self) -> dict[str, str]:
        """The addresses that take calls: the public one, the one for tuners, the tuner's and the sampler's."""
        return {
            "public": self.address,
            "internal": self._internal,
            "tuner": self.by_name[TUNER].address,
            "sampler": self._sampler,
        }

    def __enter__(self) -> Self:
        metrics = {name: {"UNITUNE_METRICS_ADDRESS": address} for name, address in self.metrics.items()}
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.start_gateway(
                GATEWAY, self.address, self._internal, [self._sampler], str(self.state), **metrics[GATEWAY]
            )
            self.start_tuner(TUNER, [self._internal], self._base_model, **metrics[TUNER])
            self.start_sampler(SAMPLER, self._sampler, self._engine, **metrics[SAMPLER])
            for name in NAMES:
                self.await_listening(name)
            self.await_ready(self.address)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def restart(self, name: str, **settings: str) -> None:
        """As ever, and wait until it listens."""
        super().restart(name, **settings)
        self.await_listening(name)
