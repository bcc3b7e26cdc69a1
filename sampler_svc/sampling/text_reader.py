"""Opens the tokenizer of a text encoder as what reads texts as that encoder does."""

from pathlib import Path

from tokenizers import Tokenizer

from unitune.reading import BEGIN_AND_END, Piece, Reader


def open_reader(path: Path, *, is_closed: bool = False) -> Reader:
    """Reads by a tokenizer.json that cuts to its text encoder's number of tokens. Raises what tokenizers raise."""
    tokenizer = Tokenizer.from_file(str(path))
    room = (tokenizer.truncation or {})["max_length"] - BEGIN_AND_END
    tokenizer.no_truncation()
    tokenizer.no_padding()
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token or "")
    empty = {*tokenizer.encode("").ids, *([] if unknown is None else [unknown])}

    def encode(text: str) -> list[Piece]:
        found = tokenizer.encode(text, add_special_tokens=False)
        return [Piece(token, *at) for token, at in zip(found.ids, found.offsets, strict=True)]

    return Reader(encode, room, frozenset(empty), is_closed)
