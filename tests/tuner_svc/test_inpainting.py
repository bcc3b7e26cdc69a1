"""Tuning a base model for inpainting: what its denoiser is shown beside the latents, and where it comes from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from safetensors.torch import load_file, save_file

from tests.original_names import original_tensors
from tests.tiny_model import INPAINTING_CHANNELS, tiny_pipeline
from tests.tiny_sdxl import tiny_sdxl
from tuner_svc.base_model import BaseModel, load
from tuner_svc.single_file.model import Source, write_folder
from tuner_svc.tune import check, tune
from tuner_svc.tuning_config import TuningConfig
from unitune.errors import InvalidField
from unitune.images import ModelImage


@pytest.fixture(scope="module")
def inpainting(tiny_inpainting: Path) -> BaseModel:
    """The tiny model for inpainting."""
    return load(tiny_inpainting)


def test_while_tuning_the_whole_picture_is_hidden(inpainting: BaseModel, image: ModelImage) -> None:
    """Beside the noised latents go a mask of ones and the latents of a grey picture, as diffusers' training makes them
    of a mask of the whole picture."""
    seen: list[torch.Tensor] = []
    hook = inpainting.denoiser.register_forward_pre_hook(
        lambda module, arguments, inputs: seen.append(inputs["sample"]), with_kwargs=True
    )
    try:
        tuned = tune(inpainting, image, TuningConfig(mode="attn_out", updates=2, batch=2))
    finally:
        hook.remove()

    # Rows of one alone are those by which the memory of an update is measured.
    assert {(rows, INPAINTING_CHANNELS, 12, 12) for rows in (1, 2)} == {tuple(sample.shape) for sample in seen}
    seen = [sample for sample in seen if len(sample) == 2]
    _, mask, masked = torch.split(seen[0], [4, 1, 4], dim=1)
    white = torch.ones(1, 1, 48, 48)
    masked_image = torch.from_numpy(image) * (white < 0.5)
    assert torch.equal(mask, torch.nn.functional.interpolate(white, size=(12, 12)).expand_as(mask))
    assert torch.equal(masked, inpainting.image_encoder(masked_image).expand_as(masked))
    assert torch.equal(seen[0][:, 4:], seen[1][:, 4:])
    assert tuned.tensors


def test_the_sampler_is_told(inpainting: BaseModel) -> None:
    """Latents have the autoencoder's channels, and the denoiser's input more."""
    assert (True, 4, INPAINTING_CHANNELS) == (
        inpainting.spec.is_inpainting,
        inpainting.spec.latent_channels,
        inpainting.spec.input_channels,
    )


def test_an_sdxl_model_for_inpainting_is_told_sizes_and_pooled_embedding_too(tmp_path: Path) -> None:
    """Its denoiser answers as diffusers' with a mask of ones, a grey picture and what SDXL takes beside the prompt."""
    pipeline = tiny_sdxl(in_channels=INPAINTING_CHANNELS)
    pipeline.save_pretrained(tmp_path / "xl")
    model = load(tmp_path / "xl")
    generator = torch.Generator().manual_seed(0)
    latents, timesteps = torch.randn(2, 4, 12, 16, generator=generator), torch.tensor([10, 700])
    context = model.encode_prompt("a cat").expand(2, -1, -1)

    with torch.no_grad():
        found = model.predicted(latents, timesteps, context)
        grey = model.image_encoder(torch.zeros(2, 3, 48, 64))
        added = {
            "text_embeds": context[:, -1, : model.pooled_width],
            "time_ids": torch.tensor([[48, 64, 0, 0, 48, 64]] * 2),
        }
        sample = torch.cat([latents, torch.ones(2, 1, 12, 16), grey], dim=1)
        wanted = pipeline.unet.eval()(sample, timesteps, context[:, :-1], added_cond_kwargs=added).sample

    assert model.spec.is_inpainting
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_null_text_is_refused_in_one_line(inpainting: BaseModel) -> None:
    """It serves Prompt-to-Prompt alone, which such a model does not sample."""
    with pytest.raises(InvalidField, match="this base model is for inpainting") as refused:
        check(inpainting, TuningConfig(method="null_text", base_prompt="a cat"))
    assert refused.value.field == "config.method"


def test_a_single_file_becomes_a_folder_for_inpainting(tiny_inpainting: Path, tmp_path: Path) -> None:
    """All tensors are there, to the bit, and diffusers opens it as what it is."""
    file = tmp_path / "tiny.safetensors"
    save_file(original_tensors(tiny_pipeline(in_channels=INPAINTING_CHANNELS)), file)

    folder = write_folder(Source(file, config=tiny_inpainting), tmp_path / "made")

    made, wanted = (
        load_file(one / "unet" / "diffusion_pytorch_model.safetensors") for one in (folder, tiny_inpainting)
    )
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], tensor) for name, tensor in wanted.items())
    assert "StableDiffusionInpaintPipeline" == json.loads((folder / "model_index.json").read_text())["_class_name"]
    assert isinstance(
        StableDiffusionInpaintPipeline.from_pretrained(folder, local_files_only=True), StableDiffusionInpaintPipeline
    )
    assert load(folder).is_inpainting
    assert np.isfinite(load(folder).encode_image(np.zeros((1, 3, 48, 48), np.float32)).numpy()).all()
