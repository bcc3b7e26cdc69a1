"""Settings of the tuner's process."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unitune import peers
from unitune.choices import CODECS
from unitune.service_settings import ComputingSettings
from unitune.settings import setting

DEFAULT_CODEC = "sign"  # within an eighth of fp16, and edits as the exact weights do (bench/README.md)
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "stickerbook" / "model"


@dataclass(frozen=True, kw_only=True)
class TunerConfig(ComputingSettings):
    """Read in `__main__`, and passed down."""

    TABLE: ClassVar[str] = "tuner"

    gateway: str = setting(
        "127.0.0.1:50054", "UNITUNE_GATEWAY", "HOST:PORT of the gateway for tuners; several are separated by commas"
    )
    address: str = setting("127.0.0.1:50052", "UNITUNE_TUNER_ADDRESS", "HOST:PORT to listen on for health")
    base_model: Path = setting(EMBEDDED_MODEL, "UNITUNE_BASE_MODEL", "the base model, a diffusers folder")
    weights_codec: str = setting(
        DEFAULT_CODEC,
        "UNITUNE_WEIGHTS_CODEC",
        f"how tuned weights are stored: {', '.join(CODECS)}; LoRA tunings always as factors, unless none",
    )
    checkpoint_s: float = setting(
        600.0,
        "UNITUNE_CHECKPOINT_S",
        "seconds of a run between two checkpoints, where it goes on if its tuner is lost; 0 makes none",
    )
    tuning_memory_gb: float = setting(
        0.0,
        "UNITUNE_TUNING_MEMORY_GB",
        "memory in GB that a tuning may take beside the base model, slower with less; 0 takes what is free",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        peers.check_exposed("UNITUNE_TUNER_ADDRESS", self.address, self.peer_files, self.insecure)
        for address in self.gateways():  # which say what to tune, and are not to be taken for others
            peers.check_exposed("UNITUNE_GATEWAY", address, self.peer_files, self.insecure)
        if not self.tuning_memory_gb >= 0:
            raise ValueError(f"UNITUNE_TUNING_MEMORY_GB is {self.tuning_memory_gb:g}: it must be 0 or more")
        if self.weights_codec not in CODECS:
            raise ValueError(f"UNITUNE_WEIGHTS_CODEC is {self.weights_codec!r}: it must be one of {', '.join(CODECS)}")
        if not self.checkpoint_s >= 0:
            raise ValueError(f"UNITUNE_CHECKPOINT_S is {self.checkpoint_s:g}: it must be 0 or more")
        if not self.gateways():
            raise ValueError("UNITUNE_GATEWAY is empty: it must be HOST:PORT of a gateway")

    def gateways(self) -> list[str]:
        """The addresses of all gateways."""
        return [address.strip() for address in self.gateway.split(",") if address.strip()]
