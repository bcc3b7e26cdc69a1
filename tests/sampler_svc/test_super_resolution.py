"""Super-resolution in the sampler: against diffusers, its engine, its place in an edit."""

import threading
from collections.abc import Iterator
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
from sampler_svc.model import Model
from sampler_svc.sampling.events import Done, EditedImage, Step
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.super_resolution import STREAM, SuperResolution, SuperResolutionOptions
from sampler_svc.service import SamplerService
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import mask, picture
from unitune import images
from unitune.errors import Cancelled, DataLoss
from unitune.object_store import ObjectStore
from unitune.v1 import tuning_pb2
from unitune.weights import SUPER_RESOLUTION, SUPER_RESOLUTION_BASE, SUPER_RESOLUTION_TUNED, pack

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
def engine(cascade: Model) -> Iterator[Engine]:
    """The super-resolution model's engine with the base model's weights."""
    assert cascade.super_resolution is not None
    with cascade.super_resolution.lease(BASE, lambda: cascade.super_resolution_base) as lease:
        yield lease.engine


def stage(
    cascade: Model, engine: Engine, wanted: SuperResolutionOptions = WANTED, is_cancelled: bool = False
) -> SuperResolution:
    """Super-resolution for one edit."""
    prompt, empty = cascade.graphs.embed("a cat"), cascade.graphs.embed("")
    return SuperResolution(cascade.spec.super_resolution, engine.run, wanted, prompt, empty, lambda: is_cancelled)


def small() -> np.ndarray:
    """A picture as the first stage makes it."""
    return images.to_model(images.decode(picture()), (48, 48))


@torch.no_grad()
def diffusers_enlarged(
    folder: Path, image: np.ndarray, contexts: torch.Tensor, wanted: SuperResolutionOptions, seed: int
):
    """The same by torch and diffusers: their interpolation, noise, UNet with class labels, and DDIM."""
    unet = UNet2DConditionModel.from_pretrained(folder / "super_resolution")
    scheduler = DDIMScheduler.from_pretrained(folder / "super_resolution")
    rng = np.random.default_rng((seed, STREAM))
    large = torch.nn.functional.interpolate(torch.from_numpy(image), (96, 96), mode="bilinear")
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
    cascade: Model, engine: Engine, tiny_cascade: Path, guidance_scale: float
) -> None:
    """Noise level as class label, noised upsampled picture beside the noisy picture, DDIM, guidance (K1)."""
    wanted = replace(WANTED, guidance_scale=guidance_scale, is_thresholded=False)
    second = stage(cascade, engine, wanted)

    ours = second.enlarge(small(), seed=7)

    contexts = torch.from_numpy(np.stack([second.prompt, second.empty]))
    theirs = diffusers_enlarged(tiny_cascade, small(), contexts, wanted, seed=7)
    assert ours.shape == (1, 3, 96, 96)
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
        second = SuperResolution(cascade.spec.super_resolution, network, wanted, context, context, lambda: False)
        second.enlarge(np.zeros((1, 3, 48, 48), np.float32), seed=1)

    (low_at_0, at_0), (low_at_100, at_100) = seen[0], seen[3]
    assert (at_0[0, 1], at_100[0, 1]) == (0, 100)
    assert np.array_equal([timesteps[0, 0] for _, timesteps in seen[:3]], [999, 666, 332])
    assert np.std(low_at_0) == pytest.approx(0.0064, rel=0.05)
    assert np.std(low_at_100) == pytest.approx(0.169, rel=0.05)
    assert all(np.array_equal(low, low_at_0) for low, _ in seen[:3])


def test_a_picture_beyond_the_range_is_enlarged_as_its_file_shows_it(cascade: Model, engine: Engine) -> None:
    """What the decoder leaves beyond [-1, 1] is cut first; else thresholding would dim the whole picture for it."""
    second = stage(cascade, engine)
    burnt = small() * 1.6

    assert np.array_equal(second.enlarge(burnt, 1), second.enlarge(burnt.clip(-1, 1), 1))


def test_thresholding_keeps_strong_guidance_within_range(cascade: Model, engine: Engine) -> None:
    """Guidance of 32 leaves the range of a picture without it, and with it ends within [-1, 1] (K4)."""
    wild, tame = (
        stage(cascade, engine, replace(WANTED, guidance_scale=32.0, is_thresholded=on)).enlarge(small(), 1)
        for on in (False, True)
    )

    assert np.abs(wild).max() > 1.5 and np.abs(tame).max() <= 1 + 1e-4


def test_the_engine_refuses_weights_that_do_not_take(cascade: Model, engine: Engine) -> None:
    """Its engine has the probe of every engine: other weights with the base's answer are refused."""
    base = cascade.super_resolution_base
    assert base is not None
    drawn = random_weights(base.tensors)

    with pytest.raises(DataLoss, match="probe"):
        engine.refit(WeightSet("other", drawn, Probe(base.probe.seed, base.probe.expected, base.probe.expected)))


def run(cascade: Model, engine: Engine, request: Request, second: SuperResolution | None) -> list:
    """All events of an edit."""
    with cascade.pool.lease(BASE, lambda: cascade.base) as lease:
        return edit_events(request, cascade.tools(lease.engine.run, super_resolution=second))


def pictures(events: list) -> list[np.ndarray]:
    """The results, decoded."""
    return [images.decode(event.png) for event in events if isinstance(event, EditedImage)]


def test_steps_of_both_stages_are_counted_as_one_edits(cascade: Model, engine: Engine) -> None:
    """Two steps, then three for each of two pictures; the result is as large as the base image; seconds are told."""
    events = run(cascade, engine, replace(REQUEST, seeds=(3, 4)), stage(cascade, engine))

    steps = [(event.index, event.total) for event in events if isinstance(event, Step)]
    assert steps == [(index, 8) for index in range(8)]
    assert [found.shape for found in pictures(events)] == [(120, 100, 3)] * 2
    assert isinstance(events[-1], Done) and events[-1].super_resolution_s > 0


def test_kept_pixels_are_the_base_images_own_at_its_size(cascade: Model, engine: Engine) -> None:
    """With interpolation 1 what a mask keeps of a large picture is exact, and the rest is super-resolution's."""
    given = mask(120, 100, box=(10, 10, 60, 60))
    request = replace(REQUEST, mask_source="given", mask=given, interpolation=1.0)

    (with_stage,) = pictures(run(cascade, engine, request, stage(cascade, engine)))
    (without,) = pictures(run(cascade, engine, request, None))

    kept = images.decode_mask(given, (120, 100)) == 0
    assert np.array_equal(with_stage[kept], images.decode(request.image)[kept])
    assert np.abs(with_stage[~kept].astype(int) - without[~kept].astype(int)).mean() > 1


def test_a_small_picture_is_finished_first_and_enlarged_whole(cascade: Model, engine: Engine) -> None:
    """It becomes as large as super-resolution makes it, its aspect stays; super-resolution sees the finished edit."""
    request = replace(REQUEST, image=picture(48, 36), strength=0.0)
    (edited,) = pictures(run(cascade, engine, request, stage(cascade, engine)))
    (plain,) = pictures(run(cascade, engine, request, None))

    place = cascade.graphs.fit((48, 36))  # 53x40 within 56x40
    expected = place.from_model(stage(cascade, engine).enlarge(place.to_model(plain), seed=5), (106, 80))
    assert np.array_equal(edited, expected)


def test_cancelling_stops_super_resolution_before_its_next_step(cascade: Model, engine: Engine) -> None:
    """No pass is made once the flag is set."""
    with pytest.raises(Cancelled):
        stage(cascade, engine, is_cancelled=True).enlarge(small(), seed=1)


def store_tuning(
    cascade: Model, store: ObjectStore, method: str, *, tunes_super_resolution: bool
) -> tuning_pb2.WeightsRef:
    """Weights whose super-resolution, if they have one, differs from the base model's; embeddings of no prompt."""
    rng = np.random.default_rng(5)
    spec, base = SuperResolutionEngine.spec_of(cascade.spec), cascade.super_resolution_base
    extras = {name: rng.standard_normal(spec.context, dtype=np.float32) for name in ("prompt", "optimized")}
    tensors = {}
    if tunes_super_resolution:
        tensors = {name: tensor + np.float32(0.02) for name, tensor in base.tensors.items()}
        cascade_folder = cascade.super_resolution._open_engine()._path
        extras[SUPER_RESOLUTION_TUNED] = reference_answer(cascade_folder, spec, tensors)
        extras[SUPER_RESOLUTION_BASE] = base.probe.base
    data, manifest = pack(
        {f"{SUPER_RESOLUTION}{name}": tensor for name, tensor in tensors.items()},
        probe_tuned=cascade.base.probe.base,
        probe_base=cascade.base.probe.base,
        key="key",
        base_model=cascade.spec.digest,
        method=method,
        rare_tokens="" if method == "imagic" else "beikkpic",
        updates=0,
        probe_seed=base.probe.seed,
        extras=extras if method == "imagic" else {name: extras[name] for name in extras if SUPER_RESOLUTION in name},
    )
    store.put_weights("tunings/default/t-000/1", data, manifest)
    return tuning_pb2.WeightsRef(digest=manifest.digest, path="tunings/default/t-000/1")


@pytest.mark.parametrize("method", ["unitune", "imagic"])
@pytest.mark.parametrize("tunes_super_resolution", [False, True])
def test_super_resolution_of_a_tuning_sees_what_it_was_tuned_by(
    cascade: Model, tmp_path: Path, method: str, tunes_super_resolution: bool
) -> None:
    """Tuned, Imagic's own embedding of the prompt (I7) or the rare tokens before it; else the plain prompt, and the
    base model's weights bit for bit (K3)."""
    store = ObjectStore(str(tmp_path))
    weights = store_tuning(cascade, store, method, tunes_super_resolution=tunes_super_resolution)
    service = SamplerService(cascade, store)
    said = "a cat" if method == "imagic" else "beikkpic a cat"
    wanted = replace(REQUEST, prompt=said, super_resolution=WANTED)
    question = SuperResolutionEngine.spec_of(cascade.spec).question(0)

    with service._super_resolution("a cat", wanted, weights, threading.Event()) as second:
        answer = second.run(*question)
    with service._super_resolution("a cat", wanted, None, threading.Event()) as untuned:
        of_base = untuned.run(*question)

    assert np.array_equal(untuned.prompt, cascade.graphs.embed("a cat"))
    assert np.array_equal(answer, of_base) != tunes_super_resolution
    if not tunes_super_resolution:
        assert np.array_equal(second.prompt, cascade.graphs.embed("a cat"))
    elif method == "imagic":
        extras = store.get_weights(weights.path, weights.digest).extras
        assert np.array_equal(second.prompt, extras["prompt"])
    else:
        assert np.array_equal(second.prompt, cascade.graphs.embed("beikkpic a cat"))
