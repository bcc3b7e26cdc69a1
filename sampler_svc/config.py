"""The sampler's settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from unitune import peers
from unitune.service_settings import ComputingSettings
from unitune.settings import setting

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
AUTO = "auto"
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

    def __post_init__(self) -> None:
        super().__post_init__()
        peers.check_exposed("UNITUNE_SAMPLER_ADDRESS", self.address, self.peer_files, self.insecure)
        if self.backend not in BACKENDS:
            raise ValueError(f"UNITUNE_SAMPLER_BACKEND is {self.backend!r}: it must be one of {', '.join(BACKENDS)}")
        if self.refit_mode not in REFIT_MODES:
            raise ValueError(f"UNITUNE_REFIT_MODE is {self.refit_mode!r}: it must be one of {', '.join(REFIT_MODES)}")
