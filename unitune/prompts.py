"""The wording of prompts: where the rare tokens go, and which words a base model does not know."""

import difflib
import re
from collections.abc import Callable, Collection, Sequence

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
NUM_NEAREST = 3
ARTICLES = ("a", "an", "the")


def with_rare_tokens(rare_tokens: str, prompt: str) -> str:
    """UniTune's "[r] p" (arXiv 2210.09477): rare tokens, a space, the prompt. Applying it twice changes nothing.

    The prompt of a tuning is the rare tokens alone: give an empty prompt.
    """
    rare_tokens, prompt = rare_tokens.strip(), prompt.strip()
    if not rare_tokens or prompt == rare_tokens or prompt.startswith(f"{rare_tokens} "):
        return prompt
    return f"{rare_tokens} {prompt}".strip()


def mentions(prompt: str, words: str) -> bool:
    """Whether the prompt has these words, as whole words and in this order; case does not count."""
    return _whole_words(words).search(prompt) is not None


def spans_of(text: str, words: str) -> list[tuple[int, int]]:
    """Each mention of the words in a text: its first character, and the one after its last."""
    return [found.span() for found in _whole_words(words).finditer(text)]


def without(prompt: str, words: str) -> str:
    """The prompt without the words."""
    return _whole_words(words).sub(" ", prompt).strip() if words.strip() else prompt


def with_words_before(prompt: str, words: str, noun: str) -> str:
    """The words before the noun's first mention, as DreamBooth binds them: "a [words] [noun] on a beach".

    A prompt that already has the words, or lacks the noun, does not change.
    """
    if mentions(prompt, words):
        return prompt
    return _whole_words(noun).sub(lambda found: f"{words.strip()} {found[0]}", prompt, count=1)


def with_words_instead(prompt: str, words: str, noun: str) -> str:
    """The words in place of the noun's first mention, as Textual Inversion's placeholder: "a [words] on a beach".

    A prompt that already has the words, or lacks the noun, does not change.
    """
    return prompt if mentions(prompt, words) else _whole_words(noun).sub(lambda _: words.strip(), prompt, count=1)


def ids_with_vectors(
    prompt: str,
    placeholder: str,
    num_vectors: int,
    encode: Callable[[str], Sequence[int]],
    empty: Sequence[int],
) -> list[int]:
    """A prompt's token ids, with -1 to -num_vectors wherever the placeholder stands (unitune.base_model).

    `encode` gives the ids of a piece of text, without begin and end. `empty` are all ids of the empty prompt: begin,
    end, padding. The result has the same length; a prompt that is too long is cut before its end.
    """
    begin, end, *padding = empty
    pieces = [encode(piece.strip()) if piece.strip() else [] for piece in _whole_words(placeholder).split(prompt)]
    ids = [*pieces[0]]
    for piece in pieces[1:]:
        ids += [*range(-1, -1 - num_vectors, -1), *piece]
    ids = [begin, *ids[: len(padding)], end]
    return [*ids, *padding[len(ids) - 2 :]]


def named_objects(text: str) -> list[str]:
    """The objects that a text names, without articles: "the cat, a tree" gives cat and tree. Case does not count."""
    named = []
    for part in text.split(","):
        words = part.lower().split()
        while words and words[0] in ARTICLES:
            words.pop(0)
        named += [" ".join(words)] if words else []
    return list(dict.fromkeys(named))


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


def _whole_words(words: str) -> re.Pattern[str]:
    """A pattern of these words as whole words: no letter or digit touches them."""
    spaced = r"\s+".join(re.escape(word) for word in words.split())
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)
