"""The settings that all services have, or several of them, each declared once."""

from dataclasses import dataclass, field
from typing import ClassVar

from unitune.settings import num_cores


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What every service is told; read once, in its `__main__`."""

    TABLE: ClassVar[str]  # of the configuration file

    store: str = field(
        metadata={"env": "UNITUNE_STORE", "help": "a folder, or the URL of a bucket, for pictures and tuned weights"}
    )
    health_address: str | None = field(
        default=None,
        metadata={
            "env": "UNITUNE_HEALTH_ADDRESS",
            "help": "HOST:PORT for health alone, which the service's own address has, too; empty means none",
        },
    )
    metrics_address: str | None = field(
        default=None,
        metadata={
            "env": "UNITUNE_METRICS_ADDRESS",
            "help": "HOST:PORT for Prometheus to read metrics; empty means none",
        },
    )
    traces: str | None = field(
        default=None,
        metadata={
            "env": "UNITUNE_TRACES",
            "help": "URL of a collector of traces (OTLP over gRPC), as http://HOST:4317; empty means none",
        },
    )

    def __post_init__(self) -> None:
        if not self.store:
            raise ValueError("UNITUNE_STORE is empty: it must be a folder or the URL of a bucket")


@dataclass(frozen=True, kw_only=True)
class ComputingSettings(ServiceSettings):
    """What a service is told that computes."""

    threads: int = field(
        default=0, metadata={"env": "UNITUNE_THREADS", "help": "CPU threads to compute with; 0 takes all cores"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise ValueError(f"UNITUNE_THREADS is {self.threads}: it must be 0 or more")

    def num_threads(self) -> int:
        """Threads to compute with."""
        return self.threads or num_cores()
