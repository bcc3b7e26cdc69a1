"""The gateway's settings."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from unitune.service_settings import ServiceSettings
from unitune.serving import SILENCE_S

# Streams at the sampler. It has few engines, and serves first who came first: what is there waits.
SAMPLE_STREAMS = 4
MAX_SAMPLE_STREAMS = 90  # below the 100 streams of one connection that HTTP/2 recommends a server to allow at least
# What admission allows.
LIMITS = (
    *("tenant_tunings", "tenant_edits", "tenant_requests_per_s", "tenant_bytes"),
    *("open_tunings", "open_edits", "edit_steps", "tuning_pixels"),
)
MAX_CONNECTION_AGE_S = 2_000_000  # gRPC counts it in milliseconds, in 31 bits


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(ServiceSettings):
    """Read by `unitune.settings.load`; fields without a variable are for tests."""

    TABLE: ClassVar[str] = "gateway"

    address: str = field(
        default="127.0.0.1:50051", metadata={"env": "UNITUNE_GATEWAY_ADDRESS", "help": "HOST:PORT to listen on"}
    )
    tuner: str = field(default="127.0.0.1:50052", metadata={"env": "UNITUNE_TUNER", "help": "HOST:PORT of the tuner"})
    sampler: str = field(
        default="127.0.0.1:50053", metadata={"env": "UNITUNE_SAMPLER", "help": "HOST:PORT of the sampler"}
    )
    state: Path = field(
        metadata={"env": "UNITUNE_STATE", "help": "a file for the tunings, their queue and their events"}
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
    tenant_tunings: int = field(
        default=100,
        metadata={
            "env": "UNITUNE_TENANT_TUNINGS",
            "help": "tunings of one tenant that are queued or running at a time; 0 means no limit",
        },
    )
    tenant_edits: int = field(
        default=256,
        metadata={
            "env": "UNITUNE_TENANT_EDITS",
            "help": "edits and comparisons of one tenant that run or wait at a time; 0 means no limit",
        },
    )
    tenant_requests_per_s: float = field(
        default=100.0,
        metadata={
            "env": "UNITUNE_TENANT_REQUESTS_PER_S",
            "help": "calls of one tenant a second, of which those of ten seconds may come at once; 0 means no limit",
        },
    )
    tenant_bytes: int = field(
        default=0,
        metadata={
            "env": "UNITUNE_TENANT_BYTES",
            "help": "bytes of pictures and tuned weights that one tenant may store; 0 means no limit",
        },
    )
    open_tunings: int = field(
        default=1000,
        metadata={
            "env": "UNITUNE_OPEN_TUNINGS",
            "help": "tunings of all tenants that are queued or running at a time; 0 means no limit",
        },
    )
    open_edits: int = field(
        default=1024,
        metadata={
            "env": "UNITUNE_OPEN_EDITS",
            "help": "edits and comparisons of all tenants that run or wait at a time; 0 means no limit",
        },
    )
    edit_steps: int = field(
        default=20_000,
        metadata={
            "env": "UNITUNE_EDIT_STEPS",
            "help": "steps that one edit may ask for: steps x seeds x repeats x attempts; 0 means no limit",
        },
    )
    tuning_pixels: int = field(
        default=25_000_000_000,  # every method's own defaults at 1024x1024, which are 21e9 at most
        metadata={
            "env": "UNITUNE_TUNING_PIXELS",
            "help": "what one tuning may ask for: updates x batch x pixels of the base model; 0 means no limit",
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
    silence_s: float = SILENCE_S  # of tuner or sampler in a stream, until it is given up
    heartbeat_s: float = 15.0  # longest silence of a stream
    retry_s: float = 1.0  # wait before the tuner is asked again; doubles up to 16 times as much
    sweep_s: float = 15.0  # between two looks for tunings that expire, or that are RUNNING and run by nobody
    store_sweep_s: float = 900.0  # between two looks through the store for what nobody owns
    poll_s: float = 5.0  # between two questions to tuner and sampler what they are

    def is_filtered(self, tenant: str) -> bool:
        """Whether the edits of a tenant go through the content filter."""
        names = {name.strip() for name in self.filtered_tenants.split(",")}
        return tenant in names or "*" in names

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.connection_age_s != 0 and not 1 <= self.connection_age_s <= MAX_CONNECTION_AGE_S:
            raise ValueError(
                f"UNITUNE_CONNECTION_AGE_S is {self.connection_age_s:g}: "
                f"it must be 1 to {MAX_CONNECTION_AGE_S} seconds, or 0 for never"
            )
        if self.keep_unused_s < 0:
            raise ValueError(f"UNITUNE_KEEP_UNUSED_S is {self.keep_unused_s:g}: it must be 0 or more")
        limits = {setting.name: setting.metadata["env"] for setting in fields(self) if setting.name in LIMITS}
        for name, variable in limits.items():
            if getattr(self, name) < 0:
                raise ValueError(f"{variable} is {getattr(self, name):g}: it must be 0, for no limit, or more")
        if not 1 <= self.sample_streams <= MAX_SAMPLE_STREAMS:
            raise ValueError(f"UNITUNE_SAMPLE_STREAMS is {self.sample_streams}: it must be 1 to {MAX_SAMPLE_STREAMS}")
