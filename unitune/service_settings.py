"""The settings that all services have, or several of them, each declared once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from unitune import exposure, peers
from unitune.certificates import CertificateFiles
from unitune.settings import num_cores, setting


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What every service is told; read once, in its `__main__`."""

    TABLE: ClassVar[str]  # of the configuration file

    store: str = field(
        metadata={"env": "UNITUNE_STORE", "help": "a folder, or the URL of a bucket, for pictures and tuned weights"}
    )
    health_address: str | None = setting(
        None,
        "UNITUNE_HEALTH_ADDRESS",
        "HOST:PORT for health alone, which the service's own address has, too; empty means none",
    )
    metrics_address: str | None = setting(
        None, "UNITUNE_METRICS_ADDRESS", "HOST:PORT for Prometheus to read metrics; empty means none"
    )
    traces: str | None = setting(
        None, "UNITUNE_TRACES", "URL of a collector of traces (OTLP over gRPC), as http://HOST:4317; empty means none"
    )
    peer_cert: Path | None = setting(
        None, "UNITUNE_PEER_CERT", "a PEM file with this service's certificate for the others"
    )
    peer_key: Path | None = setting(None, "UNITUNE_PEER_KEY", "a PEM file with the key of that certificate")
    peer_ca: Path | None = setting(
        None, "UNITUNE_PEER_CA", "a PEM file with the authority of the services' certificates"
    )
    insecure: str = setting("", exposure.VARIABLE, exposure.HELP)
    reflection: bool = setting(False, "UNITUNE_REFLECTION", "whether tools such as grpcurl may ask for the contract")

    @property
    def peer_files(self) -> CertificateFiles | None:
        """The certificate by which this service and the others know each other; None without."""
        return peers.peer_files(self.peer_cert, self.peer_key, self.peer_ca)

    def __post_init__(self) -> None:
        if not self.store:
            raise ValueError("UNITUNE_STORE is empty: it must be a folder or the URL of a bucket")


@dataclass(frozen=True, kw_only=True)
class ComputingSettings(ServiceSettings):
    """What a service is told that computes."""

    threads: int = setting(0, "UNITUNE_THREADS", "CPU threads to compute with; 0 takes all cores")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise ValueError(f"UNITUNE_THREADS is {self.threads}: it must be 0 or more")

    def num_threads(self) -> int:
        """Threads to compute with."""
        return self.threads or num_cores()
