"""The gateway's settings."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Read from the environment by `unitune.settings.load`; fields without a variable are for tests."""

    address: str = field(
        default="127.0.0.1:50051", metadata={"env": "UNITUNE_GATEWAY_ADDRESS", "help": "HOST:PORT to listen on"}
    )
    tuner: str = field(default="127.0.0.1:50052", metadata={"env": "UNITUNE_TUNER", "help": "HOST:PORT of the tuner"})
    sampler: str = field(
        default="127.0.0.1:50053", metadata={"env": "UNITUNE_SAMPLER", "help": "HOST:PORT of the sampler"}
    )
    store: str = field(
        metadata={"env": "UNITUNE_STORE", "help": "a folder, or the URL of an object store, for pictures and weights"}
    )
    state: Path = field(
        metadata={"env": "UNITUNE_STATE", "help": "a file for the tunings, their queue and their events"}
    )
    health_address: str = field(
        default="",
        metadata={
            "env": "UNITUNE_HEALTH_ADDRESS",
            "help": "HOST:PORT for health alone; empty for none of its own",
        },
    )
    heartbeat_s: float = 15.0  # longest silence of a stream
    retry_s: float = 1.0  # wait before the tuner is asked again; doubles up to 16 times as much
    sweep_s: float = 15.0  # between two looks for tunings that expire
    look_s: float = 5.0  # between two questions to tuner and sampler what they are
