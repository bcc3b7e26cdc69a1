"""The sampler's settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from unitune import peers
from unitune.free_memory import free_memory_bytes
from unitune.service_settings import ComputingSettings
from unitune.settings import setting

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
AUTO = "auto"
# Of decoded weights, where nothing else is set: the share of the free memory, and what it is where that is unknown.
KEPT_WEIGHTS_SHARE, KEPT_WEIGHTS_BYTES = 8, 256 << 20
REFIT_MODES = (AUTO, "new_session", "in_place")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(ComputingSettings):
    """Read once, in `__main__`."""

    TABLE: ClassVar[str] = "sampler"

    engine: Path = field(
        metadata={"env": "UNITUNE_ENGINE", "help": "a folder written by `python -m sampler_svc.build`"}
    )
    address: str = setting("127.0.0.1:50053", "UNITUNE_SAMPLER_ADDRESS", "HOST:PORT to listen on")
    backend: str = setting(BACKENDS[0], "UNITUNE_SAMPLER_BACKEND", f"what runs the engine: {', '.join(BACKENDS)}")
    refit_mode: str = setting(
        AUTO, "UNITUNE_REFIT_MODE", "new_session, in_place, or auto, which chooses by the size of the base model"
    )
    kept_weights_gb: float | None = setting(
        None,
        "UNITUNE_KEPT_WEIGHTS_GB",
        "memory in GB for decoded weights of the tunings used last, whose refits then read no file; 0 keeps none, and "
        "empty takes an eighth of what is free at the start",
    )
    clipseg: Path | None = setting(
        None,
        "UNITUNE_CLIPSEG",
        "a folder written by `python -m tuner_svc.export.clipseg`, for masks by word; empty means none",
    )
    content_filter: Path | None = setting(
        None,
        "UNITUNE_CONTENT_FILTER",
        "a folder written by `python -m tuner_svc.export.content_filter`, for the edits of those tenants "
        "that the gateway's UNITUNE_FILTERED_TENANTS names; empty means none",
    )

    def kept_weights_bytes(self) -> int:
        """Bytes for decoded weights, to be asked when the engines are loaded."""
        if self.kept_weights_gb is not None:
            return round(1e9 * self.kept_weights_gb)
        free_bytes = free_memory_bytes()
        return KEPT_WEIGHTS_BYTES if free_bytes is None else free_bytes // KEPT_WEIGHTS_SHARE

    def __post_init__(self) -> None:
        super().__post_init__()
        peers.check_exposed("UNITUNE_SAMPLER_ADDRESS", self.address, self.peer_files, self.insecure)
        if self.backend not in BACKENDS:
            raise ValueError(f"UNITUNE_SAMPLER_BACKEND is {self.backend!r}: it must be one of {', '.join(BACKENDS)}")
        if self.kept_weights_gb is not None and self.kept_weights_gb < 0:
            raise ValueError(f"UNITUNE_KEPT_WEIGHTS_GB is {self.kept_weights_gb:g}: it must be 0 or more, or empty")
        if self.refit_mode not in REFIT_MODES:
            raise ValueError(f"UNITUNE_REFIT_MODE is {self.refit_mode!r}: it must be one of {', '.join(REFIT_MODES)}")
