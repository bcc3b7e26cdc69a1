"""What edited pictures are called, and that two of them never share a name."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

SLUG_CHARACTERS = 60


def slug(prompt: str) -> str:
    """A prompt as part of a file's name: `A dog, at night!` becomes `a-dog-at-night`.

    What a name cannot hold is left out; a digest tells apart what would look alike by that.
    """
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if words and len(words) <= SLUG_CHARACTERS and prompt.isascii():
        return words
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return "-".join(filter(None, [words[:SLUG_CHARACTERS].rstrip("-"), digest]))


def slugs(prompts: Iterable[str]) -> dict[str, str]:
    """The slug of each prompt, once and all different: of two that differ in signs alone, the later gets its digest."""
    named: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        name = slug(prompt)
        if name in named.values():
            name = f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
        named[prompt] = name
    return named
