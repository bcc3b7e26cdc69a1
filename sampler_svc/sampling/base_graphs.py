"""The parts of a base model that no tuning changes: tokenizer, text encoder, image encoder and decoder."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sampler_svc.engines.cpu import Graph
from sampler_svc.engines.engine import Array
from sampler_svc.sampling.alignment import TokenizedPrompt
from sampler_svc.sampling.text_reader import reader_of
from unitune.base_model import BaseModelSpec
from unitune.diffusion.guidance import Context
from unitune.diffusion.inpainting import shown
from unitune.diffusion.schedule import Latents
from unitune.graph_files import IMAGE_DECODER, IMAGE_ENCODER, SECOND_TOKENIZER, TEXT_ENCODER, TOKENIZER
from unitune.images import ModelImage, Pixels
from unitune.prompts import ids_with_vectors
from unitune.working_size import Fit, Size, fit, size_of, working_size

EMBEDDINGS_KEPT = 256  # prompts; the empty one is in every edit
SIZES_KEPT = 8  # of pictures of which an inpainting model is shown nothing


class BaseGraphs:
    """Encodes prompts and pictures, decodes latents. Answers do not depend on earlier calls."""

    def __init__(
        self, folder: Path, spec: BaseModelSpec, threads: int = 0, open_graph: Callable[[Path, int], Graph] = Graph
    ) -> None:
        """Loads the graphs of an engine folder. Raises what tokenizers and the runtime raise for damaged files."""
        self.spec = spec
        files = [folder / name for name in (TOKENIZER, SECOND_TOKENIZER) if (folder / name).is_file()]
        self._tokenizers = [Tokenizer.from_file(str(file)) for file in files]
        self.reader = reader_of(self._tokenizers[0], is_closed=bool(spec.vocabulary))
        self._text_encoder = open_graph(folder / TEXT_ENCODER, threads)
        self._image_encoder = open_graph(folder / IMAGE_ENCODER, threads)
        self._image_decoder = open_graph(folder / IMAGE_DECODER, threads)
        self.embed = lru_cache(maxsize=EMBEDDINGS_KEPT)(self._embed)
        self.all_hidden = lru_cache(maxsize=SIZES_KEPT)(self._all_hidden)

    def tokens(self, prompt: str) -> list[int]:
        """The ids of a prompt, cut and padded to the model's number of tokens, for the first text encoder."""
        return self._tokens_of_each(prompt)[0]

    def text(self, prompt: str) -> TokenizedPrompt:
        """A prompt with the tokens that the text encoder reads, and the characters that each came from."""
        read = self.reader.encode(prompt)[: self.reader.max_tokens]
        return TokenizedPrompt(prompt, [piece for piece in read if piece.start < piece.stop])

    def working_size(self, size: Size) -> Size:
        """The working size of a picture of `size` (height, width)."""
        return working_size(size, self.spec.image_side, self.spec.size_step)

    def fit(self, size: Size) -> Fit:
        """How a picture of `size` (height, width) lies in its working size."""
        return fit(size, self.working_size(size))

    def encode(self, image: ModelImage) -> Latents:
        """The latent (1, channels, h, w) of an image (1, 3, height, width): the posterior's mode, so deterministic."""
        return self._image_encoder(image)

    def _all_hidden(self, side: Size) -> Latents:
        """What an inpainting model is shown beside latents of `side` (h, w) where all of the picture is hidden."""
        height, width = (
            one * pixels // own
            for one, pixels, own in zip(side, self.spec.image_side, self.spec.latent_side, strict=True)
        )
        mask = np.ones((height, width), dtype=np.float32)
        return _read_only(shown(mask, self.encode(np.zeros((1, 3, height, width), dtype=np.float32))))

    def decode(self, latents: Latents) -> ModelImage:
        """The images of latents, in about [-1, 1]."""
        return self._image_decoder(latents)

    def round_trip_error(self, picture: Pixels) -> float:
        """Root mean square difference, 0 to 1, between a picture, uint8 (h, w, 3), and its round trip through the
        autoencoder, at its working size. Noise makes it large, since a latent holds little noise."""
        image = self.fit(size_of(picture)).to_model(picture)
        difference = (self.decode(self.encode(image)).clip(-1, 1) - image) / 2
        return float(np.sqrt(np.mean(np.square(difference))))

    def preview(self, latents: Latents) -> ModelImage:
        """An approximate image of one latent: by the base model's linear map if it has one, else by the decoder."""
        if not self.spec.latent_to_rgb:
            return self._image_decoder(latents)
        *weights, offset = np.array(self.spec.latent_to_rgb, dtype=np.float32)
        image: Array = np.einsum("nchw,cr->nrhw", latents, np.stack(weights)) + offset[None, :, None, None]
        return image

    def embed_vectors(self, prompt: str, placeholder: str, vectors: Array) -> Context:
        """The conditioning (rows, width) of a prompt, with vectors (k, width) in place of each placeholder."""
        empties = self._tokens_of_each("")
        ids = [ids_with_vectors(prompt, placeholder, len(vectors), self._ids, empty) for empty in empties]
        return self._encode_text(ids, vectors)

    def _tokens_of_each(self, prompt: str) -> list[list[int]]:
        return [tokenizer.encode(prompt).ids for tokenizer in self._tokenizers]

    def _ids(self, text: str) -> list[int]:
        """The ids of a piece of text, without begin, end and padding."""
        return [piece.token for piece in self.reader.encode(text)]

    def _embed(self, prompt: str) -> Context:
        """The conditioning (rows, width) of a prompt."""
        if self.spec.empty_is_zeros and not prompt.strip():
            return _read_only(np.zeros(self.spec.conditioning, dtype=np.float32))
        return self._encode_text(self._tokens_of_each(prompt), np.zeros((1, self.spec.context_width), dtype=np.float32))

    def _encode_text(self, ids: list[list[int]], vectors: Array) -> Context:
        rows = np.array(ids if len(ids) == 1 else [ids], dtype=np.int64)  # (1, tokens), or (1, 2, tokens)
        return _read_only(self._text_encoder(rows, vectors)[0])


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
