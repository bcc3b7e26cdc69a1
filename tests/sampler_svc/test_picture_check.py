"""A picture that the base model does not know, over a real connection to a sampler with a tiny gate."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.model import Model
from sampler_svc.sampling.gate import Gate
from sampler_svc.sampling.picture_check import PictureCheck
from sampler_svc.service import SamplerService
from tests.sampler_svc.pictures import picture
from tests.sampler_svc.test_service import request
from unitune import images, serving
from unitune.known_pictures import KnownPictures
from unitune.v1.sampler_pb2 import GetSamplerInfoRequest
from unitune.v1.sampler_pb2_grpc import SamplerServiceStub
from unitune.weight_store import WeightStore

Serve = Callable[[PictureCheck | None], AsyncIterator[SamplerServiceStub]]


@pytest.fixture
def serve(model: Model, tmp_path: Path) -> Serve:
    """Starts a sampler with limits, or without."""

    async def start(check: PictureCheck | None) -> AsyncIterator[SamplerServiceStub]:
        service = SamplerService(replace(model, picture_check=check), WeightStore(str(tmp_path / "store")))
        server = await serving.start("127.0.0.1:0", service.register)
        async with serving.channel(server.address) as channel:
            yield SamplerServiceStub(channel)
        await server.stop()

    return start


async def test_a_picture_beyond_the_limits_is_warned_of(serve: Serve, model: Model, clip_folder) -> None:
    """The warning names what the model knows and where to read on; within the limits, and without any, none (N25)."""
    gate = Gate(clip_folder[1], model.spec.preset, model.graphs.round_trip_error, threads=1)
    mean = gate.embed_picture(images.decode(picture()))
    limits = KnownPictures(mean, np.eye(len(mean), dtype=np.float32), 0.01, 1.0, "squares")
    for known, is_warned in ((limits, False), (replace(limits, mean=-mean), True), (None, False)):
        check = PictureCheck(known, gate, model.graphs) if known is not None else None
        async for sampler in serve(check):
            found = (await sampler.CheckSample(request(rare_tokens="", image=picture()), timeout=60)).warnings
            info = await sampler.GetSamplerInfo(GetSamplerInfoRequest(), timeout=60)

            assert [("(squares)" in warning, "docs/photographs.md" in warning) for warning in found] == [
                (True, True)
            ] * is_warned
            assert info.base_model.has_known_pictures is (known is not None)
            assert not (await sampler.CheckSample(request(rare_tokens="", image=b""), timeout=60)).warnings
