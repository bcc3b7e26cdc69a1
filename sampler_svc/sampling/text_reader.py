"""Reads texts as a text encoder does, with that encoder's tokenizer."""

from tokenizers import Encoding, Tokenizer

from unitune.reading import BEGIN_AND_END, Piece, Reader


def reader_of(tokenizer: Tokenizer, *, is_closed: bool = False) -> Reader:
    """A reader with a tokenizer that cuts to its text encoder's number of tokens. It also knows what is cut."""

    def encode(text: str) -> list[Piece]:
        found = tokenizer.encode(text, add_special_tokens=False)
        return [piece for part in (found, *found.overflowing) for piece in _pieces(part)]

    max_tokens = (tokenizer.truncation or {})["max_length"] - BEGIN_AND_END
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token or "")
    begin_and_end = [piece.token for piece in _pieces(tokenizer.encode(""))]
    empty = frozenset([*begin_and_end, *([] if unknown is None else [unknown])])
    return Reader(encode, max_tokens, empty, is_closed)


def _pieces(found: Encoding) -> list[Piece]:
    """The tokens without padding."""
    columns = zip(found.ids, found.offsets, found.attention_mask, strict=True)
    return [Piece(token, *at) for token, at, is_text in columns if is_text]
