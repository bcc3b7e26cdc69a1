"""Prompt-to-Prompt's local blend: edits only where given words have attention (arXiv 2208.01626, 3.2).

The authors read the words' maps from the passes of the edit. But within a prompt a word's attention may be nearly the
same everywhere, because the text encoder mixes words. So here each word is a prompt of its own, and its map is that of
its own tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.engine import Array
from sampler_svc.sampling.alignment import TokenizedPrompt
from unitune.diffusion.guidance import Context
from unitune.diffusion.schedule import Latents
from unitune.errors import InvalidField
from unitune.options import SAMPLING, element

Look = Callable[[Latents, Context], Array]  # latents (n, ...), a prompt's context -> attention maps (n, tokens, h, w)

THRESHOLD = 0.3  # of the largest value; as this and the 3 x 3 maximum in the authors' code
STARTS_AFTER = 0.2  # of the steps: before that, attention has no shape


class Word(NamedTuple):
    """A blend word, or a phrase, as a prompt of its own."""

    text: TokenizedPrompt
    context: Context

    def seen(self, maps: Array) -> Array:
        """The mean map (n, h, w) of its tokens, from maps (n, tokens, h, w) for this prompt."""
        found: Array = maps[:, 1 : 1 + len(self.text.pieces)].mean(axis=1)
        return found


class LocalBlend:
    """The attention of words, summed over the steps so far."""

    def __init__(self, words: Sequence[Word], base: TokenizedPrompt, edited: TokenizedPrompt, steps: int) -> None:
        """`base` and `edited` are the prompts. A word's map is taken in the branch of each prompt that has the word.
        Raises InvalidField (config.blend_words) for a word that neither has."""
        self._first = int(STARTS_AFTER * steps)
        self._words: list[tuple[Word, list[int]]] = []
        for index, word in enumerate(words):
            self._words.append((word, branches_with(word.text.prompt, base, edited, place_of(index))))
        self._sums: list[Array] = [np.zeros(1, dtype=np.float32)] * len(words)
        self._masks: dict[str, NDArray[np.bool_]] = {}  # of the last step, by word

    def mask(self, step: int, latents: Latents, look: Look) -> NDArray[np.bool_] | None:
        """Where to edit, (h, w), from the latents (2, channels, h, w) of base and edit before this step.

        It is the union over words and branches, with the attention summed over the steps so far. None in the first
        steps. Costs one pass of one or two rows for each word.
        """
        for at, (word, branches) in enumerate(self._words):
            self._sums[at] = self._sums[at] + word.seen(look(latents[branches], word.context))
        if step < self._first:
            return None
        side = latents.shape[2], latents.shape[3]
        for (word, _), sums in zip(self._words, self._sums, strict=True):
            maps = [widened(one) for one in sums]
            seen = [enlarged(one > THRESHOLD * one.max(), side) for one in maps]
            self._masks[word.text.prompt] = np.logical_or.reduce(seen)
        return self._union()

    def _union(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.logical_or.reduce(list(self._masks.values()))
        return found

    def warning(self) -> str:
        """A warning if the last mask keeps nothing of the base image, or all of it; else empty."""
        if not self._masks:
            return ""
        mask = self._union()
        if mask.all():
            words = [word for word, own in self._masks.items() if own.all()] or list(self._masks)
            remedy = "name smaller objects, or give a mask"
            return f"local blend keeps nothing of the picture, since {_listed(words)} look everywhere: {remedy}"
        if not mask.any():
            remedy = "name what the picture or the edit shows, or leave config.prompt_to_prompt.blend_words unset"
            return f"local blend keeps all of the picture, since {_listed(self._masks)} look nowhere: {remedy}"
        return ""


def place_of(index: int) -> str:
    """The place in a request of one of the words."""
    return element(f"config.{SAMPLING['blend_words'].path}", index)


def branches_with(named: str, base: TokenizedPrompt, edited: TokenizedPrompt, place: str) -> list[int]:
    """Which of the two prompts have the words: 0, 1 or both. Raises InvalidField for none, and for words that the text
    encoder does not read. `place` is that of the words in the request."""
    branches = [branch for branch, text in enumerate((base, edited)) if text.columns_of(named)]
    if not branches:
        remedy = "name words of prompt or config.base_prompt, which the model cuts when long"
        raise InvalidField(place, named, remedy)
    return branches


def blended(base: Latents, edited: Latents, mask: NDArray[np.bool_]) -> Latents:
    """The edited latents inside the mask (h, w), the base's outside, bit for bit."""
    return np.where(mask, edited, base)


def _listed(words: Iterable[str]) -> str:
    return " and ".join(repr(word) for word in words)


def widened(values: Array) -> Array:
    """The maximum over each place's 3 x 3 neighbours."""
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    return np.max([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def enlarged(mask: NDArray[np.bool_], side: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask over `side` (h, w): each place has the value of the nearest."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(side, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]
