"""The warm start: what it stores, what a tuning makes of it, and how it is learned."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel, load
from tuner_svc.checkpoint import Checkpoints, read
from tuner_svc.learn_warm_start import PICTURES, Learning, default_settings, learn
from tuner_svc.model_folder import WARM_START_FOLDER, UnusableBaseModel, digest, graphs_digest
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.warm_start import WarmStartSettings
from tuner_svc.weight_average import WeightAverage
from unitune.errors import Cancelled, InvalidField

ROUNDS = 3


def picture_of(number: int) -> np.ndarray:
    """A picture of one colour and a little noise, another for each number."""
    rng = np.random.default_rng(number)
    picture = rng.uniform(-1, 1, (1, 3, 1, 1)) + rng.normal(0, 0.1, (1, 3, 16, 16))
    return picture.clip(-1, 1).astype(np.float32)


def settings_of(model: BaseModel) -> WarmStartSettings:
    """Few updates of the whole denoiser."""
    return replace(default_settings(model, updates=4, learning_rate=1e-3), mode="full")


@pytest.fixture(scope="module")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Learning:
    """A warm start that was learned in a few rounds."""
    model = load(tiny_model)
    place = tmp_path_factory.mktemp("learned") / "checkpoint"
    return learn(model, sized(model), Learning.begin(model, settings_of(model)), ROUNDS, place)


@pytest.fixture(scope="module")
def warm_model(tiny_model: Path, learned: Learning, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model with that."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("warm") / "tiny")
    learned.stored(load(tiny_model)).save(folder, folder)
    return folder


def sized(model: BaseModel) -> Callable[[int], np.ndarray]:
    """`picture_of` at the model's size."""

    def made(number: int) -> np.ndarray:
        side = model.image_side[0] // 16
        return np.repeat(np.repeat(picture_of(number), side, axis=2), side, axis=3)

    return made


def from_warm_start(model: BaseModel, **changes: object) -> TuningConfig:
    """A tuning's config at its defaults."""
    assert model.warm_start is not None
    return TuningConfig(**{**model.warm_start.settings.defaults(), **changes})  # type: ignore[arg-type]


def test_second_moments_of_matrices_come_back_and_of_kernels_their_means(learned: Learning) -> None:
    """With the moments of an optimizer another goes on as that one would, exactly for matrices and vectors; of a kernel
    the means along each axis are the same."""
    torch.manual_seed(0)
    shapes = [(4,), (3, 5), (4, 3, 3, 3)]
    begun = [torch.randn(shape, requires_grad=True) for shape in shapes]
    first = Adafactor(begun, 1e-2)
    for _ in range(3):
        for parameter in begun:
            parameter.grad = torch.randn_like(parameter)
        first.step()
    again = [parameter.detach().clone().requires_grad_() for parameter in begun]
    second = Adafactor(again, 1e-2)
    second.begin_at(first.moments(), steps=3)
    for one, other in zip(first.moments(), second.moments(), strict=True):
        for mean, same in zip(one, other, strict=True):
            torch.testing.assert_close(mean, same)
    for parameter, other in zip(begun, again, strict=True):
        parameter.grad = torch.randn_like(parameter)
        other.grad = parameter.grad.clone()
    first.step()
    second.step()
    for parameter, other in zip(begun[:2], again[:2], strict=True):
        torch.testing.assert_close(parameter, other)


def test_a_parameter_without_gradients_has_moments_that_can_be_begun_at() -> None:
    """Their floor, 1e-30, is no zero when it is divided by."""
    parameter = torch.randn((4, 3, 3, 3), requires_grad=True)
    optimizer = Adafactor([parameter], 1e-2)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    again = Adafactor([parameter], 1e-2)
    again.begin_at(optimizer.moments(), steps=1)
    parameter.grad = torch.randn_like(parameter)
    again.step()
    assert parameter.isfinite().all()


def test_the_mean_is_of_the_last_quarter() -> None:
    """Of 8 updates the last two count; of none that is among the last, the weights stay."""
    parameter = torch.zeros(3)
    average = WeightAverage([parameter], 8)
    for update in range(8):
        parameter.fill_(update)
        average.add(update)
    average.put()
    assert parameter.tolist() == [6.5] * 3
    parameter.fill_(1.0)
    early = WeightAverage([parameter], 8)
    early.add(0)
    early.put()
    assert parameter.tolist() == [1.0] * 3


def test_no_updates_are_the_warm_start_itself_and_without_it_the_base_model(
    warm_model: Path, tiny_model: Path, learned: Learning
) -> None:
    """Zero updates with it give the stored weights, which are those learned up to the codec; without, the base's."""
    model, base = load(warm_model), load(tiny_model).tensors()
    start = tune(model, sized(model)(0), from_warm_start(model, updates=0)).tensors
    moved = torch.cat([(start[name] - base[name]).flatten() for name in start])
    wanted = torch.cat([(learned.weights[name] - base[name]).flatten() for name in start])
    assert torch.cosine_similarity(moved, wanted, dim=0) > 0.95
    plain = tune(model, sized(model)(0), from_warm_start(model, updates=0, warm_start=False)).tensors
    assert all(torch.equal(tensor, base[name]) for name, tensor in plain.items())


def test_updates_begin_at_it(warm_model: Path) -> None:
    """The first loss is that of the warm start, not of the base model, and the result depends on it."""
    model = load(warm_model)
    warm = tune(model, sized(model)(0), from_warm_start(model))
    plain = tune(model, sized(model)(0), from_warm_start(model, warm_start=False))
    assert len(warm.losses) == len(plain.losses) == 4 and warm.losses[0] != plain.losses[0]
    assert warm.losses[0] < plain.losses[0]


def test_a_tuning_goes_on_from_a_checkpoint_with_the_same_bits(warm_model: Path) -> None:
    """Cancelled after any update and resumed, also within the mean of the last ones."""
    model = load(warm_model)
    config, picture = from_warm_start(model, updates=8), sized(model)(1)
    whole = tune(model, picture, config).tensors
    for stopped in (3, 7):
        kept: dict[int, bytes] = {}
        calls = iter(range(100))
        with pytest.raises(Cancelled):
            tune(
                model,
                picture,
                config,
                cancelled=lambda calls=calls, stopped=stopped: next(calls) > stopped,  # type: ignore[misc]
                checkpoints=Checkpoints("key", 1e-9, kept.__setitem__),
            )
        resumed = Checkpoints("key", 0.0, kept.__setitem__, read(kept[max(kept)], "key"))
        again = tune(model, picture, config, checkpoints=resumed).tensors
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_it_is_refused_where_it_is_not_and_for_what_it_is_not(warm_model: Path, tiny_model: Path) -> None:
    """A base model without one, another mode, other rare tokens: field, value and remedy."""
    model, plain = load(warm_model), load(tiny_model)
    with pytest.raises(InvalidField, match=r"config.warm_start is True: leave it unset: this base model has no warm"):
        tune(plain, sized(plain)(0), from_warm_start(model))
    with pytest.raises(InvalidField, match=r"config.mode is 'lora': with warm_start it must be full"):
        tune(model, sized(model)(0), from_warm_start(model, mode="lora"))
    with pytest.raises(InvalidField, match=r"config.rare_tokens is 'xyz': with warm_start it must be beikkpic"):
        tune(model, sized(model)(0), from_warm_start(model, rare_tokens="xyz"))


def test_the_folder_is_another_base_model_with_the_same_graphs(warm_model: Path, tiny_model: Path) -> None:
    """Its tunings have other keys; nothing has to be exported anew."""
    assert digest(warm_model) != digest(tiny_model) and graphs_digest(warm_model) == graphs_digest(tiny_model)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("mode", "lora", "mode is 'lora': it must be full or attn_out"),
        ("updates", 1.5, "updates is 1.5: it must be int"),
        ("learning_rate", -1.0, "learning_rate"),
        ("colour", 1, "colour is not a setting"),
        ("denoiser", None, "denoiser must be the digest"),
        ("denoiser", "a" * 64, "was learned for other weights of the denoiser: learn it anew"),
        ("mode", "attn_out", "does not fit the base model"),
    ],
)
def test_a_wrong_setting_is_told(warm_model: Path, tmp_path: Path, name: str, value: object, told: str) -> None:
    """With file, name and what it must be."""
    folder = shutil.copytree(warm_model, tmp_path / "model")
    path = folder / WARM_START_FOLDER / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(UnusableBaseModel, match=told):
        load(folder)
    assert load(folder, with_warm_start=False).warm_start is None  # a new one can be learned


def test_a_missing_or_damaged_file_is_told(warm_model: Path, tmp_path: Path) -> None:
    """By its name."""
    folder = shutil.copytree(warm_model, tmp_path / "model")
    weights = folder / WARM_START_FOLDER / "weights.safetensors.gz"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UnusableBaseModel, match=r"weights\.safetensors\.gz cannot be loaded"):
        load(folder)
    weights.unlink()
    with pytest.raises(UnusableBaseModel, match=r"lacks warm_start/weights\.safetensors\.gz"):
        load(folder)


def test_learning_goes_on_where_it_was_interrupted(tiny_model: Path, learned: Learning, tmp_path: Path) -> None:
    """An interrupt within a round loses that round alone, and the end is the same to the bit."""
    model = load(tiny_model)
    made, place = sized(model), tmp_path / "checkpoint"

    def interrupting(number: int) -> np.ndarray:
        if number == 2 * PICTURES + 1:
            raise KeyboardInterrupt
        return made(number)

    begun = Learning.begin(model, settings_of(model))
    with pytest.raises(KeyboardInterrupt):
        learn(model, interrupting, begun, ROUNDS, place)
    assert begun.resumed(place).rounds == 2
    again = learn(model, made, begun, ROUNDS, place)
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in learned.weights.items())
    assert asdict(again)["settings"] == asdict(learned)["settings"] and again.loss == learned.loss


def test_a_checkpoint_of_other_settings_is_not_used(tiny_model: Path, learned: Learning, tmp_path: Path) -> None:
    """Nor one that is damaged."""
    model = load(tiny_model)
    place = tmp_path / "checkpoint"
    learned.save(place)
    others = Learning.begin(model, replace(settings_of(model), updates=5))
    assert others.resumed(place).rounds == 0
    place.write_bytes(place.read_bytes()[:500])
    assert Learning.begin(model, settings_of(model)).resumed(place).rounds == 0
