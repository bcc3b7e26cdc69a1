"""Tokens of an issuer (OIDC): JWTs whose signature, issuer, audience and times are checked, by PyJWT."""

import re

import jwt

from gateway.jwks import Jwks
from gateway.principal import SCOPES, Principal
from unitune import store_paths
from unitune.errors import Unauthenticated
from unitune.v1.scope_pb2 import SCOPE_ADMIN

ALGORITHMS = ["RS256", "ES256", "EdDSA"]  # of public keys alone: with HS256 the public key would be the secret
LEEWAY_S = 30
REQUIRED = ["exp", "iss", "aud", "sub"]  # PyJWT takes a token without `exp` unless it is told

_TENANT = re.compile(store_paths.TENANT)


class Tokens:
    """Recognizes the tokens of one issuer for one audience."""

    def __init__(self, jwks: Jwks, issuer: str, audience: str, tenant_claim: str) -> None:
        self._jwks = jwks
        self._issuer, self._audience, self._tenant_claim = issuer, audience, tenant_claim

    async def principal(self, token: str) -> Principal:
        """Who a token stands for. Raises Unauthenticated (CREDENTIAL_INVALID, CREDENTIAL_ENDED), Unavailable
        (ISSUER_DOWN).
        """
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise _invalid(f"its algorithm is none of {', '.join(ALGORITHMS)}")
            kid = header.get("kid")
            key = await self._jwks.key(kid) if isinstance(kid, str) else None
            if key is None:
                raise _invalid("its issuer has no key of its `kid`")
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": REQUIRED},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired: get a new one", reason="CREDENTIAL_ENDED") from None
        except jwt.PyJWTError as error:
            raise _invalid(_words(error)) from None
        tenant, scope = claims.get(self._tenant_claim), claims.get("scope", "")
        if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
            raise _invalid(f"its claim {self._tenant_claim!r} is no tenant, which has 1 to 63 of a-z, 0-9 and -")
        words = scope.split() if isinstance(scope, str) else []
        # An issuer may grant any word to who asks for it. Keys are made by those who have an admin's key.
        scopes = frozenset(SCOPES[word] for word in words if word in SCOPES) - {SCOPE_ADMIN}
        return Principal(tenant, scopes)

    async def close(self) -> None:
        """End what runs."""
        await self._jwks.close()


def _words(error: jwt.PyJWTError) -> str:
    match error:
        case jwt.MissingRequiredClaimError():
            return f"it has no claim {error.claim!r}"
        case jwt.InvalidAudienceError():
            return "it is for another audience"
        case jwt.InvalidIssuerError():
            return "it is of another issuer"
        case jwt.ImmatureSignatureError():
            return "it is not valid yet"
        case jwt.InvalidSignatureError() | jwt.InvalidAlgorithmError() | jwt.InvalidKeyError():
            return "its signature is not the issuer's"
    return "it is no JWT that can be read"


def _invalid(why: str) -> Unauthenticated:
    return Unauthenticated(f"the token is refused: {why}", reason="CREDENTIAL_INVALID", metadata={"why": why})
