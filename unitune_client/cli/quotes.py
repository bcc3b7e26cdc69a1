"""Prompts whose quotes were forgotten: the shell gives each of their words as a prompt."""

from collections.abc import Sequence
from itertools import groupby

from unitune.errors import InvalidField, Size
from unitune_client.cli.display import Display

SINGLE_WORDS = 3  # from this number on, prompts of one word each are most likely one prompt
# English words that describe no picture alone.
# fmt: off
NO_PROMPTS = frozenset({
    "a", "an", "the", "and", "or", "of", "in", "on", "at", "by", "with", "without", "from", "to", "into", "under",
    "over", "near", "behind", "beside", "between", "above", "below", "through", "for", "as", "is", "are",
})
# fmt: on


def refuse_forgotten_quotes(prompts: Sequence[str]) -> None:
    """Raise InvalidField where one of several prompts is no more than an article, a preposition or the like."""
    for is_word, neighbours in groupby(prompts, key=_is_word):
        words = list(neighbours)
        wrong = next((word for word in words if word.strip().lower() in NO_PROMPTS), None)
        if is_word and wrong is not None and len(prompts) > 1:
            remedy = f'that describes no picture; put quotes around a prompt of several words: "{" ".join(words)}"'
            raise InvalidField("PROMPT", wrong, remedy)


def one_prompt(prompts: Sequence[str]) -> str:
    """The prompt of a command that takes one. Raises InvalidField for several."""
    if len(prompts) > 1:
        remedy = f'there can be one prompt; put quotes around it: "{" ".join(prompts)}"'
        raise InvalidField("PROMPT", Size(f"{len(prompts)} parts"), remedy)
    return prompts[0]


def warn_of_single_words(prompts: Sequence[str], show: Display) -> None:
    """Warn of prompts that may be one whose quotes were forgotten, though each could be a prompt."""
    if len(prompts) >= SINGLE_WORDS and all(map(_is_word, prompts)):
        show.warn(f"{len(prompts)} prompts of one word each; put quotes around a prompt of several words")


def _is_word(prompt: str) -> bool:
    return len(prompt.split()) == 1
