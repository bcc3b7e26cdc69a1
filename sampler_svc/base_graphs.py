"""The parts of a base model that no tuning changes: tokenizer, text encoder, image encoder and decoder."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sampler_svc.engine import Array
from sampler_svc.ort_engine import Graph
from unitune.base_model import BaseModelSpec
from unitune.diffusion.guidance import Context
from unitune.diffusion.schedule import Latents
from unitune.images import ModelImage

EMBEDDINGS_KEPT = 256  # prompts; the empty one is in every edit


class BaseGraphs:
    """Encodes prompts and pictures, decodes latents. Answers do not depend on what was asked before."""

    def __init__(
        self, folder: Path, spec: BaseModelSpec, threads: int = 0, open_graph: Callable[[Path, int], Graph] = Graph
    ) -> None:
        """Loads the graphs of an engine folder. Raises what tokenizers and the runtime raise for damaged files."""
        self.spec = spec
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._text_encoder = open_graph(folder / "text_encoder.onnx", threads)
        self._image_encoder = open_graph(folder / "image_encoder.onnx", threads)
        self._image_decoder = open_graph(folder / "image_decoder.onnx", threads)
        self.embed = lru_cache(maxsize=EMBEDDINGS_KEPT)(self._embed)

    def tokens(self, prompt: str) -> list[int]:
        """The ids of a prompt, cut and padded to the model's number of tokens."""
        ids: list[int] = self._tokenizer.encode(prompt).ids
        return ids

    def encode(self, image: ModelImage) -> Latents:
        """The latent (1, channels, h, w) of an image (1, 3, height, width): the mode, so always the same."""
        return self._image_encoder(image)

    def decode(self, latents: Latents) -> ModelImage:
        """The images of latents, in about [-1, 1]."""
        return self._image_decoder(latents)

    def preview(self, latents: Latents) -> ModelImage:
        """The image of one latent, roughly: by a linear map where the base model has one, else by the decoder."""
        if not self.spec.latent_to_rgb:
            return self._image_decoder(latents)
        *weights, offset = np.array(self.spec.latent_to_rgb, dtype=np.float32)
        image: Array = np.einsum("nchw,cr->nrhw", latents, np.stack(weights)) + offset[None, :, None, None]
        return image

    def _embed(self, prompt: str) -> Context:
        """The text embedding (tokens, width) of a prompt."""
        embedding: Context = self._text_encoder(np.array([self.tokens(prompt)], dtype=np.int64))[0]
        embedding.flags.writeable = False
        return embedding
