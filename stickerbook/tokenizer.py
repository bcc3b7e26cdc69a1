"""A CLIP tokenizer whose every world word is one token; anything else falls back to pieces and letters."""

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from stickerbook.captions import PLACE_PHRASES, STYLE_PHRASES, TIME_PHRASES
from stickerbook.extract_stickers import GLYPHS

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"
# Words that a larger world will need, so that its tokens keep their ids.
RESERVED = (
    "desert room road river mountain garden moon fog foggy rain rainy dawn morning evening pencil sketch pixel art "
    "watercolour painting mosaic photo small big left right behind front background with and next to no without two"
)


def words() -> list[str]:
    """Every word that is one token, sorted."""
    phrases = [*PLACE_PHRASES.values(), *TIME_PHRASES.values(), *STYLE_PHRASES.values(), *GLYPHS, RESERVED, "a an of the"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def new_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer; the same on every call."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: merging stops when every word is one token
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"),
        min_frequency=1,
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(words())], trainer)
    model = json.loads(bpe.to_str())["model"]
    vocabulary: dict[str, int] = dict(model["vocab"])
    for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-":
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
