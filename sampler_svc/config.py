"""The sampler's settings."""

from dataclasses import dataclass, field
from pathlib import Path

from unitune import exposure, peers
from unitune.certificates import CertificateFiles

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "tensorrt")
AUTO = "auto"
REFIT_MODES = (AUTO, "new_session", "in_place")


@dataclass(frozen=True)
class SamplerConfig:
    """Read once, in `__main__`."""

    engine: Path = field(
        metadata={"env": "UNITUNE_ENGINE", "help": "a folder written by `python -m sampler_svc.build`"}
    )
    store: str = field(metadata={"env": "UNITUNE_STORE", "help": "the object store's folder or URL"})
    address: str = field(
        default="127.0.0.1:50053", metadata={"env": "UNITUNE_SAMPLER_ADDRESS", "help": "HOST:PORT to listen on"}
    )
    threads: int = field(default=0, metadata={"env": "UNITUNE_THREADS", "help": "threads of a run; 0 means all cores"})
    backend: str = field(
        default=BACKENDS[0],
        metadata={"env": "UNITUNE_SAMPLER_BACKEND", "help": f"what runs the engine: {', '.join(BACKENDS)}"},
    )
    refit_mode: str = field(
        default=AUTO,
        metadata={
            "env": "UNITUNE_REFIT_MODE",
            "help": "new_session, in_place, or auto, which chooses by the size of the base model",
        },
    )
    clipseg: Path | None = field(
        default=None,
        metadata={
            "env": "UNITUNE_CLIPSEG",
            "help": "a folder written by `python -m tuner_svc.export.clipseg`, for masks by word; empty means none",
        },
    )
    content_filter: Path | None = field(
        default=None,
        metadata={
            "env": "UNITUNE_CONTENT_FILTER",
            "help": "a folder written by `python -m tuner_svc.export.content_filter`, for the edits of those tenants "
            "that the gateway's UNITUNE_FILTERED_TENANTS names; empty means none",
        },
    )
    health_address: str | None = field(
        default=None, metadata={"env": "UNITUNE_HEALTH_ADDRESS", "help": "HOST:PORT for health alone; empty means none"}
    )
    peer_cert: Path | None = field(default=None, metadata=peers.CERTIFICATE)
    peer_key: Path | None = field(default=None, metadata=peers.KEY)
    peer_ca: Path | None = field(default=None, metadata=peers.AUTHORITY)
    insecure: str = field(default="", metadata={"env": exposure.VARIABLE, "help": exposure.HELP})
    reflection: bool = field(default=False, metadata=exposure.REFLECTION)

    @property
    def peer_files(self) -> CertificateFiles | None:
        """The certificate by which the gateway and this service know each other; None without."""
        return peers.peer_files(self.peer_cert, self.peer_key, self.peer_ca)

    def __post_init__(self) -> None:
        peers.check_exposed("UNITUNE_SAMPLER_ADDRESS", self.address, self.peer_files, self.insecure)
        if self.threads < 0:
            raise ValueError(f"UNITUNE_THREADS is {self.threads}: it must be 0 or more")
        if self.backend not in BACKENDS:
            raise ValueError(f"UNITUNE_SAMPLER_BACKEND is {self.backend!r}: it must be one of {', '.join(BACKENDS)}")
        if self.refit_mode not in REFIT_MODES:
            raise ValueError(f"UNITUNE_REFIT_MODE is {self.refit_mode!r}: it must be one of {', '.join(REFIT_MODES)}")
