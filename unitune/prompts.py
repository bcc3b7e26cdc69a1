"""The wording of prompts: where the rare tokens go, and which words a base model does not know."""

import difflib
import re
from collections.abc import Collection

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
NUM_NEAREST = 3


def with_rare_tokens(rare_tokens: str, prompt: str) -> str:
    """UniTune's "[r] p" (arXiv 2210.09477): rare tokens, a space, the prompt; just once, however often it is applied.

    Tuning itself uses the rare tokens alone, an empty prompt here.
    """
    rare_tokens, prompt = rare_tokens.strip(), prompt.strip()
    if not rare_tokens or prompt == rare_tokens or prompt.startswith(f"{rare_tokens} "):
        return prompt
    return f"{rare_tokens} {prompt}".strip()


def unknown_words(prompt: str, vocabulary: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The prompt's words that are not in a vocabulary, in order, each once, each with its nearest known words.

    Case does not count. An empty vocabulary is open: every word is known.
    """
    if not vocabulary:
        return []
    known = {word.lower(): word for word in vocabulary}
    words = dict.fromkeys(word.lower() for word in WORD.findall(prompt))
    return [
        (word, tuple(known[near] for near in difflib.get_close_matches(word, known, NUM_NEAREST)))
        for word in words
        if word not in known
    ]
