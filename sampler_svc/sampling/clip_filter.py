"""The CLIP filter: scores how well an edited picture shows the prompt, and how much of the base image it kept.

These scores are cosines of CLIP embeddings, -1 to 1 (CLIPScore is 2.5 times that). The filter ranks and rejects. It
proves nothing: CLIP does not judge a single picture reliably and does not see small details (Imagic, arXiv 2210.09276,
section 4.4). The rule is InstructPix2Pix's filter (arXiv 2211.09800); its thresholds are in the base model's preset.

CLIP does not notice noise, blur and burnt colours. Three figures of the pixels find such malformed pictures: how far
the picture is from its round trip through the autoencoder, how much a pixel differs from its neighbours, and how many
colour values are at an end of their range.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from sampler_svc.engines.cpu import Graph
from sampler_svc.engines.engine import Array
from sampler_svc.sampling.text_reader import reader_of
from unitune.base_model import Preset
from unitune.graph_files import CLIP_IMAGE, CLIP_TEXT, CLIP_TOKENIZER
from unitune.images import Pixels

EMBEDDINGS_KEPT = 256
KEPT_SHARE = 0.02  # of the base image in a rank, against the prompt
MALFORMED_RANK = -3.0  # added to a rank: below every well-formed picture's, as cosines are -1 to 1
DARKEST, BRIGHTEST = 2, 253  # at or beyond these a colour value is at the end of its range


@dataclass(frozen=True)
class Scores:
    """The scores of one edited picture: three cosines, then three figures of its pixels, 0 to 1."""

    prompt: float  # the edited picture and the prompt
    base_prompt: float  # the base image and the prompt: an edit should be above this
    kept: float  # the edited picture and the base image
    round_trip: float  # root mean square difference to the autoencoder's round trip: large for noise
    detail: float  # how much a pixel differs from its neighbours: small for blur
    saturated: float  # share of colour values at an end of their range, minus that of the base image

    @property
    def gain(self) -> float:
        """How much the likeness to the prompt has grown."""
        return self.prompt - self.base_prompt


class ClipFilter:
    """The CLIP of an engine folder, with the preset's thresholds."""

    def __init__(
        self,
        folder: Path,
        preset: Preset,
        round_trip_error: Callable[[Pixels], float],
        threads: int = 0,
        open_graph: Callable[[Path, int], Graph] = Graph,
    ) -> None:
        """Loads the graphs; `round_trip_error` is the base model's (BaseGraphs). Raises what tokenizers and the runtime
        raise for damaged files."""
        self._image, self._text = open_graph(folder / CLIP_IMAGE, threads), open_graph(folder / CLIP_TEXT, threads)
        self._tokenizer = Tokenizer.from_file(str(folder / CLIP_TOKENIZER))
        self.reader = reader_of(self._tokenizer)
        self._side: int = self._image.input_shape[-1]
        self._preset, self._round_trip_error = preset, round_trip_error
        self.embed_prompt = lru_cache(maxsize=EMBEDDINGS_KEPT)(self._embed_prompt)

    @classmethod
    def open(
        cls,
        folder: Path,
        preset: Preset,
        round_trip_error: Callable[[Pixels], float],
        threads: int = 0,
        open_graph: Callable[[Path, int], Graph] = Graph,
    ) -> "ClipFilter | None":
        """The folder's CLIP filter, or None if the base model has none."""
        if not (folder / CLIP_IMAGE).is_file():
            return None
        return cls(folder, preset, round_trip_error, threads, open_graph)

    def scorer(self, base: Pixels, prompt: str) -> Callable[[Pixels], Scores]:
        """A function that scores edited pictures of one base image and prompt, which are embedded once.

        Pictures are uint8 (h, w, 3), of any size; the prompt is without rare tokens.
        """
        before, text = self.embed_picture(base), self.embed_prompt(prompt)
        saturated_before = saturated(base)

        def score(edited: Pixels) -> Scores:
            after = self.embed_picture(edited)
            return Scores(
                prompt=float(after @ text),
                base_prompt=float(before @ text),
                kept=float(after @ before),
                round_trip=self._round_trip_error(edited),
                detail=detail(self._small(edited)),
                saturated=max(saturated(edited) - saturated_before, 0.0),
            )

        return score

    def passes(self, scores: Scores) -> bool:
        """Whether the picture is well formed, shows enough of the prompt and more than the base image, and keeps enough
        of the base image."""
        preset = self._preset
        return (
            scores.gain >= preset.clip_filter_gain
            and scores.prompt >= preset.clip_filter_prompt
            and scores.kept >= preset.clip_filter_kept
            and not self.is_malformed(scores)
        )

    def is_malformed(self, scores: Scores) -> bool:
        """Whether it is malformed: noise, blur or burnt colours."""
        preset = self._preset
        return (
            scores.round_trip > preset.clip_filter_round_trip
            or scores.detail < preset.clip_filter_detail
            or scores.saturated > preset.clip_filter_saturated
        )

    def rank(self, scores: Scores) -> float:
        """A picture's rank among several of one edit: higher is better. It grows with the likeness to the prompt and,
        less, to the base image; malformed pictures come last. Likeness to the prompt counts up to
        `clip_filter_enough`, since CLIP prefers edits that go too far."""
        shown = min(scores.prompt, self._preset.clip_filter_enough)
        return shown + KEPT_SHARE * scores.kept + (MALFORMED_RANK if self.is_malformed(scores) else 0)

    def with_preset(self, preset: Preset) -> "ClipFilter":
        """The same CLIP with other thresholds."""
        other = copy(self)
        other._preset = preset
        return other

    @property
    def automatic_points(self) -> tuple[tuple[float, float], ...]:
        """(strength, guidance_scale) of each attempt of an automatic edit."""
        return self._preset.automatic_points

    def embed_picture(self, picture: Pixels) -> Array:
        """The embedding, of length 1, (d,)."""
        pixels = self._small(picture)[None].transpose(0, 3, 1, 2).astype(np.float32) / 255
        embedding: Array = self._image(pixels)[0]
        return embedding

    def _small(self, picture: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(picture).resize((self._side, self._side), Image.Resampling.BICUBIC))

    def _embed_prompt(self, prompt: str) -> Array:
        embedding: Array = self._text(np.array([self._tokenizer.encode(prompt).ids], dtype=np.int64))[0]
        embedding.flags.writeable = False
        return embedding


def detail(picture: Pixels) -> float:
    """Mean absolute difference in brightness, 0 to 1, between a pixel and the mean of its four neighbours."""
    brightness = picture.mean(axis=2) / 255
    above, below, left, right = (
        brightness[:-2, 1:-1],
        brightness[2:, 1:-1],
        brightness[1:-1, :-2],
        brightness[1:-1, 2:],
    )
    return float(np.abs(brightness[1:-1, 1:-1] - (above + below + left + right) / 4).mean())


def saturated(picture: Pixels) -> float:
    """The share of a picture's colour values that are at an end of their range, 0 to 1."""
    return float(np.mean((picture <= DARKEST) | (picture >= BRIGHTEST)))
