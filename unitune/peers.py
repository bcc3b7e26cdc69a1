"""mTLS between the services: each has a certificate of one authority, whose name says which service it is.

The names are in the certificates alone, so that they hold at any address: DNS names of the subject (SAN).
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import grpc

from unitune import exposure
from unitune.certificates import CertificateFiles, CertificateReader
from unitune.errors import PermissionDenied

GATEWAY, TUNER, SAMPLER = "gateway.unitune.svc", "tuner.unitune.svc", "sampler.unitune.svc"


def peer_files(certificate: Path | None, key: Path | None, authority: Path | None) -> CertificateFiles | None:
    """The files of a service's settings; None without any. Raises ValueError for some without the others."""
    given = {"UNITUNE_PEER_CERT": certificate, "UNITUNE_PEER_KEY": key, "UNITUNE_PEER_CA": authority}
    if missing := [name for name, path in given.items() if path is None]:
        if len(missing) < len(given):
            raise ValueError(f"{missing[0]} is not set: {', '.join(given)} go together")
        return None
    assert certificate is not None and key is not None
    return CertificateFiles(certificate, key, authority)


def check_exposed(variable: str, address: str, files: CertificateFiles | None, insecure: str) -> None:
    """Raise ValueError for an internal service that others reach and that does not know its peers."""
    lacks = {} if files is not None else {exposure.NO_TLS: "certificates: set UNITUNE_PEER_CERT, _KEY and _CA"}
    exposure.check(variable, address, lacks, exposure.allowed(insecure))


@dataclass(frozen=True)
class PeerDoor:
    """Lets in calls of the services with these names, whose certificates the transport has checked."""

    names: Sequence[str]

    async def admit(self, method: str, context: Any) -> None:
        """Raises PermissionDenied (PEER_REFUSED)."""
        theirs = context.auth_context().get("x509_subject_alternative_name", [])
        if not {name.encode() for name in self.names}.intersection(theirs):
            shown = ", ".join(name.decode(errors="replace") for name in theirs) or "none"
            raise PermissionDenied(
                f"the caller's certificate is of {shown}, and this service answers {' and '.join(self.names)} alone",
                reason="PEER_REFUSED",
                metadata={"names": shown},
            )

    def holding(self, method: str) -> AbstractAsyncContextManager[None]:
        """A certificate is looked at when a call begins."""
        return nullcontext()

    def check(self, request: Any) -> None:
        """What a peer asks is checked by the service itself."""


class Served(TypedDict, total=False):
    """Arguments of `serving.serve`."""

    credentials: grpc.ServerCredentials
    door: PeerDoor


def served_by(certificates: CertificateReader | None, callers: Sequence[str] = (GATEWAY,)) -> Served:
    """With certificates, an internal service answers those of these names alone."""
    if certificates is None:
        return {}
    return {"credentials": certificates.server_credentials(), "door": PeerDoor(callers)}
