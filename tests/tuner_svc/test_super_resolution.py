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

from tests.tiny_model import save_tiny_super_resolution
from tuner_svc.base_model import BaseModel, load
from tuner_svc.model_folder import UnusableBaseModel, digest
from tuner_svc.probe import pack_tuned, super_resolution_answer
from tuner_svc.tune import UpdateProgress, check, tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.codecs import decode, tensor_names
from unitune.diffusion.schedule import Schedule
from unitune.errors import InvalidField
from unitune.images import ModelImage
from unitune.weights import SUPER_RESOLUTION, SUPER_RESOLUTION_BASE, SUPER_RESOLUTION_TUNED, unpack

SHORT = TuningConfig(updates=1, batch=2, learning_rate=1e-3, super_resolution_updates=3)


@pytest.fixture(scope="module")
def cascade(tiny_cascade: Path) -> BaseModel:
    """The tiny base model with its super-resolution."""
    return load(tiny_cascade)


@pytest.fixture(scope="module")
def large(picture: bytes) -> ModelImage:
    """The picture at the super-resolution model's size."""
    return images.to_model(images.decode(picture), (96, 96))


class Calls:
    """What the super-resolution model's network is given."""

    def __init__(self, model: BaseModel) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._hook = model.super_resolver.register_forward_pre_hook(
            lambda module, given: self.seen.append(tuple(one.detach() for one in given))
        )

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def test_super_resolution_is_tuned_on_the_noisy_picture_and_the_noised_enlargement(
    cascade: BaseModel, image: ModelImage, large: ModelImage
) -> None:
    """The second half is what the autoencoder makes of the picture, enlarged, at the level that is told (K2)."""
    with Calls(cascade) as calls:
        tune(cascade, image, replace(SHORT, batch=8, super_resolution_updates=6), large=large)

    with torch.no_grad():
        small = cascade.image_decoder(cascade.encode_image(image)).clamp(-1, 1)
    low = torch.nn.functional.pixel_unshuffle(torch.nn.functional.interpolate(small, (96, 96), mode="bilinear"), 4)
    wanted = torch.nn.functional.pixel_unshuffle(torch.from_numpy(large), 4)
    levels = torch.from_numpy(Schedule(**vars(cascade.super_resolution.schedule)).alphas_cumprod).float()
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


def test_it_learns_the_picture(
    cascade: BaseModel, image: ModelImage, large: ModelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls over a longer tuning, and the base model stays as it was."""
    before = {name: tensor.clone() for name, tensor in cascade.super_resolver.unet.state_dict().items()}
    told: list[UpdateProgress] = []

    config = replace(SHORT, batch=4, super_resolution_updates=60)
    monkeypatch.setattr("tuner_svc.progress_tracker.PROGRESS_S", 0.0)
    tuned = tune(cascade, image, config, large=large, on_progress=told.append)

    assert told[-1].loss < 0.7 * told[10].loss  # each the mean of ten
    assert (told[-1].update, told[-1].total, len(tuned.losses)) == (61, 61, 1)
    assert tuned.super_resolution.keys() == dict(cascade.super_resolver.unet.named_parameters()).keys()
    for name, tensor in cascade.super_resolver.unet.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_no_updates_leave_super_resolution_as_it_is(cascade: BaseModel, image: ModelImage, large: ModelImage) -> None:
    """The file then holds nothing of it, and the denoiser's tensors are those of any tuning (K3)."""
    without = tune(cascade, image, replace(SHORT, super_resolution_updates=0))
    tuned = tune(cascade, image, SHORT, large=large)
    data, manifest = pack_tuned(cascade, without, SHORT, "key", "int8")

    assert not unpack(data, manifest).tunes_super_resolution and manifest.extras == ()
    assert not any(name.startswith(SUPER_RESOLUTION) for name in load_tensors(data))
    assert all(torch.equal(tensor, tuned.tensors[name]) for name, tensor in without.tensors.items())


@pytest.mark.parametrize(("codec", "most"), [("none", 0), ("int8", 0.01), ("sign", 0.75)])
def test_the_file_holds_both_stages_and_both_probes(
    cascade: BaseModel, image: ModelImage, large: ModelImage, codec: str, most: float
) -> None:
    """Each stage's tensors come back apart, and the second probe is that of its tensors as they are decoded."""
    tuned = tune(cascade, image, SHORT, large=large)
    weights = unpack(*pack_tuned(cascade, tuned, SHORT, "key", codec))

    assert weights.tunes_super_resolution and weights.manifest.stopped_after == 0
    resolver = {name: tensor.numpy() for name, tensor in cascade.super_resolver.unet.state_dict().items()}
    decoded = decode(weights.super_resolution_tensors(), resolver, codec)
    assert (
        tensor_names(weights.denoiser_tensors()) <= tuned.tensors.keys()
        and decoded.keys() <= tuned.super_resolution.keys()
    )
    for name, tensor in decoded.items():
        change = np.abs(tuned.super_resolution[name].numpy() - resolver[name]).max()
        assert np.abs(tensor - tuned.super_resolution[name].numpy()).max() <= most * change
    base = super_resolution_answer(cascade, {}, weights.manifest.probe_seed)
    answer = super_resolution_answer(cascade, tuned.super_resolution, weights.manifest.probe_seed)
    effect = np.linalg.norm(answer - base)
    assert np.array_equal(weights.extras[SUPER_RESOLUTION_BASE], base) and effect > 0
    assert np.linalg.norm(weights.extras[SUPER_RESOLUTION_TUNED] - answer) < (1e-6 if codec == "none" else 0.1) * effect


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SHORT, "beikkpic"),
        (replace(SHORT, method="imagic", prompt="a cat at night", embedding_updates=2), "a cat at night"),
    ],
)
def test_super_resolution_sees_one_text(
    cascade: BaseModel, image: ModelImage, large: ModelImage, config: TuningConfig, text: str
) -> None:
    """UniTune's is the rare tokens alone, Imagic's the prompt's own embedding and not the optimized one (I7)."""
    with Calls(cascade) as calls:
        tune(cascade, image, config, large=large)

    assert len(calls.seen) == 3
    for _, _, contexts in calls.seen:
        assert torch.equal(contexts, cascade.encode_prompt(text).expand(2, -1, -1))


def test_a_base_model_without_super_resolution_refuses_to_tune_it(model: BaseModel, image: ModelImage) -> None:
    """Field, value and remedy."""
    with pytest.raises(InvalidField, match="super_resolution_updates is 3: it must be 0: this base model has no"):
        check(model, SHORT)


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
