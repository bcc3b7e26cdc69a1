"""A CLIP tokenizer in which every word of the world is one token; other words are pieces and letters."""

import json
import string
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from stickerbook.captions import PLACE_PHRASES, STYLE_PHRASES, TIME_PHRASES
from stickerbook.extract_stickers import GLYPHS

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = string.ascii_lowercase + string.digits + ".,!?'-"
# Words for a larger world, so that tokens keep their ids.
RESERVED = (
    "desert room road river mountain garden moon fog foggy rain rainy dawn morning evening pencil sketch pixel art "
    "watercolour painting mosaic photo small big left right behind front background with and next to no without two"
)


def words() -> list[str]:
    """Every word that is one token, sorted."""
    phrases = [*PLACE_PHRASES.values(), *TIME_PHRASES.values(), *STYLE_PHRASES.values(), *GLYPHS, RESERVED, "an of the"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def merges_of(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token, most frequent pair first, ties in alphabetical order.

    The library's trainer breaks ties differently in every run, so the token ids would change.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in vocabulary]
    merges = []
    while counts := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [_merged(symbols, best) for symbols in spelled]
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def new_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer; the same on every call."""
    merges = merges_of(words())
    tokens = [START, END, *LETTERS, *(f"{letter}</w>" for letter in LETTERS), *(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        merge_lines = [f"{left} {right}" for left, right in merges]
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merge_lines]) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
