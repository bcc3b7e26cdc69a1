"""Automatic settings from the results of their points: what the sampler would have chosen, at the cost of all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.editbench.cases import Case
from bench.editbench.results import Result
from sampler_svc.sampling.clip_filter import ClipFilter
from stickerbook.render import render


def chosen_by_clip_filter(
    clip_filter: ClipFilter, cases: Sequence[Case], points: Sequence[Sequence[Result]], out: Path
) -> list[Result]:
    """One result per case: of the point whose picture the CLIP filter ranks highest. `points` has those of each."""
    chosen = []
    for case, of_points in zip(cases, zip(*points, strict=True), strict=True):
        assert all(result.case == case.id for result in of_points)
        score = clip_filter.scorer(render(case.scene), case.prompt)
        pictures = [result.pixels(out) for result in of_points]
        ranks = [clip_filter.rank(score(picture)) for picture in pictures]
        edit_s = sum(result.edit_s for result in of_points)
        chosen.append(replace(of_points[int(np.argmax(ranks))], setting="automatic", edit_s=edit_s))
    return chosen
