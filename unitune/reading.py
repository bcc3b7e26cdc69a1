"""What a text encoder reads of a text, which depends on its tokenizer and on its number of tokens.

For example, a tokenizer that knows all bytes reads an emoji; another one drops it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from unitune.choices import NULL_TEXT
from unitune.errors import MAX_SHOWN_VALUE, InvalidField, length_of
from unitune.prompts import spans_of, with_rare_tokens

BEGIN_AND_END = 2  # tokens that every text has
VECTOR = -1  # stands for any token that is a vector of Textual Inversion


class Piece(NamedTuple):
    """One token of a text, and its place in the text: `stop` is exclusive."""

    token: int
    start: int
    stop: int


class Reading(NamedTuple):
    """What the text encoder reads of a text, and what it does not."""

    says_nothing: bool  # no token that is read has a meaning
    tokens: int  # of the whole text, and of the words before it
    unread: str  # the words from the first one that is not read
    unknown: str  # signs, not words, that the tokenizer does not know


@dataclass(frozen=True)
class Reader:
    """Reads texts as one text encoder does."""

    encode: Callable[[str], Sequence[Piece]]  # all pieces of a text, without begin, end, padding and cutting
    max_tokens: int  # tokens, without begin and end
    empty: frozenset[int]  # the tokens that mean nothing: begin, end, unknown
    is_closed: bool  # the base model knows only a list of words, and no other signs

    def read(self, text: str, before: str = "", vectors: tuple[str, int] = ("", 0)) -> Reading:
        """Read a text after some words, such as rare tokens. `vectors` are a placeholder and its number of vectors."""
        whole = with_rare_tokens(before, text)
        start = len(whole) - len(text.strip())  # of the text itself
        pieces = self._pieces(whole, *vectors)
        own = [piece for piece in pieces[: self.max_tokens] if piece.start >= start]
        unread_from = len(whole)
        if len(pieces) > self.max_tokens:
            cut = pieces[self.max_tokens].start
            while cut > 0 and not whole[cut - 1].isspace():  # a word that is read in part is not read
                cut -= 1
            unread_from = max(cut, start)
        unknown = dict.fromkeys(
            sign
            for piece in pieces[: self.max_tokens]
            if piece.token in self.empty
            for sign in whole[piece.start : piece.stop]
            if not sign.isalnum()
        )
        return Reading(
            says_nothing=not any(self._means_something(piece, whole) for piece in own),
            tokens=len(pieces),
            unread=whole[unread_from:],
            unknown="".join(unknown),
        )

    def _means_something(self, piece: Piece, text: str) -> bool:
        if piece.token in self.empty:
            return False
        return piece.token == VECTOR or not self.is_closed or any(map(str.isalnum, text[piece.start : piece.stop]))

    def _pieces(self, text: str, placeholder: str, num_vectors: int) -> list[Piece]:
        """The tokens, in the same way as `unitune.prompts.ids_with_vectors`."""
        spans = spans_of(text, placeholder) if placeholder.strip() else []
        pieces, end = list[Piece](), 0
        for start, stop in [*spans, (len(text), len(text))]:
            found = self.encode(text[end:start])
            pieces += [Piece(token, end + first, end + last) for token, first, last in found]
            if start < stop:
                pieces += [Piece(VECTOR, start, stop)] * num_vectors
            end = stop
        return pieces


def checked(
    reader: Reader, field: str, text: str, *, before: str = "", vectors: tuple[str, int] = ("", 0), remedy: str
) -> list[str]:
    """Warnings of what is not read of a text. Raises InvalidField, with the text's length, if nothing is read."""
    reading = reader.read(text, before, vectors)
    if reading.says_nothing:
        reason = "nothing of it is a word that the base model reads"
        raise InvalidField(field, length_of(text), f"{reason}; {remedy}")
    return warnings_of(reading, reader, field, has_words_before=bool(before.strip()))


def warnings_of(reading: Reading, reader: Reader, field: str, *, has_words_before: bool = False) -> list[str]:
    """What is not read, in plain words: at most one warning of a text that is too long, and one of unknown signs.

    `field` is the text's place in the request.
    """
    warnings = []
    if reading.unread:
        counted = f"{field} with the words of the tuning before it has" if has_words_before else f"{field} has"
        warnings.append(
            f"{counted} {reading.tokens} tokens and the text encoder reads {reader.max_tokens}: "
            f"it does not read {shown(reading.unread)}; say it in fewer words"
        )
    if reading.unknown:
        signs = "".join(sign if sign.isprintable() else f"U+{ord(sign):04X} " for sign in reading.unknown)
        warnings.append(f"the base model does not know these signs of {field}, and leaves them out: {signs}")
    return warnings


def shown(text: str) -> str:
    """A text in quotes on one line, for a warning; a long one ends with the number of its other words."""
    words = text.split()
    kept = list[str]()
    while len(kept) < len(words) and len(" ".join([*kept, words[len(kept)]])) <= MAX_SHOWN_VALUE:
        kept.append(words[len(kept)])
    if not kept:
        return f"'{words[0][: MAX_SHOWN_VALUE - 1]}…'"
    left = len(words) - len(kept)
    return f"'{' '.join(kept)}'" + (f" and {left} more words" if left > 1 else " and one more word" if left else "")


class TuningTexts(Protocol):
    """The texts of a tuning's config; its message and the tuner's class both have them."""

    @property
    def method(self) -> str: ...
    @property
    def rare_tokens(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def class_noun(self) -> str: ...
    @property
    def base_prompt(self) -> str: ...


def check_tuning(reader: Reader, config: TuningTexts, field: str) -> list[str]:
    """Warnings of what is not read of a tuning's texts. `field` is the config's place in the request.

    Raises InvalidField for a text of which nothing is read. Raises it also for words to bind that are not read
    completely, since the tuning would bind other words.
    """
    if config.method in ("unitune", "dreambooth"):
        _check_words(reader, f"{field}.rare_tokens", config.rare_tokens, config.rare_tokens)
    if config.method == "dreambooth":
        _check_words(reader, f"{field}.class_noun", config.class_noun, f"a {config.class_noun}")
        instance = f"a {config.rare_tokens.strip()} {config.class_noun.strip()}"
        _check_words(reader, f"{field}.rare_tokens", config.rare_tokens, instance)
    text = {"imagic": "prompt", NULL_TEXT: "base_prompt"}.get(config.method)
    if text is None:
        return []
    return checked(reader, f"{field}.{text}", getattr(config, text), remedy="describe the picture in words")


def _check_words(reader: Reader, field: str, words: str, text: str) -> None:
    """`text` is what the text encoder gets, with the words in it."""
    if reader.read(words).says_nothing:
        raise InvalidField(field, words, "the base model reads nothing of it; use letters, as in beikkpic")
    reading = reader.read(text)
    if reading.unread:
        remedy = f"use fewer letters: {reading.tokens} tokens, and the text encoder reads {reader.max_tokens}"
        raise InvalidField(field, words, remedy)
