"""What a text encoder reads of a text: the tokens that say something, up to its number of tokens.

Only the tokenizer knows. One that knows every byte reads an emoji, another one drops it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from unitune.choices import NULL_TEXT
from unitune.errors import MAX_SHOWN_VALUE, InvalidField
from unitune.prompts import spans_of, with_rare_tokens

BEGIN_AND_END = 2  # tokens that every text has
VECTOR = -1  # stands for any token that is a vector of Textual Inversion


class Piece(NamedTuple):
    """One token of a text, and where in the text it is: `start` to just before `stop`."""

    token: int
    start: int
    stop: int


class Reading(NamedTuple):
    """What is read of a text and what is not."""

    says_nothing: bool  # no token that is read means anything
    tokens: int  # of the whole text, and of the words before it
    unread: str  # its words from the first that is not read to its end
    unknown: str  # signs that the tokenizer does not know; words are not among them


@dataclass(frozen=True)
class Reader:
    """Reads texts as one text encoder does."""

    encode: Callable[[str], Sequence[Piece]]  # all pieces of a text, without begin, end, padding and cutting
    max_tokens: int  # tokens, without begin and end
    empty: frozenset[int]  # the tokens that mean nothing: begin, end, unknown
    is_closed: bool  # the base model knows a list of words and has learnt no other sign

    def read(self, text: str, before: str = "", vectors: tuple[str, int] = ("", 0)) -> Reading:
        """A text with words before it, as UniTune's rare tokens. `vectors` are a placeholder in it and how many
        vectors stand in its place."""
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
        """As `unitune.prompts.ids_with_vectors` puts the tokens together."""
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
    """Warnings of what is not read of a text. Raises InvalidField, which shows a text by its length, if nothing is."""
    reading = reader.read(text, before, vectors)
    if reading.says_nothing:
        reason = "nothing of it is a word that the base model reads"
        raise InvalidField(field, f"{len(text)} characters", f"{reason}; {remedy}")
    return warnings_of(reading, reader, field, has_words_before=bool(before.strip()))


def warnings_of(reading: Reading, reader: Reader, field: str, *, has_words_before: bool = False) -> list[str]:
    """What is not read, in plain words: at most one warning of a text that is too long, and one of unknown signs."""
    name, warnings = field.rpartition(".")[2], []
    if reading.unread:
        counted = f"{name} with the words of the tuning before it has" if has_words_before else f"{name} has"
        warnings.append(
            f"{counted} {reading.tokens} tokens and the text encoder reads {reader.max_tokens}: "
            f"it does not read {shown(reading.unread)}; say it in fewer words"
        )
    if reading.unknown:
        signs = "".join(sign if sign.isprintable() else f"U+{ord(sign):04X} " for sign in reading.unknown)
        warnings.append(f"the base model does not know these signs of {name}, and leaves them out: {signs}")
    return warnings


def shown(text: str) -> str:
    """A text in quotes, on one line, as a warning shows it: the end of a long one by the number of its words."""
    words = text.split()
    kept = list[str]()
    while len(kept) < len(words) and len(" ".join([*kept, words[len(kept)]])) <= MAX_SHOWN_VALUE:
        kept.append(words[len(kept)])
    if not kept:
        return f"'{words[0][: MAX_SHOWN_VALUE - 1]}…'"
    left = len(words) - len(kept)
    return f"'{' '.join(kept)}'" + (f" and {left} more words" if left > 1 else " and one more word" if left else "")


class TuningTexts(Protocol):
    """The texts of a tuning's config, as its message and the tuner's own have them."""

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
    """Warnings of what is not read of the texts that a tuning is made with. `field` is the config's place.

    Raises InvalidField for a text of which nothing is read, and for words that are too long to be read whole, since
    what a tuning binds to them would be bound to something else.
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
