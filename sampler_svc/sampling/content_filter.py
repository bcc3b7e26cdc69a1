"""The content filter: refuses edited pictures by a classifier in the format of Stable Diffusion's safety checker.

It is not part of a base model, and no edit is checked unless its request asks for it.
`python -m tuner_svc.export.content_filter` writes its graph.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sampler_svc.engines.cpu import Graph
from unitune.graph_files import CONTENT_FILTER, CONTENT_FILTER_ROUNDS_TO_ZERO
from unitune.images import Pixels


class ContentFilter:
    """A content filter's graph."""

    def __init__(self, folder: Path, threads: int = 0, open_graph: Callable[[Path, int], Graph] = Graph) -> None:
        """Raises FileNotFoundError for a folder without one, and what the runtime raises for a damaged file."""
        if not (folder / CONTENT_FILTER).is_file():
            remedy = "write it by python -m tuner_svc.export.content_filter"
            raise FileNotFoundError(f"{folder} has no {CONTENT_FILTER}: {remedy}")
        self._graph = open_graph(folder / CONTENT_FILTER, threads)
        self._side: int = self._graph.input_shape[-1]

    def refuses(self, picture: Pixels) -> bool:
        """Whether any part of the picture, uint8 (h, w, 3), is beyond a threshold."""
        return self.excess(picture) > CONTENT_FILTER_ROUNDS_TO_ZERO

    def excess(self, picture: Pixels) -> float:
        """How far the picture is beyond the nearest threshold, in cosines; its worst part counts."""
        return max(float(self._graph(image)[0]) for image in self._squares(picture))

    def _squares(self, picture: Pixels) -> list[np.ndarray]:
        """The picture with its shorter side at the model's size, as squares that cover it, float32 (1, 3, side, side).

        The safety checker looks at the middle square alone; of a square picture that is all.
        """
        side = self._side
        height, width = picture.shape[:2]
        scale = side / min(height, width)
        size = max(side, round(width * scale)), max(side, round(height * scale))
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        along = max(size) - side
        number = 1 + math.ceil(along / side)
        starts = [round(along * index / max(1, number - 1)) for index in range(number)]
        parts = [small[:, at : at + side] if width > height else small[at : at + side] for at in starts]
        return [part[None].transpose(0, 3, 1, 2).astype(np.float32) / 255 for part in parts]
