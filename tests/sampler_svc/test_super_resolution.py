"""Super-resolution in the sampler: against diffusers, its engine, its place in an edit."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from sampler_svc.build.folder import build
from sampler_svc.build.refit_check import random_weights, reference_answer
from sampler_svc.engines.cpu_super_resolution import SuperResolutionEngine
from sampler_svc.engines.engine import BASE, Engine, Probe, WeightSet
from sampler_svc.model import Model, SuperResolutionStage
from sampler_svc.sampling.events import Done, EditedImage, Step
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.super_resolution import SuperResolution, SuperResolutionOptions, in_tiles
from sampler_svc.service import SamplerService
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import mask, picture
from tuner_svc.channel_scale import with_channel_scales
from unitune import images
from unitune.base_model import SUPER_RESOLUTION_STAGES
from unitune.errors import Cancelled, DataLoss
from unitune.object_store import ObjectStore
from unitune.super_resolution import STREAM
from unitune.v1 import tuning_pb2
from unitune.weights import base_probe, pack, prefix, tuned_probe

WANTED = SuperResolutionOptions(noise_level=100, num_inference_steps=3, guidance_scale=1.0)
REQUEST = Request(
    image=picture(120, 100),
    prompt="a cat at the beach",
    scheduler="ddim",
    num_inference_steps=4,
    guidance_scale=2.0,
    strength=0.5,
    seeds=(5,),
)


@pytest.fixture(scope="module")
def cascade(cascade_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny cascade, built and opened."""
    return Model.open(build(cascade_graphs, tmp_path_factory.mktemp("cascade") / "engine"), threads=1)


@pytest.fixture
def engines(cascade: Model) -> Iterator[list[Engine]]:
    """The engines of both stages with the base model's weights."""
    with ExitStack() as leases:
        yield [
            leases.enter_context(stage.pool.lease(BASE, stage.base_weights)).engine
            for stage in cascade.super_resolution
        ]


@pytest.fixture(params=[0, 1], ids=SUPER_RESOLUTION_STAGES)
def number(request: pytest.FixtureRequest) -> int:
    """Each stage in turn."""
    return int(request.param)


def stage(
    cascade: Model,
    engines: list[Engine],
    number: int = 0,
    wanted: SuperResolutionOptions = WANTED,
    is_cancelled: bool = False,
) -> SuperResolution:
    """One stage for one edit."""
    prompt, empty = cascade.graphs.embed("a cat"), cascade.graphs.embed("")
    spec = cascade.spec.super_resolution[number]
    return SuperResolution(spec, engines[number].run, wanted, prompt, empty, lambda: is_cancelled)


def small(number: int = 0) -> np.ndarray:
    """A picture as it is before a stage."""
    side = (48, 96)[number]
    return images.to_model(images.decode(picture()), (side, side))


@torch.no_grad()
def diffusers_enlarged(
    folder: Path, number: int, image: np.ndarray, contexts: torch.Tensor, wanted: SuperResolutionOptions, seed: int
):
    """The same by torch and diffusers: their interpolation, noise, UNet with class labels, and DDIM."""
    unet = UNet2DConditionModel.from_pretrained(folder / SUPER_RESOLUTION_STAGES[number])
    if number:
        with_channel_scales(unet)
    scheduler = DDIMScheduler.from_pretrained(folder / SUPER_RESOLUTION_STAGES[number])
    rng = np.random.default_rng((seed, STREAM, number) if number else (seed, STREAM))
    large = torch.nn.functional.interpolate(torch.from_numpy(image), scale_factor=2, mode="bilinear")
    low = torch.nn.functional.pixel_unshuffle(large, 4)
    level = torch.tensor([wanted.noise_level])
    seen = scheduler.add_noise(low, torch.from_numpy(rng.standard_normal(low.shape, dtype=np.float32)), level)
    latents = torch.from_numpy(rng.standard_normal(low.shape, dtype=np.float32))
    scheduler.set_timesteps(wanted.num_inference_steps)
    for timestep in scheduler.timesteps:
        signal = scheduler.alphas_cumprod[timestep].sqrt()
        outputs = [
            unet(torch.cat([signal * latents, seen], 1), timestep, context[None], class_labels=level).sample
            for context in contexts
        ]
        output = wanted.guidance_scale * outputs[0] + (1 - wanted.guidance_scale) * outputs[1]
        latents = scheduler.step(low + output, timestep, latents).prev_sample
    return torch.nn.functional.pixel_shuffle(latents, 4).numpy()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_stage_is_that_of_diffusers(
    cascade: Model, engines: list[Engine], number: int, tiny_cascade: Path, guidance_scale: float
) -> None:
    """Noise level as class label, noised upsampled picture beside the noisy picture, DDIM, guidance (K1)."""
    wanted = replace(WANTED, guidance_scale=guidance_scale, is_thresholded=False)
    own = stage(cascade, engines, number, wanted)

    ours = own.enlarge(small(number), seed=7)

    contexts = torch.from_numpy(np.stack([own.prompt, own.empty]))
    theirs = diffusers_enlarged(tiny_cascade, number, small(number), contexts, wanted, seed=7)
    assert ours.shape == (1, 3, *cascade.spec.super_resolution[number].side)
    assert np.abs(ours - theirs).max() < 2e-3 * np.abs(theirs).max()


def test_the_noise_level_reaches_label_and_picture(cascade: Model) -> None:
    """The network is told the level and sees the upsampled picture with that noise; 0 shows some noise (K1)."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def network(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        seen.append((latents[:, 48:], timesteps))
        return np.zeros_like(latents[:, :48])

    context = cascade.graphs.embed("")
    for level in (0, 100):
        wanted = replace(WANTED, noise_level=level)
        second = SuperResolution(cascade.spec.super_resolution[0], network, wanted, context, context, lambda: False)
        second.enlarge(np.zeros((1, 3, 48, 48), np.float32), seed=1)

    (low_at_0, at_0), (low_at_100, at_100) = seen[0], seen[3]
    assert (at_0[0, 1], at_100[0, 1]) == (0, 100)
    assert np.array_equal([timesteps[0, 0] for _, timesteps in seen[:3]], [999, 666, 332])
    assert np.std(low_at_0) == pytest.approx(0.0064, rel=0.05)
    assert np.std(low_at_100) == pytest.approx(0.169, rel=0.05)
    assert all(np.array_equal(low, low_at_0) for low, _ in seen[:3])


def test_a_picture_beyond_the_range_is_enlarged_as_its_file_shows_it(cascade: Model, engines: list[Engine]) -> None:
    """What the decoder leaves beyond [-1, 1] is cut first; else thresholding would dim the whole picture for it."""
    second = stage(cascade, engines)
    burnt = small() * 1.6

    assert np.array_equal(second.enlarge(burnt, 1), second.enlarge(burnt.clip(-1, 1), 1))


def test_thresholding_keeps_strong_guidance_within_range(cascade: Model, engines: list[Engine]) -> None:
    """Guidance of 32 leaves the range of a picture without it, and with it ends within [-1, 1] (K4)."""
    wild, tame = (
        stage(cascade, engines, wanted=replace(WANTED, guidance_scale=32.0, is_thresholded=on)).enlarge(small(), 1)
        for on in (False, True)
    )

    assert np.abs(wild).max() > 1.5 and np.abs(tame).max() <= 1 + 1e-4


def test_the_engine_refuses_weights_that_do_not_take(cascade: Model, engines: list[Engine], number: int) -> None:
    """Its engine has the probe of every engine: other weights with the base's answer are refused."""
    base = cascade.super_resolution[number].base
    drawn = random_weights(base.tensors)

    with pytest.raises(DataLoss, match="probe"):
        engines[number].refit(
            WeightSet("other", drawn, Probe(base.probe.seed, base.probe.expected, base.probe.expected))
        )


def run(cascade: Model, request: Request, *stages: SuperResolution) -> list:
    """All events of an edit."""
    with cascade.pool.lease(BASE, lambda: cascade.base) as lease:
        return edit_events(request, cascade.tools(lease.engine.run, super_resolution=stages))


def pictures(events: list) -> list[np.ndarray]:
    """The results, decoded."""
    return [images.decode(event.png) for event in events if isinstance(event, EditedImage)]


@pytest.mark.parametrize(("num_stages", "total", "size"), [(1, 8, (120, 100, 3)), (2, 14, (192, 160, 3))])
def test_steps_of_all_stages_are_counted_as_one_edits(
    cascade: Model, engines: list[Engine], num_stages: int, total: int, size: tuple[int, ...]
) -> None:
    """Two steps, then three of each stage for each of two pictures; the result is as large as the base image, or as
    the last stage makes it; seconds are told."""
    stages = [stage(cascade, engines, number) for number in range(num_stages)]
    events = run(cascade, replace(REQUEST, seeds=(3, 4)), *stages)

    steps = [(event.index, event.total) for event in events if isinstance(event, Step)]
    assert steps == [(index, total) for index in range(total)]
    assert [found.shape for found in pictures(events)] == [size] * 2
    assert isinstance(events[-1], Done) and events[-1].super_resolution_s > 0


def test_the_second_stage_enlarges_the_first_ones_picture(cascade: Model, engines: list[Engine]) -> None:
    """An edit with both shows what the second makes of the first one's result, with noise of its own."""
    request = replace(REQUEST, image=picture(48, 48), strength=0.0)
    first, second = (stage(cascade, engines, number) for number in (0, 1))
    (edited,) = pictures(run(cascade, request, first, second))
    (plain,) = pictures(run(cascade, request))

    place = cascade.graphs.fit((48, 48))
    made = second.enlarge(first.enlarge(place.to_model(plain), seed=5), seed=5)
    assert np.array_equal(edited, place.from_model(made, (192, 192)))


def smooth(height: int, width: int) -> np.ndarray:
    """A picture (1, 3, height, width) of gradients, in which a seam would be the only edge."""
    rows, columns = np.linspace(-0.8, 0.8, height), np.linspace(-0.6, 0.9, width)
    return np.stack([rows[:, None] + 0 * columns, columns + 0 * rows[:, None], np.outer(rows, columns)])[None].astype(
        np.float32
    )


@pytest.mark.parametrize("size", [(96, 96), (64, 144), (96, 56)])
def test_a_picture_in_tiles_is_the_whole_one_without_seams(
    cascade: Model, engines: list[Engine], monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Noise is of the whole picture, and the network of convolutions: only near nothing differs, and no more at the
    borders of tiles than elsewhere."""
    second, passes = stage(cascade, engines, 1), list[tuple[int, ...]]()
    whole = second.enlarge(smooth(*size), seed=3)

    def counted(run: Callable[..., np.ndarray], step: int) -> Callable[..., np.ndarray]:
        def one(sample: np.ndarray, *more: np.ndarray) -> np.ndarray:
            passes.append(sample.shape[2:])
            return run(sample, *more)

        return in_tiles(one, step, 32)

    monkeypatch.setattr("sampler_svc.sampling.super_resolution.in_tiles", counted)
    tiled = second.enlarge(smooth(*size), seed=3)

    assert len(passes) > 3 and all(rows <= 32 and columns <= 32 for rows, columns in passes)
    difference = np.abs(tiled - whole).max(axis=(0, 1))
    assert difference.max() < 0.02 and difference.mean() < 1e-3
    across = np.abs(np.diff(tiled - whole, axis=3)).mean(axis=(0, 1, 2))
    assert across.max() < 0.004


def test_guidance_passes_two_rows_through_every_tile(cascade: Model, engines: list[Engine]) -> None:
    """Both rows come back in their order."""
    spec = SuperResolutionEngine.spec_of(cascade.spec, cascade.spec.super_resolution[1])
    question = spec.question(0)

    whole, tiled = engines[1].run(*question), in_tiles(engines[1].run, spec.step, 32)(*question)

    assert tiled.shape == whole.shape
    for row in (0, 1):
        assert np.abs(tiled[row] - whole[row]).mean() < 0.05 * np.abs(whole[0] - whole[1]).mean()


def test_kept_pixels_are_the_base_images_own_at_its_size(cascade: Model, engines: list[Engine]) -> None:
    """With interpolation 1 what a mask keeps of a large picture is exact, and the rest is super-resolution's."""
    given = mask(120, 100, box=(10, 10, 60, 60))
    request = replace(REQUEST, mask_source="given", mask=given, interpolation=1.0)

    (with_stage,) = pictures(run(cascade, request, stage(cascade, engines)))
    (without,) = pictures(run(cascade, request))

    kept = images.decode_mask(given, (120, 100)) == 0
    assert np.array_equal(with_stage[kept], images.decode(request.image)[kept])
    assert np.abs(with_stage[~kept].astype(int) - without[~kept].astype(int)).mean() > 1


def test_a_small_picture_is_finished_first_and_enlarged_whole(cascade: Model, engines: list[Engine]) -> None:
    """It becomes as large as super-resolution makes it, its aspect stays; super-resolution sees the finished edit."""
    request = replace(REQUEST, image=picture(48, 36), strength=0.0)
    (edited,) = pictures(run(cascade, request, stage(cascade, engines)))
    (plain,) = pictures(run(cascade, request))

    place = cascade.graphs.fit((48, 36))  # 53x40 within 56x40
    expected = place.from_model(stage(cascade, engines).enlarge(place.to_model(plain), seed=5), (106, 80))
    assert np.array_equal(edited, expected)


def test_cancelling_stops_super_resolution_before_its_next_step(cascade: Model, engines: list[Engine]) -> None:
    """No pass is made once the flag is set."""
    with pytest.raises(Cancelled):
        stage(cascade, engines, is_cancelled=True).enlarge(small(), seed=1)


def store_tuning(
    cascade: Model, store: ObjectStore, method: str, stage: SuperResolutionStage, *, tunes_super_resolution: bool
) -> tuning_pb2.WeightsRef:
    """Weights whose stage of super-resolution, if any, differs from the base model's; embeddings of no prompt."""
    rng = np.random.default_rng(5)
    spec, base, name = SuperResolutionEngine.spec_of(cascade.spec, stage.spec), stage.base, stage.spec.name
    extras = {name: rng.standard_normal(spec.context, dtype=np.float32) for name in ("prompt", "optimized")}
    tensors = {}
    if tunes_super_resolution:
        tensors = {name: tensor + np.float32(0.02) for name, tensor in base.tensors.items()}
        graph = stage.pool._open_engine()._path
        extras[tuned_probe(name)] = reference_answer(graph, spec, tensors)
        extras[base_probe(name)] = base.probe.base
    data, manifest = pack(
        {f"{prefix(name)}{key}": tensor for key, tensor in tensors.items()},
        probe_tuned=cascade.base.probe.base,
        probe_base=cascade.base.probe.base,
        key="key",
        base_model=cascade.spec.digest,
        method=method,
        rare_tokens="" if method == "imagic" else "beikkpic",
        updates=0,
        probe_seed=base.probe.seed,
        extras=extras if method == "imagic" else {key: extras[key] for key in extras if name in key},
    )
    store.put_weights("tunings/default/t-000/1", data, manifest)
    return tuning_pb2.WeightsRef(digest=manifest.digest, path="tunings/default/t-000/1")


@pytest.mark.parametrize("method", ["unitune", "imagic"])
@pytest.mark.parametrize("tunes_super_resolution", [False, True])
def test_super_resolution_of_a_tuning_sees_what_it_was_tuned_by(
    cascade: Model, number: int, tmp_path: Path, method: str, tunes_super_resolution: bool
) -> None:
    """Tuned, Imagic's own embedding of the prompt (I7) or the rare tokens before it; else the plain prompt, and the
    base model's weights bit for bit (K3)."""
    store, own = ObjectStore(str(tmp_path)), cascade.super_resolution[number]
    weights = store_tuning(cascade, store, method, own, tunes_super_resolution=tunes_super_resolution)
    service = SamplerService(cascade, store)
    said = "a cat" if method == "imagic" else "beikkpic a cat"
    wanted = replace(REQUEST, prompt=said, super_resolution=replace(WANTED, num_stages=2))
    question = SuperResolutionEngine.spec_of(cascade.spec, own.spec).question(0)

    with service._super_resolution("a cat", wanted, weights, threading.Event()) as stages:
        second, other = stages[number], stages[1 - number]
        answer = second.run(*question)
    with service._super_resolution("a cat", wanted, None, threading.Event()) as stages:
        untuned = stages[number]
        of_base = untuned.run(*question)

    assert np.array_equal(other.prompt, cascade.graphs.embed("a cat"))
    assert np.array_equal(untuned.prompt, cascade.graphs.embed("a cat"))
    assert np.array_equal(answer, of_base) != tunes_super_resolution
    if not tunes_super_resolution:
        assert np.array_equal(second.prompt, cascade.graphs.embed("a cat"))
    elif method == "imagic":
        extras = store.get_weights(weights.path, weights.digest).extras
        assert np.array_equal(second.prompt, extras["prompt"])
    else:
        assert np.array_equal(second.prompt, cascade.graphs.embed("beikkpic a cat"))
