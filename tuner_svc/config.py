"""Settings of the tuner's process."""

from dataclasses import dataclass, field
from pathlib import Path

from unitune import exposure, peers
from unitune.certificates import CertificateFiles
from unitune.choices import CODECS
from unitune.settings import num_cores

DEFAULT_CODEC = "sign"  # within an eighth of fp16, and edits as the exact weights do (bench/README.md)
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "stickerbook" / "model"


@dataclass(frozen=True)
class TunerConfig:
    """Read from the environment in `__main__`, and passed down."""

    store: str = field(metadata={"env": "UNITUNE_STORE", "help": "a folder, or the URL of a bucket, for tuned weights"})
    address: str = field(
        default="127.0.0.1:50052", metadata={"env": "UNITUNE_TUNER_ADDRESS", "help": "HOST:PORT to listen on"}
    )
    base_model: Path = field(
        default=EMBEDDED_MODEL, metadata={"env": "UNITUNE_BASE_MODEL", "help": "the base model, a diffusers folder"}
    )
    threads: int = field(
        default=0, metadata={"env": "UNITUNE_THREADS", "help": "CPU threads to compute with; 0 takes all cores"}
    )
    weights_codec: str = field(
        default=DEFAULT_CODEC,
        metadata={
            "env": "UNITUNE_WEIGHTS_CODEC",
            "help": f"how tuned weights are stored: {', '.join(CODECS)}; LoRA tunings always as factors, unless none",
        },
    )
    tuning_memory_gb: float = field(
        default=0.0,
        metadata={
            "env": "UNITUNE_TUNING_MEMORY_GB",
            "help": "memory in GB that a tuning may take beside the base model, slower with less; 0 takes what is free",
        },
    )
    health_address: str | None = field(
        default=None,
        metadata={
            "env": "UNITUNE_HEALTH_ADDRESS",
            "help": "HOST:PORT for health alone; empty serves it on the address",
        },
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
        peers.check_exposed("UNITUNE_TUNER_ADDRESS", self.address, self.peer_files, self.insecure)
        if self.threads < 0:
            raise ValueError(f"UNITUNE_THREADS is {self.threads}: it must be 0 or more")
        if not self.tuning_memory_gb >= 0:
            raise ValueError(f"UNITUNE_TUNING_MEMORY_GB is {self.tuning_memory_gb:g}: it must be 0 or more")
        if self.weights_codec not in CODECS:
            raise ValueError(f"UNITUNE_WEIGHTS_CODEC is {self.weights_codec!r}: it must be one of {', '.join(CODECS)}")
        if not self.store:
            raise ValueError("UNITUNE_STORE is empty: it must be a folder or the URL of a bucket")

    def num_threads(self) -> int:
        """Threads to compute with."""
        return self.threads or num_cores()
