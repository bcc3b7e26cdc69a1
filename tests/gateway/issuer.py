"""An issuer of tokens on loopback: real HTTP, real keys."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example.com/", "unitune"
KINDS = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


def new_private_key(algorithm: str) -> Any:
    """A key that signs."""
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


class Issuer:
    """Serves the public halves of its keys at `url`, and signs with them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: dict[str, tuple[str, Any]] = {}  # by kid: algorithm and private key
        self.fetches = 0
        self.status = 200
        self.body: bytes | None = None  # in place of the keys
        self.wait_s = 0.0
        self.drip_s = 0.0  # between two bytes

    def add(self, kid: str, algorithm: str = "ES256") -> None:
        """A new key."""
        self.keys[kid] = algorithm, new_private_key(algorithm)

    def public_pem(self, kid: str) -> bytes:
        """The public half of a key."""
        public = self.keys[kid][1].public_key()
        return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def document(self) -> bytes:
        """The JWKS."""
        if self.body is not None:
            return self.body
        listed = [
            {**KINDS[algorithm].to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
            for kid, (algorithm, key) in self.keys.items()
        ]
        return json.dumps({"keys": listed}).encode()

    def token(self, kid: str, *, headers: dict[str, Any] | None = None, leave_out: str = "", **claims: Any) -> str:
        """A token that is right but for what is given here."""
        now_s = int(time.time())
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "exp": now_s + 600, "iat": now_s, "tenant": "acme"}
        said |= {"scope": "read edit"} | claims
        said.pop(leave_out, None)
        algorithm, key = self.keys[kid]
        return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid} | (headers or {}))


@contextmanager
def running() -> Iterator[Issuer]:
    """An issuer that answers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetches += 1
            time.sleep(issuer.wait_s)
            document = issuer.document()
            self.send_response(issuer.status)
            if issuer.status == 302:
                self.send_header("Location", issuer.url)
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            if not issuer.drip_s:
                self.wfile.write(document)
            with suppress(OSError):  # the reader may have given up
                for byte in document if issuer.drip_s else b"":
                    self.wfile.write(bytes([byte]))
                    time.sleep(issuer.drip_s)

        def log_message(self, *words: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}/jwks.json")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
