"""The public keys of an issuer of tokens: fetched from its URL, and kept for a time, or until the issuer answers."""

import asyncio
import json
import logging
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import jwt

from unitune import telemetry
from unitune.errors import Unavailable
from unitune.loopback import is_this_host

logger = logging.getLogger(__name__)

KEPT_S = 600.0
BETWEEN_S = 30.0  # at least, between two fetches: unknown keys must not flood the issuer
FETCH_S = 3.0
MAX_BYTES = 1 << 20


class Jwks:
    """The keys of one issuer. It belongs to the event loop in which it is used."""

    def __init__(self, url: str, *, kept_s: float = KEPT_S, between_s: float = BETWEEN_S) -> None:
        self._url = url
        self._kept_s, self._between_s = kept_s, between_s
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s: float | None = None  # the last success, on the monotonic clock
        self._tried_s: float | None = None
        self._failed = False  # at the last try
        self._fetching: asyncio.Task[None] | None = None
        # Its own: an issuer that answers byte by byte keeps one thread, and no other work waits for that.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jwks")

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """The key of this id, None if the issuer has none. Raises Unavailable (ISSUER_DOWN) while that is not known."""
        now_s = time.monotonic()
        is_stale = self._fetched_s is None or now_s - self._fetched_s > self._kept_s
        if (is_stale or kid not in self._keys) and (self._tried_s is None or now_s - self._tried_s >= self._between_s):
            self._tried_s = now_s
            self._fetching = asyncio.create_task(self._fetch())
        if kid not in self._keys and self._fetching is not None:
            await asyncio.shield(self._fetching)  # a caller that leaves does not end it for the others
        if kid not in self._keys and self._failed:
            raise Unavailable(
                "the token cannot be checked: its issuer does not answer now",
                reason="ISSUER_DOWN",
                retry_after_s=self._between_s,
            )
        return self._keys.get(kid)

    async def close(self) -> None:
        """End a fetch that runs."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _fetch(self) -> None:
        """Replace the keys by what the issuer says; if it does not, they stay."""
        try:
            async with asyncio.timeout(FETCH_S):
                self._keys = await asyncio.get_running_loop().run_in_executor(self._thread, _read, self._url)
        except Exception as error:  # of the network, of HTTP, of JSON: whatever it is, the old keys stay
            self._failed = True
            detail = str(error) or type(error).__name__
            telemetry.event(logger, "issuer does not answer", level=logging.WARNING, detail=detail)
        else:
            self._failed, self._fetched_s = False, time.monotonic()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to a URL that nobody has allowed."""

    def redirect_request(self, *request: Any) -> None:
        return None


def _read(url: str) -> dict[str, jwt.PyJWK]:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    with urllib.request.build_opener(*handlers).open(url, timeout=FETCH_S) as answer:
        listed = json.loads(_body(answer))
    return {key.key_id: key for key in jwt.PyJWKSet.from_dict(listed).keys if key.key_id}


def _body(answer: Any) -> bytes:
    """All of an answer. Raises TimeoutError, ValueError for one that is too long."""
    ends_s, body = time.monotonic() + FETCH_S, b""
    while piece := answer.read1(MAX_BYTES):
        body += piece
        if time.monotonic() > ends_s:
            raise TimeoutError(f"it took more than {FETCH_S:g} seconds")
        if len(body) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return body


def is_loopback(url: str) -> bool:
    """Whether a URL is of this machine."""
    return is_this_host(urlsplit(url).hostname or "")
