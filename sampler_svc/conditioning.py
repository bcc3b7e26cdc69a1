"""What stands for the prompt's embedding, by the method that made the weights.

UniTune and DreamBooth change weights alone, and their prompts are embedded as they are. Imagic mixes two embeddings,
and Textual Inversion puts vectors into the prompt.
"""

from collections.abc import Callable

from sampler_svc.base_graphs import BaseGraphs
from sampler_svc.engine import Array
from unitune.diffusion.guidance import Context
from unitune.errors import DataLoss
from unitune.prompts import mentions
from unitune.weights import TunedWeights

Embed = Callable[[str], Context]  # a text to its embedding (tokens, width)

REFITS_NOTHING = ("textual_inversion",)  # of the tuned methods: those that sample with the base model's own weights


def embedding(graphs: BaseGraphs, tuned: TunedWeights, prompt: str, eta: float) -> Embed:
    """What embeds the texts of an edit by `prompt`: its own, and those of its guidance.

    Raises DataLoss (WEIGHTS_CORRUPT) when the embeddings of the weights file are not this base model's.
    """
    method, width = tuned.manifest.method, graphs.spec.context_width
    if method == "imagic":
        shape = (graphs.spec.context_tokens, width)
        mixture = mixed(eta, _extra(tuned, "prompt", shape), _extra(tuned, "optimized", shape))
        return lambda text: mixture if text == prompt else graphs.embed(text)
    if method == "textual_inversion":
        placeholder, vectors = tuned.manifest.rare_tokens, _extra(tuned, "vectors", (-1, width))
        return lambda text: (
            graphs.embed_vectors(text, placeholder, vectors) if mentions(text, placeholder) else graphs.embed(text)
        )
    return graphs.embed


def mixed(eta: float, target: Context, optimized: Context) -> Context:
    """eta * target + (1 - eta) * optimized (Imagic, arXiv 2210.09276, section 3.2), exact at 0 and at 1.

    Two equal embeddings give themselves for every eta.
    """
    return target if eta == 1 else optimized + eta * (target - optimized)


def _extra(tuned: TunedWeights, name: str, shape: tuple[int, int]) -> Array:
    found = tuned.extras.get(name)
    rows, width = shape
    if found is None or found.ndim != 2 or found.shape[1] != width or rows not in (-1, len(found)):
        raise DataLoss(f"the weights file has no {name} of this base model's shape", reason="WEIGHTS_CORRUPT")
    return found
