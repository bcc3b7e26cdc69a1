"""Whose call it is that runs, and what its credential allows."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from unitune.errors import PermissionDenied
from unitune.v1.scope_pb2 import Scope

WORDS = {value: name.removeprefix("SCOPE_").lower() for name, value in Scope.items() if value}
SCOPES = {word: value for value, word in WORDS.items()}


@dataclass(frozen=True)
class Principal:
    """Who a credential stands for. Without a tenant it is anybody who reaches a server that asks for none."""

    tenant: str
    scopes: frozenset[int]
    api_key: str = ""  # the id of the key that was sent, if it was one

    def require(self, scopes: Iterable[int], what: str) -> None:
        """Raise PermissionDenied (SCOPE_MISSING) unless the credential has one of the scopes; `what` needs them."""
        if self.scopes.isdisjoint(scopes):
            needed, has = in_words(scopes), in_words(self.scopes, ", ")
            raise PermissionDenied(
                f"{what} needs a credential with the scope {needed or 'that none has'}, and this one has "
                f"{has or 'none'}: use another, such as an API key made by `unitune keys create --scope`",
                reason="SCOPE_MISSING",
                metadata={"needed": needed, "scopes": has},
            )


ANYBODY = Principal("", frozenset(WORDS))

# Of the call that runs; tasks that it begins have it, too. What the gateway does by itself is nobody's call.
_current: ContextVar[Principal] = ContextVar("principal", default=ANYBODY)


def current() -> Principal:
    """Whose call runs."""
    return _current.get()


def begin(principal: Principal) -> None:
    """From here on the call that runs is this one's."""
    _current.set(principal)


def in_words(scopes: Iterable[int], between: str = " or ") -> str:
    """Such as `edit or read`; empty for none."""
    return between.join(sorted(WORDS[scope] for scope in scopes if scope in WORDS))
