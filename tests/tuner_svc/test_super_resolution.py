"""Tuning super-resolution, on the tiny base model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors
from torch import Tensor

from tests.tiny_model import save_tiny_second_stage, save_tiny_super_resolution
from tuner_svc.base_model import BaseModel, load
from tuner_svc.model_folder import UnusableBaseModel, digest
from tuner_svc.probe import pack_tuned, stage_answer
from tuner_svc.super_resolution import enlarged_by
from tuner_svc.super_resolver import SuperResolver
from tuner_svc.tune import UpdateProgress, check, tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.base_model import SUPER_RESOLUTION_STAGES
from unitune.codecs import decode, tensor_names
from unitune.diffusion.schedule import Schedule
from unitune.errors import InvalidField
from unitune.images import ModelImage
from unitune.weights import base_probe, prefix, tuned_probe, unpack

NONE = TuningConfig(updates=1, batch=2, learning_rate=1e-3)
SHORT = replace(NONE, super_resolution_updates=3)


@pytest.fixture(scope="module")
def cascade(tiny_cascade: Path) -> BaseModel:
    """The tiny base model with its super-resolution."""
    return load(tiny_cascade)


@pytest.fixture(params=SUPER_RESOLUTION_STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    """Each stage's name in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def pictures(picture: bytes) -> dict[str, ModelImage]:
    """The picture at each stage's size."""
    sides = dict(zip(SUPER_RESOLUTION_STAGES, (96, 192), strict=True))
    return {stage: images.to_model(images.decode(picture), (side, side)) for stage, side in sides.items()}


@pytest.fixture(scope="module")
def large(pictures: dict[str, ModelImage]) -> dict[str, ModelImage]:
    """The same at the first stage's size alone."""
    return {"super_resolution": pictures["super_resolution"]}


def config_of(stage: str, updates: int, **more: object) -> TuningConfig:
    """A short tuning with updates of one stage."""
    return replace(NONE, **{f"{stage}_updates": updates, **more})


def resolver_of(model: BaseModel, stage: str) -> SuperResolver:
    """One stage of a cascade."""
    return model.super_resolution[SUPER_RESOLUTION_STAGES.index(stage)]


class Calls:
    """What a stage's network is given."""

    def __init__(self, model: BaseModel, stage: str = "super_resolution") -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._hook = resolver_of(model, stage).register_forward_pre_hook(
            lambda module, given: self.seen.append(tuple(one.detach() for one in given))
        )

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def test_super_resolution_is_tuned_on_the_noisy_picture_and_the_noised_enlargement(
    cascade: BaseModel, image: ModelImage, large: dict[str, ModelImage]
) -> None:
    """The second half is what the autoencoder makes of the picture, enlarged, at the level that is told (K2)."""
    with Calls(cascade) as calls:
        tune(cascade, image, replace(SHORT, batch=8, super_resolution_updates=6), large=large)

    with torch.no_grad():
        small = cascade.image_decoder(cascade.encode_image(image)).clamp(-1, 1)
    low = torch.nn.functional.pixel_unshuffle(torch.nn.functional.interpolate(small, (96, 96), mode="bilinear"), 4)
    wanted = torch.nn.functional.pixel_unshuffle(torch.from_numpy(large["super_resolution"]), 4)
    levels = torch.from_numpy(Schedule(**vars(cascade.super_resolution[0].spec.schedule)).alphas_cumprod).float()
    samples = torch.cat([sample for sample, _, _ in calls.seen])
    timesteps = torch.cat([timesteps for _, timesteps, _ in calls.seen])
    for half, clean, times in ((samples[:, :48], wanted, timesteps[:, 0]), (samples[:, 48:], low, timesteps[:, 1])):
        level = levels[times][:, None, None, None]
        if clean is wanted:
            half = half / level.sqrt()
        noise = (half - level.sqrt() * clean) / (1 - level).sqrt()
        assert noise[times < 900].mean().abs() < 0.01 and abs(float(noise[times < 900].std()) - 1) < 0.01
    assert not torch.equal(timesteps[:, 0], timesteps[:, 1])
    assert 20 < timesteps[:, 1].float().median() < 110 and timesteps[:, 0].float().median() > 300


def test_the_second_stage_is_tuned_on_crops_of_the_first_ones_result(
    cascade: BaseModel, image: ModelImage, pictures: dict[str, ModelImage]
) -> None:
    """A sample has, at one random place, the noised large picture, and beside it what the first stage, as it was tuned,
    makes of the decoded latent."""
    config = replace(SHORT, super_resolution_2_updates=8, seed=4)
    with Calls(cascade, "super_resolution_2") as calls:
        tuned = tune(cascade, image, config, large=pictures)

    first, second = cascade.super_resolution
    with torch.no_grad():
        small, context = cascade.image_decoder(cascade.encode_image(image)), cascade.encode_prompt("beikkpic")
    before = enlarged_by(first, small, context, tuned.super_resolution["super_resolution"], config.seed)
    assert not torch.equal(before, enlarged_by(first, small, context, {}, config.seed))
    enlarged = torch.nn.functional.interpolate(before.clamp(-1, 1), (192, 192), mode="bilinear")
    low = torch.nn.functional.pixel_unshuffle(enlarged, 4)
    large = torch.nn.functional.pixel_unshuffle(torch.from_numpy(pictures["super_resolution_2"]), 4)
    levels = torch.from_numpy(Schedule(**vars(second.spec.schedule)).alphas_cumprod).float()
    places = set()
    for sample, timesteps, _ in calls.seen:
        assert sample.shape == (2, 96, 24, 24)  # as large as what it enlarges, of 48x48 blocks
        signal, shown = (levels[times].sqrt()[:, None, None, None] for times in timesteps.T)
        corners = [(top, left) for top in range(25) for left in range(25)]
        top, left = min(
            corners,
            key=lambda at: float((sample[:, 48:] - shown * low[..., at[0] : at[0] + 24, at[1] : at[1] + 24]).std()),
        )
        here = ..., slice(top, top + 24), slice(left, left + 24)
        for half, factor, clean in ((sample[:, 48:], shown, low), (sample[:, :48] / signal, signal, large)):
            noise = ((half - factor * clean[here]) / (1 - factor.square()).sqrt())[timesteps[:, 0] < 900]
            assert len(noise) == 0 or abs(float(noise.std()) - 1) < 0.03
        places.add((top, left))
    assert len(places) > 4


def test_it_learns_the_picture(
    cascade: BaseModel,
    stage: str,
    image: ModelImage,
    pictures: dict[str, ModelImage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss falls over a longer tuning of a stage, and the base model stays as it was."""
    resolver = resolver_of(cascade, stage)
    before = {name: tensor.clone() for name, tensor in resolver.unet.state_dict().items()}
    told: list[UpdateProgress] = []

    config = config_of(stage, 60, batch=4)
    monkeypatch.setattr("tuner_svc.progress_tracker.PROGRESS_S", 0.0)
    tuned = tune(cascade, image, config, large={stage: pictures[stage]}, on_progress=told.append)

    assert told[-1].loss < 0.7 * told[10].loss  # each the mean of ten
    assert (told[-1].update, told[-1].total, len(tuned.losses)) == (61, 61, 1)
    assert list(tuned.super_resolution) == [stage]
    assert tuned.super_resolution[stage].keys() == dict(resolver.unet.named_parameters()).keys()
    for name, tensor in resolver.unet.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("mode", ["attn_out", "lora"])
def test_all_of_a_stage_without_attention_changes_whatever_the_mode(
    cascade: BaseModel, image: ModelImage, pictures: dict[str, ModelImage], mode: str
) -> None:
    """It has none of the layers that these modes choose; the first stage has."""
    config = replace(SHORT, super_resolution_2_updates=1, mode=mode)

    first, second = tune(cascade, image, config, large=pictures).super_resolution.values()

    assert second.keys() == dict(cascade.super_resolution[1].unet.named_parameters()).keys()
    assert first and all(".attn" in name for name in first)


def test_no_updates_leave_super_resolution_as_it_is(
    cascade: BaseModel, image: ModelImage, large: dict[str, ModelImage]
) -> None:
    """The file then holds nothing of it, and the denoiser's tensors are those of any tuning (K3)."""
    without = tune(cascade, image, NONE)
    tuned = tune(cascade, image, SHORT, large=large)
    data, manifest = pack_tuned(cascade, without, SHORT, "key", "int8")

    assert not any(map(unpack(data, manifest).tunes, SUPER_RESOLUTION_STAGES)) and manifest.extras == ()
    assert not any(name.startswith(tuple(map(prefix, SUPER_RESOLUTION_STAGES))) for name in load_tensors(data))
    assert all(torch.equal(tensor, tuned.tensors[name]) for name, tensor in without.tensors.items())


@pytest.mark.parametrize(("codec", "most"), [("none", 0), ("int8", 0.01), ("sign", 0.75)])
def test_the_file_holds_all_stages_and_their_probes(
    cascade: BaseModel, image: ModelImage, pictures: dict[str, ModelImage], codec: str, most: float
) -> None:
    """Each stage's tensors come back apart, and its probe is that of its tensors as they are decoded."""
    config = replace(SHORT, super_resolution_2_updates=3)
    tuned = tune(cascade, image, config, large=pictures)
    weights = unpack(*pack_tuned(cascade, tuned, config, "key", codec))

    assert all(map(weights.tunes, SUPER_RESOLUTION_STAGES)) and weights.manifest.stopped_after == 0
    assert tensor_names(weights.denoiser_tensors()) <= tuned.tensors.keys()
    for stage in SUPER_RESOLUTION_STAGES:
        resolver, changed = resolver_of(cascade, stage), tuned.super_resolution[stage]
        base = {name: tensor.numpy() for name, tensor in resolver.unet.state_dict().items()}
        decoded = decode(weights.stage_tensors(stage), base, codec)
        assert decoded.keys() <= changed.keys()
        for name, tensor in decoded.items():
            change = np.abs(changed[name].numpy() - base[name]).max()
            assert np.abs(tensor - changed[name].numpy()).max() <= most * change
        before = stage_answer(cascade, resolver, {}, weights.manifest.probe_seed)
        answer = stage_answer(cascade, resolver, changed, weights.manifest.probe_seed)
        effect = np.linalg.norm(answer - before)
        assert np.array_equal(weights.extras[base_probe(stage)], before) and effect > 0
        error = np.linalg.norm(weights.extras[tuned_probe(stage)] - answer)
        assert error < (1e-6 if codec == "none" else 0.1) * effect


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SHORT, "beikkpic"),
        (replace(SHORT, method="imagic", prompt="a cat at night", embedding_updates=2), "a cat at night"),
    ],
)
def test_super_resolution_sees_one_text(
    cascade: BaseModel, image: ModelImage, large: dict[str, ModelImage], config: TuningConfig, text: str
) -> None:
    """UniTune's is the rare tokens alone, Imagic's the prompt's own embedding and not the optimized one (I7)."""
    with Calls(cascade) as calls:
        tune(cascade, image, config, large=large)

    assert len(calls.seen) == 3
    for _, _, contexts in calls.seen:
        assert torch.equal(contexts, cascade.encode_prompt(text).expand(2, -1, -1))


@torch.no_grad()
def test_the_second_stage_makes_of_a_part_what_it_makes_of_it_in_the_whole(cascade: BaseModel) -> None:
    """It has no attention to places, and norms that do not divide by what is elsewhere; the first one has both."""
    generator = torch.Generator().manual_seed(0)
    sample, context = torch.randn((1, 96, 72, 72), generator=generator), cascade.encode_prompt("a cat")
    sample[..., 48:, :] *= 5  # what is far away differs much
    timestep = torch.tensor([[500, 50]])

    first, second = (
        [resolver(part, timestep, context)[..., :8, :8] for part in (sample, sample[..., :40, :40])]
        for resolver in cascade.super_resolution
    )

    assert torch.allclose(*second, rtol=0, atol=1e-4 * float(second[0].abs().max()))
    assert not torch.allclose(*first, rtol=0, atol=0.02 * float(first[0].abs().max()))


def test_a_base_model_without_a_stage_refuses_to_tune_it(model: BaseModel, stage: str) -> None:
    """Field, value and remedy."""
    remedy = f"{stage}_updates is 3: it must be 0: this base model has no {stage} folder"
    with pytest.raises(InvalidField, match=remedy):
        check(model, config_of(stage, 3))


def test_super_resolution_is_part_of_the_digest(tiny_model: Path, tiny_cascade: Path) -> None:
    """Its graphs and its tunings are then told from those of the model without."""
    assert digest(tiny_model) != digest(tiny_cascade)


def test_super_resolution_of_another_kind_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """A network that takes no noise level, or files that are missing, are named when the folder is read."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "tiny"))
    save_tiny_super_resolution(folder)
    path = folder / "super_resolution" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "class_embed_type": None}))
    with pytest.raises(UnusableBaseModel, match="class_embed_type timestep"):
        load(folder)
    path.unlink()
    with pytest.raises(UnusableBaseModel, match=r"lacks super_resolution/config\.json"):
        load(folder)


def test_a_second_stage_of_another_kind_is_refused(tiny_cascade: Path, tmp_path: Path) -> None:
    """One with attention cannot run in tiles, one must enlarge, and none comes without the first."""
    folder = Path(shutil.copytree(tiny_cascade, tmp_path / "tiny"))
    shutil.rmtree(folder / "super_resolution_2")
    shutil.copytree(folder / "super_resolution", folder / "super_resolution_2")
    path = folder / "super_resolution_2" / "config.json"
    with pytest.raises(UnusableBaseModel, match="sample_size of more than 96x96 pixels"):
        load(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": 48}))
    with pytest.raises(UnusableBaseModel, match="blocks without attention"):
        load(folder)
    save_tiny_second_stage(folder)
    shutil.rmtree(folder / "super_resolution")
    with pytest.raises(UnusableBaseModel, match="has super_resolution_2, which enlarges the pictures of super_resolut"):
        load(folder)
