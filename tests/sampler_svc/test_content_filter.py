"""The content filter: a tiny random safety checker, exported, against diffusers' own; and in the stream of a run."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from sampler_svc.model import Model
from sampler_svc.sampling.content_filter import ContentFilter
from sampler_svc.service import SamplerService
from tests.sampler_svc.test_service import events, kinds, request
from tuner_svc.export.clip import OPENAI_MEAN, OPENAI_STD
from tuner_svc.export.content_filter import export_content_filter
from tuner_svc.model_folder import UnusableBaseModel
from unitune import serving
from unitune.errors import from_rpc_error
from unitune.object_store import ObjectStore
from unitune.v1 import sampler_pb2_grpc

SIDE = 32


def save_tiny_checker(folder: Path) -> StableDiffusionSafetyChecker:
    """A random safety checker of 32x32 pictures, whose thresholds are near the cosines of random pictures."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = CLIPConfig(vision_config={**shape, "image_size": SIDE, "patch_size": 8}, projection_dim=24)
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        for name in ("concept_embeds", "special_care_embeds"):
            embeddings = getattr(checker, name)
            embeddings.copy_(torch.randn(embeddings.shape))
        questions = torch.stack([pixels(picture(seed)) for seed in range(200)])
        found = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(questions).pooler_output))
        for name in ("concept_embeds", "special_care_embeds"):
            cosines = found @ torch.nn.functional.normalize(getattr(checker, name)).T
            getattr(checker, f"{name}_weights").copy_(cosines.quantile(0.97, dim=0))
    checker.save_pretrained(folder, safe_serialization=True)
    return checker


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A random picture of few colours, so that pictures differ."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3)) / 4
    return np.clip(rng.integers(0, 256, 3) + noise, 0, 255).astype(np.uint8)


def pixels(image: np.ndarray) -> torch.Tensor:
    """The picture as diffusers' feature extractor normalises it."""
    plain = torch.tensor(image).permute(2, 0, 1) / 255
    return (plain - torch.tensor(OPENAI_MEAN)[:, None, None]) / torch.tensor(OPENAI_STD)[:, None, None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StableDiffusionSafetyChecker]:
    """The graph's folder, and the safety checker that it was exported from."""
    folder = tmp_path_factory.mktemp("filter")
    checker = save_tiny_checker(folder / "safety_checker")
    return export_content_filter(folder / "safety_checker", folder / "graphs"), checker


def test_it_refuses_what_the_safety_checker_refuses(exported: tuple[Path, StableDiffusionSafetyChecker]) -> None:
    """The same verdict as diffusers on pictures of which some are refused, a few by special care alone."""
    folder, checker = exported
    ours = ContentFilter(folder, threads=1)
    pictures = [picture(seed) for seed in range(300)]

    verdicts = [ours.refuses(one) for one in pictures]

    _, theirs = checker(torch.stack([pixels(one) for one in pictures]), np.zeros((300, 1)))
    assert theirs == verdicts and 10 < sum(verdicts) < 290
    checker.special_care_embeds_weights.data += 2  # never near a special concept
    _, without = checker(torch.stack([pixels(one) for one in pictures]), np.zeros((300, 1)))
    checker.special_care_embeds_weights.data -= 2
    assert 0 < sum(without) < sum(verdicts)


def test_all_of_a_wide_picture_is_looked_at(exported: tuple[Path, StableDiffusionSafetyChecker]) -> None:
    """What is refused alone is refused at either end of a panorama, where the safety checker does not look."""
    ours = ContentFilter(exported[0], threads=1)
    refused = max((picture(seed) for seed in range(60)), key=ours.excess)
    allowed = min((picture(seed) for seed in range(60)), key=ours.excess)
    assert ours.refuses(refused) and not ours.refuses(allowed)

    for parts in ([refused, allowed, allowed], [allowed, allowed, refused]):
        assert ours.refuses(np.concatenate(parts, axis=1)) and ours.refuses(np.concatenate(parts, axis=0))


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    """The exporter names the folder, and the sampler the command that writes what it misses."""
    with pytest.raises(UnusableBaseModel, match="holds no safety checker"):
        export_content_filter(tmp_path, tmp_path / "graphs")
    with pytest.raises(FileNotFoundError, match=r"has no content_filter\.onnx: write it by python -m tuner_svc"):
        ContentFilter(tmp_path)


@pytest.fixture
async def sampler(
    model: Model, exported: tuple[Path, StableDiffusionSafetyChecker], tmp_path: Path
) -> AsyncIterator[sampler_pb2_grpc.SamplerServiceStub]:
    """A client of a sampler with the content filter."""
    service = SamplerService(
        replace(model, content_filter=ContentFilter(exported[0], threads=1)), ObjectStore(str(tmp_path))
    )
    server = await serving.start("127.0.0.1:0", service.register)
    async with serving.channel(server.address) as channel:
        yield sampler_pb2_grpc.SamplerServiceStub(channel)
    await server.stop()


async def test_a_refused_picture_is_told_and_not_sent(
    sampler: sampler_pb2_grpc.SamplerServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two seeds one is refused: it comes without files, the other as it is, and no preview of either is sent."""
    verdicts = iter([True, False])
    monkeypatch.setattr(ContentFilter, "refuses", lambda self, picture: next(verdicts))

    found = await events(sampler, request(seeds=[1, 2], content_filter=True, preview_every=1))
    plain = await events(sampler, request(seeds=[1, 2], preview_every=1))

    blocked, shown = (event.image for event in found if event.HasField("image"))
    assert (True, b"", b"", 1) == (blocked.blocked, blocked.png, blocked.mask, blocked.seed)
    assert (False, 2) == (shown.blocked, shown.seed)
    assert [shown.png] == [event.image.png for event in plain if event.HasField("image") and event.image.seed == 2]
    assert not any(event.step.preview for event in found) and any(event.step.preview for event in plain)
    assert "done" == kinds(found)[-1]


async def test_a_sampler_without_a_filter_checks_nothing_silently(model: Model, tmp_path: Path) -> None:
    """A request that asks for it is refused at once, also by CheckSample, before anything is tuned."""
    server = await serving.start("127.0.0.1:0", SamplerService(model, ObjectStore(str(tmp_path))).register)
    async with serving.channel(server.address) as channel:
        stub = sampler_pb2_grpc.SamplerServiceStub(channel)
        for call in (stub.CheckSample(request(content_filter=True)), events(stub, request(content_filter=True))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert "CONTENT_FILTER_MISSING" == from_rpc_error(caught.value).reason
    await server.stop()
