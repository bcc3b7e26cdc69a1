"""A picture that the base model does not know, over a real connection to a sampler with a tiny CLIP filter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sampler_svc.model import Model
from sampler_svc.sampling.clip_filter import ClipFilter
from sampler_svc.sampling.picture_check import PictureCheck
from tests.sampler_svc.pictures import picture
from tests.sampler_svc.test_service import request
from tests.sampler_svc.test_text_check import serve
from unitune import images
from unitune.known_pictures import KnownPictures
from unitune.v1.sampler_pb2 import GetSamplerInfoRequest

__all__ = ["serve"]  # a fixture


async def test_a_picture_beyond_the_limits_is_warned_of(serve: Callable[..., Any], model: Model, clip_folder) -> None:
    """The warning names what the model knows and where to read on; within the limits, and without any, none (N25)."""
    clip_filter = ClipFilter(clip_folder[1], model.spec.preset, model.graphs.round_trip_error, threads=1)
    mean = clip_filter.embed_picture(images.decode(picture()))
    limits = KnownPictures(mean, np.eye(len(mean), dtype=np.float32), 0.01, 1.0, "squares")
    for known, is_warned in ((limits, False), (replace(limits, mean=-mean), True), (None, False)):
        check = PictureCheck(known, clip_filter, model.graphs) if known is not None else None
        async for sampler in serve(picture_check=check):
            found = (await sampler.CheckSample(request(rare_tokens="", image=picture()), timeout=60)).warnings
            info = await sampler.GetSamplerInfo(GetSamplerInfoRequest(), timeout=60)

            assert [("(squares)" in warning, "docs/photographs.md" in warning) for warning in found] == [
                (True, True)
            ] * is_warned
            assert info.base_model.has_known_pictures is (known is not None)
            assert not (await sampler.CheckSample(request(rare_tokens="", image=b""), timeout=60)).warnings
