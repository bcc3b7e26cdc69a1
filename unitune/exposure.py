"""What a service must have before it listens where others reach it, unless a setting does without it by name."""

from collections.abc import Mapping

from unitune.loopback import is_this_machine

VARIABLE = "UNITUNE_INSECURE"
NO_KEYS, NO_TLS = "no-keys", "no-tls"
KNOWN = (NO_KEYS, NO_TLS)
HELP = (
    f"what to do without at an address that others reach, of {NO_KEYS} and {NO_TLS}, separated by commas, such as "
    "where a mesh of services has its own; empty refuses to start without them"
)


def allowed(text: str) -> frozenset[str]:
    """What a setting does without. Raises ValueError for other words."""
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    if unknown := words.difference(KNOWN):
        raise ValueError(f"{VARIABLE} is {text!r}: {sorted(unknown)[0]!r} is none of {', '.join(KNOWN)}")
    return words


def check(variable: str, address: str, lacks: Mapping[str, str], allowed: frozenset[str]) -> None:
    """Raise ValueError for an address that other machines reach, if a service lacks what it is not allowed to lack.

    `lacks` maps a word of the setting to what is missing and how to get it.
    """
    if is_this_machine(address):
        return
    for word, missing in lacks.items():
        if word not in allowed:
            raise ValueError(
                f"{variable} is {address!r}, which other machines may reach, and there are no {missing}, "
                f"or, if something else protects it, {VARIABLE}={word}"
            )
