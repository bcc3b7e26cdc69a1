"""Graphs of any height and width against PyTorch, and tunings of pictures that are no squares."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.class_images import class_latents
from tuner_svc.export.denoiser import example
from tuner_svc.service import _model_images
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.attention import MAPS, OUT, no_controls

SIDES = [(12, 12), (10, 14), (16, 8), (8, 18), (24, 24)]  # of the latent; the second and fourth are working sizes


def run(path: Path, outputs: list[str] | None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A graph's answers on ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(outputs, inputs)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_denoiser_answers_like_torch_at_any_size(
    tiny_graphs: Path, model: BaseModel, side: tuple[int, int], batch: int
) -> None:
    """Within rounding, at five sizes and two batches (M23)."""
    inputs = example(model, batch, seed=1, side=side)
    with torch.no_grad():
        expected = model.denoiser(*inputs.values()).numpy()

    (answer,) = run(tiny_graphs / "denoiser.onnx", None, {name: value.numpy() for name, value in inputs.items()})

    np.testing.assert_allclose(answer, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("side", SIDES)
def test_maps_have_the_size_of_their_layer(tiny_graphs: Path, model: BaseModel, side: tuple[int, int]) -> None:
    """The controlled graph answers like torch, and its maps are (tokens, h, w) of the picture's own h and w; a place
    looks at all tokens together once (M28)."""
    inputs = example(model, batch=2, seed=1, side=side)
    with torch.no_grad():
        expected = model.denoiser(*inputs.values()).numpy()
    feed = {name: value.numpy() for name, value in inputs.items()} | no_controls(2, model.context_tokens)._asdict()

    answer, maps = run(tiny_graphs / "denoiser_controlled.onnx", [OUT, MAPS], feed)

    np.testing.assert_allclose(answer, expected, atol=1e-5 * np.abs(expected).max())
    assert (2, model.context_tokens, *side) == maps.shape
    np.testing.assert_allclose(maps.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_the_autoencoder_answers_like_torch_at_any_size(
    tiny_graphs: Path, model: BaseModel, side: tuple[int, int]
) -> None:
    """Encoder and decoder, within rounding (M23)."""
    generator = torch.Generator().manual_seed(0)
    image = 2 * torch.rand((2, 3, 4 * side[0], 4 * side[1]), generator=generator) - 1
    latent = torch.randn((2, 4, *side), generator=generator)
    with torch.no_grad():
        encoded, decoded = model.image_encoder(image).numpy(), model.image_decoder(latent).numpy()

    (found,) = run(tiny_graphs / "image_encoder.onnx", None, {"image": image.numpy()})
    np.testing.assert_allclose(found, encoded, atol=1e-5 * np.abs(encoded).max())
    (found,) = run(tiny_graphs / "image_decoder.onnx", None, {"latent": latent.numpy()})
    np.testing.assert_allclose(found, decoded, atol=1e-5 * np.abs(decoded).max())


def test_a_model_says_what_its_sizes_are_multiples_of(model: BaseModel) -> None:
    """The autoencoder's 4 pixels times 2 for the one upsampler of the denoiser."""
    assert (8, 2) == (model.size_step, model.spec.latent_step)


def photograph(height: int, width: int) -> bytes:
    """A PNG of random colours."""
    rng = np.random.default_rng(height)
    return images.encode_png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pictures_are_tuned_on_at_the_first_ones_working_size(model: BaseModel) -> None:
    """A portrait at 56x40; a further landscape is not squeezed into it, but filled up."""
    found, large = _model_images([photograph(60, 44), photograph(44, 60)], model, [])

    assert (2, 3, 56, 40) == found.shape and not large
    content = found[1, :, 13:42]
    np.testing.assert_array_equal(found[1, :, :13], content[:, 12::-1])
    np.testing.assert_allclose(content, images.to_model(images.decode(photograph(44, 60)), (29, 40))[0], atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        TuningConfig(mode="lora", updates=1, batch=2),
        TuningConfig(method="dreambooth", updates=1, batch=1, class_noun="cat", num_class_images=1),
        TuningConfig(method="null_text", updates=1, base_prompt="a cat", num_inference_steps=2, learning_rate=0.01),
    ],
    ids=lambda config: config.method,
)
def test_a_tuning_works_at_the_pictures_size(model: BaseModel, config: TuningConfig) -> None:
    """A landscape is tuned on as it is, and a method's class images are of its size (M24)."""
    found, _ = _model_images([photograph(44, 60)], model, [])
    assert (1, 3, 40, 56) == found.shape

    tuned = tune(model, found, config)

    assert all(np.isfinite(loss) for loss in tuned.losses) and (tuned.tensors or tuned.extras)
    if config.method == "dreambooth":
        assert (1, 4, 10, 14) == class_latents(model, "cat", 1, side=(10, 14)).shape
