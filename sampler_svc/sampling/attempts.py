"""Several attempts at one edit, of which the gate chooses: automatic settings, and resampling of what was rejected.

Automatic settings are the paper's own future work (UniTune, arXiv 2210.09477, limitations): which strength and guidance
an edit needs differs from picture to picture. The base model's preset lists a few points; all are tried, and the one
whose picture the gate ranks highest is taken. A seed whose picture did not pass is another matter: there the first that
does is enough.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sampler_svc.sampling.gate import Gate, Scores
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import Done, EditedImage, Event, Step, Warned
from unitune import images

SEED_STRIDE = 1_000_003  # from one attempt's seed to the next one's, so that they do not meet the caller's other seeds


@dataclass(frozen=True)
class Gated:
    """The gate's choice for one seed, and where it came from."""

    image: EditedImage
    scores: Scores
    passed: bool
    strength: float
    guidance_scale: float


def attempts_of(request: Request, gate: Gate, *, is_automatic: bool, resamples: int) -> list[Request]:
    """What to try: the preset's points, or other seeds of the same settings."""
    if is_automatic:
        return [replace(request, strength=s, guidance_scale=g) for s, g in gate.automatic_points]
    return [
        replace(request, seeds=tuple(seed + attempt * SEED_STRIDE for seed in request.seeds))
        for attempt in range(1 + resamples)
    ]


def sample_gated(
    sample_once: Callable[[Request], Iterator[Event]],
    gate: Gate,
    prompt: str,
    attempts: Sequence[Request],
    *,
    tries_all: bool,
) -> Iterator[Step | Warned | Gated | Done]:
    """All attempts, or only until each seed has a picture that passes; then the best picture of each seed.

    `prompt` is without rare tokens. Raises what `sample_once` raises.
    """
    score = gate.against(images.decode(attempts[0].image), prompt)
    best: dict[int, Gated] = {}
    spent = np.zeros(4)

    def value(found: Gated) -> tuple[bool, float]:
        # What passes ends the search for other seeds; among the points of automatic settings the rank decides.
        return not tries_all and found.passed, gate.rank(found.scores)

    for number, attempt in enumerate(attempts, start=1):
        is_open = [tries_all or index not in best or not best[index].passed for index in range(len(attempt.seeds))]
        open_seeds = [index for index, wanted in enumerate(is_open) if wanted]
        if not open_seeds:
            break
        for event in sample_once(replace(attempt, seeds=tuple(attempt.seeds[index] for index in open_seeds))):
            if isinstance(event, Step):
                # Points differ in strength, so in steps, and how many attempts are made is not known yet: no total of
                # them all would be right from the start.
                yield replace(event, attempt=number, attempts=len(attempts))
            elif isinstance(event, Warned):
                yield event
            elif isinstance(event, EditedImage):
                index = open_seeds[event.index]
                scores = score(images.decode(event.png, max_bytes=None))
                image = replace(event, index=index)
                found = Gated(image, scores, gate.passes(scores), attempt.strength, attempt.guidance_scale)
                if index not in best or value(found) > value(best[index]):
                    best[index] = found
            else:
                spent += (event.encode_s, event.denoise_s, event.decode_s, event.super_resolution_s)
    yield from (best[index] for index in sorted(best))
    yield Done(*(float(seconds) for seconds in spent))
