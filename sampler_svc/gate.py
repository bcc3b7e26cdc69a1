"""The gate: a CLIP that says how well an edited picture shows the prompt, and how much of the base image it kept.

All figures are cosines of CLIP embeddings, -1 to 1 (CLIPScore would be 2.5 times that). The gate ranks and rejects; it
certifies nothing, since CLIP neither judges a single picture reliably nor sees small details (Imagic, arXiv 2210.09276,
section 4.4). The rule is InstructPix2Pix's filter (arXiv 2211.09800), its thresholds are the base model's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from sampler_svc.engine import Array
from sampler_svc.ort_engine import Graph
from unitune.base_model import Preset
from unitune.images import Pixels

IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER = "clip_image.onnx", "clip_text.onnx", "clip_tokenizer.json"
EMBEDDINGS_KEPT = 256
KEPT_SHARE = 0.02  # of the base image in a rank, against the prompt


@dataclass(frozen=True)
class Scores:
    """What the gate sees of one edited picture; cosines."""

    prompt: float  # the edited picture and the prompt
    base_prompt: float  # the base image and the prompt: what an edit has to beat
    kept: float  # the edited picture and the base image

    @property
    def gain(self) -> float:
        """How much nearer the prompt is than it was."""
        return self.prompt - self.base_prompt


class Gate:
    """A CLIP of an engine folder."""

    def __init__(
        self, folder: Path, preset: Preset, threads: int = 0, open_graph: Callable[[Path, int], Graph] = Graph
    ) -> None:
        """Loads the graphs. Raises what tokenizers and the runtime raise for damaged files."""
        self._image, self._text = open_graph(folder / IMAGE_GRAPH, threads), open_graph(folder / TEXT_GRAPH, threads)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._side: int = self._image.input_shape[-1]
        self._preset = preset
        self.embed_prompt = lru_cache(maxsize=EMBEDDINGS_KEPT)(self._embed_prompt)

    @classmethod
    def open(
        cls, folder: Path, preset: Preset, threads: int = 0, open_graph: Callable[[Path, int], Graph] = Graph
    ) -> "Gate | None":
        """The folder's gate, or None where the base model brought none."""
        return cls(folder, preset, threads, open_graph) if (folder / IMAGE_GRAPH).is_file() else None

    def against(self, base: Pixels, prompt: str) -> Callable[[Pixels], Scores]:
        """Scores edited pictures of one base image and prompt, which are embedded once.

        Pictures are uint8 (h, w, 3), of any size; the prompt is without rare tokens.
        """
        before, text = self.embed_picture(base), self.embed_prompt(prompt)

        def score(edited: Pixels) -> Scores:
            after = self.embed_picture(edited)
            return Scores(prompt=float(after @ text), base_prompt=float(before @ text), kept=float(after @ before))

        return score

    def passes(self, scores: Scores) -> bool:
        """Whether the picture shows enough of the prompt, more than the base image did, and enough of that too."""
        preset = self._preset
        return (
            scores.gain >= preset.gate_gain and scores.prompt >= preset.gate_prompt and scores.kept >= preset.gate_kept
        )

    def rank(self, scores: Scores) -> float:
        """Which of several pictures of one edit is the best: near the prompt, and, less so, near the base image."""
        return scores.prompt + KEPT_SHARE * scores.kept

    @property
    def automatic_points(self) -> tuple[tuple[float, float], ...]:
        """(strength, guidance_scale) of each attempt of an automatic edit."""
        return self._preset.automatic_points

    def embed_picture(self, picture: Pixels) -> Array:
        """The embedding, of length 1, (d,)."""
        small = Image.fromarray(picture).resize((self._side, self._side), Image.Resampling.BICUBIC)
        pixels = np.asarray(small)[None].transpose(0, 3, 1, 2).astype(np.float32) / 255
        embedding: Array = self._image(pixels)[0]
        return embedding

    def _embed_prompt(self, prompt: str) -> Array:
        embedding: Array = self._text(np.array([self._tokenizer.encode(prompt).ids], dtype=np.int64))[0]
        embedding.flags.writeable = False
        return embedding
