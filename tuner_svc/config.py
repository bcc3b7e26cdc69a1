"""Settings of the tuner's process."""

from dataclasses import dataclass, field
from pathlib import Path

from unitune.choices import CODECS
from unitune.settings import num_cores

DEFAULT_CODEC = "sign"  # within an eighth of fp16, and edits as the exact weights do (bench/README.md)
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "stickerbook" / "model"


@dataclass(frozen=True)
class TunerConfig:
    """Read from the environment in `__main__`, and passed down."""

    store: str = field(
        metadata={"env": "UNITUNE_STORE", "help": "a folder, or the URL of a bucket, for pictures and tuned weights"}
    )
    gateway: str = field(
        default="127.0.0.1:50054",
        metadata={
            "env": "UNITUNE_GATEWAY",
            "help": "HOST:PORT of the gateway for tuners; several are separated by commas",
        },
    )
    address: str = field(
        default="127.0.0.1:50052",
        metadata={"env": "UNITUNE_TUNER_ADDRESS", "help": "HOST:PORT to listen on for health"},
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
    checkpoint_s: float = field(
        default=600.0,
        metadata={
            "env": "UNITUNE_CHECKPOINT_S",
            "help": "seconds of a run between two checkpoints, where it goes on if its tuner is lost; 0 makes none",
        },
    )
    health_address: str | None = field(
        default=None,
        metadata={
            "env": "UNITUNE_HEALTH_ADDRESS",
            "help": "HOST:PORT for health alone; empty serves it on the address",
        },
    )

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"UNITUNE_THREADS is {self.threads}: it must be 0 or more")
        if self.weights_codec not in CODECS:
            raise ValueError(f"UNITUNE_WEIGHTS_CODEC is {self.weights_codec!r}: it must be one of {', '.join(CODECS)}")
        if not self.checkpoint_s >= 0:
            raise ValueError(f"UNITUNE_CHECKPOINT_S is {self.checkpoint_s:g}: it must be 0 or more")
        if not self.gateways():
            raise ValueError("UNITUNE_GATEWAY is empty: it must be HOST:PORT of a gateway")
        if not self.store:
            raise ValueError("UNITUNE_STORE is empty: it must be a folder or the URL of a bucket")

    def gateways(self) -> list[str]:
        """The addresses of all gateways."""
        return [address.strip() for address in self.gateway.split(",") if address.strip()]

    def num_threads(self) -> int:
        """Threads to compute with."""
        return self.threads or num_cores()
