"""CLIPSeg (Lüddecke and Ecker, arXiv 2112.10003): where a picture shows what a text names.

It is not part of a base model. A sampler that has one uses it for all words, in place of the base model's predictions.
`python -m tuner_svc.export.clipseg` writes its graph.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from sampler_svc.engines.cpu import Graph
from sampler_svc.engines.engine import Array
from sampler_svc.sampling.masks.shape import enlarged
from sampler_svc.sampling.text_reader import reader_of
from unitune.graph_files import CLIPSEG, CLIPSEG_TOKENIZER
from unitune.images import Mask, Pixels


class ClipSeg:
    """A CLIPSeg's graph and tokenizer."""

    def __init__(self, folder: Path, threads: int = 0, open_graph: Callable[[Path, int], Graph] = Graph) -> None:
        """Raises FileNotFoundError for a folder without them, and what tokenizers and the runtime raise for damage."""
        for name in (CLIPSEG, CLIPSEG_TOKENIZER):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}: write it by python -m tuner_svc.export.clipseg")
        self._graph = open_graph(folder / CLIPSEG, threads)
        self._tokenizer = Tokenizer.from_file(str(folder / CLIPSEG_TOKENIZER))
        self.reader = reader_of(self._tokenizer)
        self._side: int = self._graph.input_shape[-1]

    def find(self, picture: Pixels, objects: Sequence[str]) -> Mask:
        """Where the picture, uint8 (h, w, 3), shows one of the objects: each where its logit is above 0."""
        found: Mask = np.any(self.logits(picture, objects) > 0, axis=0).astype(np.float32)
        return enlarged(found, (picture.shape[0], picture.shape[1]))

    def logits(self, picture: Pixels, objects: Sequence[str]) -> Array:
        """(objects, height, width), at the model's own size."""
        small = Image.fromarray(picture).resize((self._side, self._side), Image.Resampling.BILINEAR)
        pixels = np.asarray(small)[None].transpose(0, 3, 1, 2).astype(np.float32) / 255
        ids = np.array([self._tokenizer.encode(named).ids for named in objects], dtype=np.int64)
        return self._graph(np.repeat(pixels, len(objects), axis=0), ids)
