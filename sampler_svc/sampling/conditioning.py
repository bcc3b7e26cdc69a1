"""The embedding of the prompt, which depends on the method that made the weights.

UniTune and DreamBooth change only weights: their prompts are embedded as they are. Imagic mixes two embeddings. Textual
Inversion puts vectors into the prompt. Null-text replaces the empty prompt's embedding by one for each step.
"""

from collections.abc import Callable

from sampler_svc.engines.engine import Array
from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.request import Request
from unitune.choices import NULL_TEXT
from unitune.diffusion.guidance import Context
from unitune.errors import DataLoss, InvalidField, length_of
from unitune.prompts import mentions
from unitune.weights import TunedWeights

Embed = Callable[[str], Context]  # a text to its conditioning (rows, width)

REFITS_NOTHING = (
    "textual_inversion",
    NULL_TEXT,
)  # of the methods that tune: those that sample with the base model's own weights


def embedding(graphs: BaseGraphs, tuned: TunedWeights, prompt: str, eta: float) -> Embed:
    """Embeds the texts of an edit by `prompt`: the prompt, and the texts of its guidance.

    Raises DataLoss (WEIGHTS_CORRUPT) when the embeddings of the weights file are not this base model's.
    """
    method, width = tuned.manifest.method, graphs.spec.context_width
    if method == "imagic":
        shape = graphs.spec.conditioning
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


def null_embeddings(graphs: BaseGraphs, tuned: TunedWeights, num_inference_steps: int) -> Array:
    """Null-text's embeddings, (steps, rows, width), from the noisiest step.

    Raises DataLoss (WEIGHTS_CORRUPT) as `embedding` does.
    """
    return _extra(tuned, "nulls", (num_inference_steps, *graphs.spec.conditioning))


def refuse_unbound(tuned: TunedWeights, request: Request) -> None:
    """Raises InvalidField for a setting that must be the tuning's and is not."""
    for name, value in tuned.manifest.bound_to.items():
        asked = getattr(request, name)
        if asked != value:
            asked, value = (length_of(one) if isinstance(one, str) else one for one in (asked, value))
            raise InvalidField(f"config.{name}", asked, f"the tuning is for {value}; edit with that, or tune anew")


def _extra(tuned: TunedWeights, name: str, shape: tuple[int, ...]) -> Array:
    """The embeddings of that name; -1 in the shape is any size."""
    found = tuned.extras.get(name)
    sizes = zip(shape, found.shape, strict=False) if found is not None else ()
    if found is None or found.ndim != len(shape) or any(wanted not in (-1, size) for wanted, size in sizes):
        raise DataLoss(f"the weights file has no {name} of this base model's shape", reason="WEIGHTS_CORRUPT")
    return found
