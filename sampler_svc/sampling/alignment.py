"""From which token of the base prompt each token of the edit prompt takes its attention (Prompt-to-Prompt, 3.2).

The pieces of a text are its tokens between begin and end, each with the characters that it came from. Columns are
positions among all tokens of the text encoder: begin is 0, the first piece is 1, and after the last piece come the end
and its padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unitune.choices import ALIGNMENTS
from unitune.errors import InvalidField
from unitune.prompts import spans_of
from unitune.reading import Piece

REPLACE, REFINE = ALIGNMENTS


class TokenizedPrompt(NamedTuple):
    """A prompt and the pieces of it that the text encoder reads."""

    prompt: str
    pieces: Sequence[Piece]

    def columns(self, start: int, stop: int) -> list[int]:
        """The columns of the tokens that have any of these characters."""
        return [at for at, piece in enumerate(self.pieces, start=1) if piece.start < stop and piece.stop > start]

    def columns_of(self, words: str) -> list[int]:
        """The columns of all mentions of the words that the text encoder reads."""
        return [column for span in spans_of(self.prompt, words) for column in self.columns(*span)]


class Alignment(NamedTuple):
    """`mapper` (tokens, tokens) leads from the base prompt's columns to the edit prompt's. `taken` (tokens,) is 1 for
    columns of the edit prompt that take from the base prompt, and 0 for those that keep their own."""

    mapper: NDArray[np.float32]
    taken: NDArray[np.float32]


def align(base: TokenizedPrompt, edited: TokenizedPrompt, tokens: int, kind: str = "") -> Alignment:
    """Word by word, or by the longest common subsequence of tokens.

    `kind` is REPLACE, REFINE, or empty: then REPLACE if the prompts have equally many words. Raises InvalidField
    (config.alignment) for a replacement in prompts of different numbers of words.
    """
    counts = len(base.prompt.split()), len(edited.prompt.split())
    if kind == REPLACE and counts[0] != counts[1]:
        remedy = f"use refine: the base prompt has {counts[0]} words and the prompt {counts[1]}"
        raise InvalidField("config.prompt_to_prompt.alignment", kind, remedy)
    return (
        replaced(base, edited, tokens)
        if (kind or REPLACE) == REPLACE and counts[0] == counts[1]
        else refined(base, edited, tokens)
    )


def replaced(base: TokenizedPrompt, edited: TokenizedPrompt, tokens: int) -> Alignment:
    """Each word takes from the word in its place, shared evenly if it has more or fewer tokens."""
    mapper = np.zeros((tokens, tokens), dtype=np.float32)
    mapper[0, 0] = 1
    for theirs, own in zip(_words(base), _words(edited), strict=True):
        if len(theirs) == len(own):
            mapper[theirs, own] = 1
        elif own:  # the text encoder may have cut it off
            mapper[np.ix_(theirs, own)] = 1 / len(own)
    _align_ends(mapper, len(base.pieces), len(edited.pieces))
    return Alignment(mapper, np.ones(tokens, dtype=np.float32))


def refined(base: TokenizedPrompt, edited: TokenizedPrompt, tokens: int) -> Alignment:
    """Tokens of the longest common subsequence take from each other; the others keep their own attention."""
    mapper, taken = np.zeros((tokens, tokens), dtype=np.float32), np.ones(tokens, dtype=np.float32)
    mapper[0, 0] = 1
    taken[1 : 1 + len(edited.pieces)] = 0
    for theirs, own in _common([one.token for one in base.pieces], [one.token for one in edited.pieces]):
        mapper[1 + theirs, 1 + own] = taken[1 + own] = 1
    _align_ends(mapper, len(base.pieces), len(edited.pieces))
    return Alignment(mapper, taken)


def _words(text: TokenizedPrompt) -> list[list[int]]:
    """The columns of each word. White space separates words."""
    found, at = [], 0
    for word in text.prompt.split():
        start = text.prompt.index(word, at)
        at = start + len(word)
        found.append(text.columns(start, at))
    return found


def _align_ends(mapper: NDArray[np.float32], base: int, edited: int) -> None:
    """End takes from end, padding from padding, in order. Padding without a partner takes from the last."""
    last = len(mapper) - 1
    for column in range(1 + edited, last + 1):
        mapper[min(column - edited + base, last), column] = 1


def _common(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Index pairs of a longest common subsequence, of several the one with the earliest matches."""
    length = np.zeros((len(one) + 1, len(other) + 1), dtype=int)  # of what follows
    for i in reversed(range(len(one))):
        for j in reversed(range(len(other))):
            same = length[i + 1, j + 1] + 1 if one[i] == other[j] else 0
            length[i, j] = max(same, length[i + 1, j], length[i, j + 1])
    pairs, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif length[i + 1, j] >= length[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs
