"""The gateway's settings."""

from dataclasses import dataclass, field
from pathlib import Path

from gateway.tuning_queue import LEASE_S
from unitune.serving import SILENCE_S

# Streams at the sampler. It has few engines, and serves first who came first: what is there waits.
SAMPLE_STREAMS = 4
MAX_SAMPLE_STREAMS = 90  # below the 100 streams of one connection that HTTP/2 recommends a server to allow at least
MAX_CONNECTION_AGE_S = 2_000_000  # gRPC counts it in milliseconds, in 31 bits


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Read from the environment by `unitune.settings.load`; fields without a variable are for tests."""

    address: str = field(
        default="127.0.0.1:50051", metadata={"env": "UNITUNE_GATEWAY_ADDRESS", "help": "HOST:PORT to listen on"}
    )
    internal_address: str = field(
        default="127.0.0.1:50054",
        metadata={"env": "UNITUNE_INTERNAL_ADDRESS", "help": "HOST:PORT to listen on for tuners alone"},
    )
    sampler: str = field(
        default="127.0.0.1:50053", metadata={"env": "UNITUNE_SAMPLER", "help": "HOST:PORT of the sampler"}
    )
    store: str = field(
        metadata={"env": "UNITUNE_STORE", "help": "a folder, or the URL of a bucket, for pictures and weights"}
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
    connection_age_s: float = field(
        default=600.0,
        metadata={
            "env": "UNITUNE_CONNECTION_AGE_S",
            "help": "seconds after which a client's connection takes no new calls, so that clients find new replicas; "
            "streams that run go on, and 0 means never",
        },
    )
    sample_streams: int = field(
        default=SAMPLE_STREAMS,
        metadata={
            "env": "UNITUNE_SAMPLE_STREAMS",
            "help": f"edits that are at the sampler at a time, 1 to {MAX_SAMPLE_STREAMS}; others wait in the gateway",
        },
    )
    keep_unused_s: float = field(
        default=24 * 3600.0,
        metadata={
            "env": "UNITUNE_KEEP_UNUSED_S",
            "help": "seconds that a picture that no tuning uses, or what else nobody owns, is kept; 0 means for ever",
        },
    )
    filtered_tenants: str = field(
        default="",
        metadata={
            "env": "UNITUNE_FILTERED_TENANTS",
            "help": "tenants, separated by commas, whose edits the sampler's content filter checks; `*` means all, and "
            "empty means none",
        },
    )
    lease_s: float = field(
        default=LEASE_S,
        metadata={
            "env": "UNITUNE_LEASE_S",
            "help": "seconds without a report of its tuner after which a tuning is given to another one, at least 1",
        },
    )
    silence_s: float = SILENCE_S  # of the sampler in a stream, until it is given up
    heartbeat_s: float = 15.0  # longest silence of a stream
    retry_s: float = 1.0  # wait before a sampler that did not answer is asked again
    sweep_s: float = 15.0  # between two looks for tunings that expire
    model_gone_s: float = 3600.0  # without a tuner of a base model, while there are others, until its tunings fail
    store_sweep_s: float = 900.0  # between two looks through the store for what nobody owns
    position_s: float = 5.0  # between two looks for the place in the queue of a tuning that is watched
    poll_s: float = 5.0  # between two questions to the sampler what it is

    def is_filtered(self, tenant: str) -> bool:
        """Whether the edits of a tenant go through the content filter."""
        names = {name.strip() for name in self.filtered_tenants.split(",")}
        return tenant in names or "*" in names

    def __post_init__(self) -> None:
        if self.connection_age_s != 0 and not 1 <= self.connection_age_s <= MAX_CONNECTION_AGE_S:
            raise ValueError(
                f"UNITUNE_CONNECTION_AGE_S is {self.connection_age_s:g}: "
                f"it must be 1 to {MAX_CONNECTION_AGE_S} seconds, or 0 for never"
            )
        if self.lease_s < 1:
            raise ValueError(f"UNITUNE_LEASE_S is {self.lease_s:g}: it must be 1 or more")
        if self.keep_unused_s < 0:
            raise ValueError(f"UNITUNE_KEEP_UNUSED_S is {self.keep_unused_s:g}: it must be 0 or more")
        if not 1 <= self.sample_streams <= MAX_SAMPLE_STREAMS:
            raise ValueError(f"UNITUNE_SAMPLE_STREAMS is {self.sample_streams}: it must be 1 to {MAX_SAMPLE_STREAMS}")
