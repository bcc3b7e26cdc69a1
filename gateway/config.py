"""The gateway's settings."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from gateway import sampler_addresses
from gateway.database import SERVER_SCHEMES
from gateway.jwks import is_loopback
from gateway.tuning_queue import LEASE_S
from unitune import exposure, peers
from unitune.certificates import CertificateFiles
from unitune.service_settings import ServiceSettings
from unitune.serving import SILENCE_S
from unitune.settings import setting

# Streams at the sampler. It has few engines, and serves first who came first: what is there waits.
SAMPLE_STREAMS = 4
MAX_SAMPLE_STREAMS = 90  # below the 100 streams of one connection that HTTP/2 recommends a server to allow at least
# What admission allows.
LIMITS = (
    *("tenant_tunings", "tenant_running_tunings", "tenant_kept_tunings"),
    *("tenant_edits", "tenant_requests_per_s", "tenant_bytes"),
    *("open_tunings", "open_edits", "edit_steps", "tuning_pixels"),
)
MAX_CONNECTION_AGE_S = 2_000_000  # gRPC counts it in milliseconds, in 31 bits


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(ServiceSettings):
    """Read by `unitune.settings.load`; fields without a variable are for tests."""

    TABLE: ClassVar[str] = "gateway"

    address: str = setting("127.0.0.1:50051", "UNITUNE_GATEWAY_ADDRESS", "HOST:PORT to listen on")
    internal_address: str = setting(
        "127.0.0.1:50054", "UNITUNE_INTERNAL_ADDRESS", "HOST:PORT to listen on for tuners alone"
    )
    sampler: str = setting(
        "127.0.0.1:50053",
        "UNITUNE_SAMPLER",
        "HOST:PORT of the sampler, or of several, separated by commas; a name with several addresses means all of them",
    )
    state: str = field(
        metadata={
            "env": "UNITUNE_STATE",
            "help": "a file for the tunings, their queue and their events; or, for several gateways, the URL of a "
            "PostgreSQL database, such as postgresql://user@host/unitune",
        }
    )
    state_listen: str = setting(
        "",
        "UNITUNE_STATE_LISTEN",
        "the URL of the same database without a pooler between, where UNITUNE_STATE is that of a pooler",
    )
    store_signed_endpoint: str = setting(
        "",
        "UNITUNE_STORE_SIGNED_ENDPOINT",
        "http(s)://HOST of the bucket in URLs for callers, where they reach it at another address than the gateway",
    )
    connection_age_s: float = setting(
        600.0,
        "UNITUNE_CONNECTION_AGE_S",
        "seconds after which a client's connection takes no new calls, so that clients find new replicas; "
        "streams that run go on, and 0 means never",
    )
    sample_streams: int = setting(
        SAMPLE_STREAMS,
        "UNITUNE_SAMPLE_STREAMS",
        f"edits that are at the samplers at a time, for each, 1 to {MAX_SAMPLE_STREAMS}; others wait in the gateway",
    )
    tenant_tunings: int = setting(
        100, "UNITUNE_TENANT_TUNINGS", "tunings of one tenant that are queued or running at a time; 0 means no limit"
    )
    tenant_running_tunings: int = setting(
        0,
        "UNITUNE_TENANT_RUNNING_TUNINGS",
        "tunings of one tenant that run at a time, on all tuners together; further ones wait in the queue, and 0 means "
        "no limit",
    )
    tenant_kept_tunings: int = setting(
        10_000,
        "UNITUNE_TENANT_KEPT_TUNINGS",
        "tunings of one tenant that are kept, ended ones too, until they are deleted; 0 means no limit",
    )
    tenant_edits: int = setting(
        256, "UNITUNE_TENANT_EDITS", "edits and comparisons of one tenant that run or wait at a time; 0 means no limit"
    )
    tenant_requests_per_s: float = setting(
        100.0,
        "UNITUNE_TENANT_REQUESTS_PER_S",
        "calls of one tenant a second, of which those of ten seconds may come at once; 0 means no limit",
    )
    tenant_bytes: int = setting(
        0, "UNITUNE_TENANT_BYTES", "bytes of pictures and tuned weights that one tenant may store; 0 means no limit"
    )
    open_tunings: int = setting(
        1000, "UNITUNE_OPEN_TUNINGS", "tunings of all tenants that are queued or running at a time; 0 means no limit"
    )
    open_edits: int = setting(
        1024, "UNITUNE_OPEN_EDITS", "edits and comparisons of all tenants that run or wait at a time; 0 means no limit"
    )
    edit_steps: int = setting(
        20_000,
        "UNITUNE_EDIT_STEPS",
        "steps that one edit may ask for, with those of the tiles of its second pass: steps x seeds x repeats x "
        "attempts; 0 means no limit",
    )
    tuning_pixels: int = setting(
        25_000_000_000,  # every method's own defaults at 1024x1024, which are 21e9 at most
        "UNITUNE_TUNING_PIXELS",
        "what one tuning may ask for: updates x batch x pixels of the base model; 0 means no limit",
    )
    keep_unused_s: float = setting(
        24 * 3600.0,
        "UNITUNE_KEEP_UNUSED_S",
        "seconds that a picture that no tuning uses, or what else nobody owns, is kept; 0 means for ever",
    )
    filtered_tenants: str = setting(
        "",
        "UNITUNE_FILTERED_TENANTS",
        "tenants, separated by commas, whose edits the sampler's content filter checks; `*` means all, and "
        "empty means none",
    )
    lease_s: float = setting(
        LEASE_S,
        "UNITUNE_LEASE_S",
        "seconds without a report of its tuner after which a tuning is given to another one, at least 1",
    )
    admin_key_file: Path | None = setting(
        None,
        "UNITUNE_ADMIN_KEY_FILE",
        "a file with the API key by which other keys are made, itself made if it is missing; every call "
        "then needs a credential",
    )
    oidc_issuer: str = setting(
        "",
        "UNITUNE_OIDC_ISSUER",
        "the issuer whose tokens are taken as credentials, as their claim `iss` says it; empty takes none",
    )
    oidc_audience: str = setting("", "UNITUNE_OIDC_AUDIENCE", "what must be in a token's claim `aud`")
    oidc_jwks: str = setting("", "UNITUNE_OIDC_JWKS", "the https URL of the issuer's public keys (its `jwks_uri`)")
    oidc_tenant_claim: str = setting("tenant", "UNITUNE_OIDC_TENANT_CLAIM", "the claim that names the tenant")
    tls_cert: Path | None = setting(
        None,
        "UNITUNE_TLS_CERT",
        "a PEM file with the certificate for clients, followed by those that vouch for it; turns TLS on",
    )
    tls_key: Path | None = setting(None, "UNITUNE_TLS_KEY", "a PEM file with the key of that certificate")
    silence_s: float = SILENCE_S  # of the sampler in a stream, until it is given up
    heartbeat_s: float = 15.0  # longest silence of a stream
    retry_s: float = 1.0  # wait before a sampler that did not answer is asked again
    sweep_s: float = 15.0  # between two looks for tunings that expire
    model_gone_s: float = 3600.0  # without a tuner of a base model, while there are others, until its tunings fail
    store_sweep_s: float = 900.0  # between two looks through the store for what nobody owns
    position_s: float = 5.0  # between two looks for the place in the queue of a tuning that is watched
    poll_s: float = 5.0  # between two questions to the samplers what they are
    resolve_s: float = 5.0  # between two looks for the addresses that a name of samplers stands for

    @property
    def asks_for_credentials(self) -> bool:
        """Whether every call needs a credential, whatever the state holds."""
        return self.admin_key_file is not None or bool(self.oidc_issuer)

    @property
    def tls_files(self) -> CertificateFiles | None:
        """The certificate by which clients know the gateway; None without TLS. Raises ValueError for half of it."""
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            missing = "UNITUNE_TLS_CERT" if self.tls_cert is None else "UNITUNE_TLS_KEY"
            raise ValueError(f"{missing} is not set: UNITUNE_TLS_CERT and UNITUNE_TLS_KEY go together")
        return CertificateFiles(self.tls_cert, self.tls_key)

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
        if not str(self.state):
            raise ValueError("UNITUNE_STATE is empty: it must be a path, or the URL of a PostgreSQL database")
        if "://" in str(self.state) and not str(self.state).startswith(SERVER_SCHEMES):
            raise ValueError("UNITUNE_STATE is a URL of another kind: give a path, or postgresql://...")
        if self.state_listen and not self.state_listen.startswith(SERVER_SCHEMES):
            raise ValueError("UNITUNE_STATE_LISTEN is no URL of a PostgreSQL database: give postgresql://...")
        if self.state_listen and not str(self.state).startswith(SERVER_SCHEMES):
            raise ValueError("UNITUNE_STATE_LISTEN is set: leave it out, because UNITUNE_STATE is a file")
        if self.store_signed_endpoint and not self.store_signed_endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"UNITUNE_STORE_SIGNED_ENDPOINT is {self.store_signed_endpoint!r}: it must be http(s)://HOST"
            )
        if self.store_signed_endpoint and "://" not in self.store:
            raise ValueError("UNITUNE_STORE_SIGNED_ENDPOINT is set: leave it out, because UNITUNE_STORE is a folder")
        try:
            sampler_addresses.named(self.sampler)
        except ValueError as error:
            raise ValueError(f"UNITUNE_SAMPLER is {self.sampler!r}: {error}") from error
        if self.lease_s < 1:
            raise ValueError(f"UNITUNE_LEASE_S is {self.lease_s:g}: it must be 1 or more")
        if self.keep_unused_s < 0:
            raise ValueError(f"UNITUNE_KEEP_UNUSED_S is {self.keep_unused_s:g}: it must be 0 or more")
        limits = {setting.name: setting.metadata["env"] for setting in fields(self) if setting.name in LIMITS}
        for name, variable in limits.items():
            if getattr(self, name) < 0:
                raise ValueError(f"{variable} is {getattr(self, name):g}: it must be 0, for no limit, or more")
        if not 1 <= self.sample_streams <= MAX_SAMPLE_STREAMS:
            raise ValueError(f"UNITUNE_SAMPLE_STREAMS is {self.sample_streams}: it must be 1 to {MAX_SAMPLE_STREAMS}")
        self._check_oidc()
        allowed = exposure.allowed(self.insecure)
        if self.asks_for_credentials and exposure.NO_KEYS in allowed:
            raise ValueError(f"{exposure.VARIABLE} is {self.insecure!r}: leave {exposure.NO_KEYS} out beside keys")
        lacks = {}
        if not self.asks_for_credentials:
            lacks[exposure.NO_KEYS] = "API keys: set UNITUNE_ADMIN_KEY_FILE, or UNITUNE_OIDC_ISSUER for tokens"
        if self.tls_files is None:
            lacks[exposure.NO_TLS] = "certificates: set UNITUNE_TLS_CERT and UNITUNE_TLS_KEY"
        peers.check_exposed("UNITUNE_INTERNAL_ADDRESS", self.internal_address, self.peer_files, self.insecure)
        exposure.check("UNITUNE_GATEWAY_ADDRESS", self.address, lacks, allowed)

    def _check_oidc(self) -> None:
        given = {
            "UNITUNE_OIDC_ISSUER": self.oidc_issuer,
            "UNITUNE_OIDC_AUDIENCE": self.oidc_audience,
            "UNITUNE_OIDC_JWKS": self.oidc_jwks,
        }
        missing = [name for name, value in given.items() if not value]
        if 0 < len(missing) < len(given):
            raise ValueError(f"{missing[0]} is not set: {', '.join(given)} go together")
        if self.oidc_jwks and not self.oidc_jwks.startswith("https://") and not is_loopback(self.oidc_jwks):
            raise ValueError(f"UNITUNE_OIDC_JWKS is {self.oidc_jwks!r}: it must be an https URL")
        if not self.oidc_tenant_claim:
            raise ValueError("UNITUNE_OIDC_TENANT_CLAIM is empty: it must name a claim")
