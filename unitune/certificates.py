"""TLS: the files of certificates, read anew when they change, and what is made of them for servers and channels."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from unitune import telemetry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CertificateFiles:
    """PEM files of a service: its certificate with those that vouch for it, its key, and who vouches for its peers."""

    certificate: Path
    key: Path
    authority: Path | None = None


@dataclass(frozen=True)
class Certificates:
    """What the files held."""

    certificate: bytes
    key: bytes
    authority: bytes | None


class CertificateReader:
    """Reads the files again whenever they have changed. A file that is half written, or a key that is not the
    certificate's, changes nothing: what was read last stays.
    """

    def __init__(self, files: CertificateFiles) -> None:
        """Raises OSError, naming the file, if they cannot be used."""
        self._files = files
        self._refused: Certificates | None = None
        self.current = _checked(files, _read(files))

    def newest(self) -> Certificates:
        """Read the files if they have changed; what is to be used now. It is another object than before only after a
        change, so that each of several users can see whether its own is the newest.
        """
        try:
            read = _read(self._files)
            if read in (self.current, self._refused):
                return self.current
            self._refused = read  # not checked again until it changes
            self.current = _checked(self._files, read)
        except OSError as error:
            detail = f"{error}; the old one stays in use"
            telemetry.event(logger, "certificate not read", level=logging.WARNING, detail=detail)
            return self.current
        telemetry.event(logger, "certificate read", detail=str(self._files.certificate))
        return self.current

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server. With an authority, a caller must have a certificate of it, too. The files are looked at when a
        connection begins, so that a new certificate needs no restart.
        """
        used = self.current

        def newer() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            before, used = used, self.newest()
            return _configuration(used) if used is not before else None

        return grpc.dynamic_ssl_server_credentials(
            _configuration(used),
            newer,  # type: ignore[arg-type]  # None, for no change, is missing in the stubs
            require_client_authentication=self._files.authority is not None,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a server whose certificate is of the authority."""
        now = self.current
        return grpc.ssl_channel_credentials(now.authority, private_key=now.key, certificate_chain=now.certificate)


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pair = certificates.key, certificates.certificate
    return grpc.ssl_server_certificate_configuration([pair], certificates.authority)


def _read(files: CertificateFiles) -> Certificates:
    authority = files.authority.read_bytes() if files.authority is not None else None
    return Certificates(files.certificate.read_bytes(), files.key.read_bytes(), authority)


def _checked(files: CertificateFiles, read: Certificates) -> Certificates:
    """What was read, if it can be used and is still in the files. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        problem = "is no key of that certificate, without a password, in PEM"
        raise OSError(f"{files.certificate} with {files.key}: the latter {problem}") from error
    if files.authority is not None:
        try:
            context.load_verify_locations(files.authority)
        except ssl.SSLError as error:
            raise OSError(f"{files.authority}: it has no certificates in PEM") from error
    if _read(files) != read:
        raise OSError(f"{files.certificate} is being changed")
    return read


def _no_password() -> str:
    raise ValueError("the key has a password")
