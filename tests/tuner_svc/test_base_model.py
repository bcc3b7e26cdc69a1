"""The base model in memory."""

import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from tests.tiny_model import CONTEXT_TOKENS, CONTEXT_WIDTH, IMAGE_SIDE, LATENT_CHANNELS, LATENT_SIDE
from tuner_svc.base_model import BaseModel, load
from tuner_svc.model_folder import UnusableBaseModel
from unitune import images
from unitune.prompts import with_rare_tokens

RARE = "beikkpic"


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> StableDiffusionPipeline:
    """The same folder as diffusers loads it."""
    return StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None, requires_safety_checker=False)


def test_shapes_are_read_from_the_parts(model: BaseModel) -> None:
    """Sides, channels and the size of a text embedding are those of the tiny model, not of any default."""
    assert (
        (IMAGE_SIDE, IMAGE_SIDE),
        (LATENT_SIDE, LATENT_SIDE),
        LATENT_CHANNELS,
        CONTEXT_TOKENS,
        CONTEXT_WIDTH,
    ) == (model.image_side, model.latent_side, model.latent_channels, model.context_tokens, model.context_width)


def test_nothing_asks_for_a_gradient(model: BaseModel) -> None:
    """All parts are frozen, and in the mode in which they answer alike every time."""
    parts = (model.text_encoder, model.image_encoder, model.image_decoder, model.denoiser)

    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())
    assert not any(module.training for part in parts for module in part.modules())


def test_half_precision_weights_are_loaded_as_single(tiny_model: Path, tmp_path: Path) -> None:
    """A folder stored in fp16 is tuned in fp32."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None, requires_safety_checker=False)
    pipeline.to(dtype=torch.float16).save_pretrained(tmp_path / "half")

    model = load(tmp_path / "half")

    assert {torch.float32} == {tensor.dtype for tensor in model.tensors().values()}
    assert torch.float32 == model.encode_prompt("a cat").dtype


def test_a_prompt_is_encoded_as_diffusers_does(model: BaseModel, pipeline: StableDiffusionPipeline) -> None:
    """Padding, truncation and the layer that is taken agree with the pipeline of the same model."""
    for prompt in ("", "a cat on a beach", "a dog at night " * 20):
        theirs, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)

        assert torch.equal(theirs, model.encode_prompt(prompt))


def test_a_picture_is_encoded_by_its_mode(
    model: BaseModel, pipeline: StableDiffusionPipeline, image: images.ModelImage
) -> None:
    """The latent is the posterior's mode times the scaling factor, the same twice."""
    posterior = pipeline.vae.encode(torch.from_numpy(image)).latent_dist

    assert torch.equal(0.5 * posterior.mode(), model.encode_image(image))
    assert torch.equal(model.encode_image(image), model.encode_image(image))


def test_decoding_undoes_the_scaling(model: BaseModel, pipeline: StableDiffusionPipeline) -> None:
    """A scaled latent decodes as the pipeline's own unscaled one."""
    latent = torch.randn((1, LATENT_CHANNELS, *model.latent_side), generator=torch.Generator().manual_seed(0))

    assert torch.equal(pipeline.vae.decode(latent).sample, model.image_decoder(0.5 * latent))


def test_the_rare_tokens_have_the_same_ids_alone_and_before_a_prompt(model: BaseModel) -> None:
    """What was tuned on is what is sampled with: "[r] p" begins with the ids of "[r]"."""
    alone = model.input_ids([with_rare_tokens(RARE, "")])[0].tolist()
    before = model.input_ids([with_rare_tokens(RARE, "a cat")])[0].tolist()
    length = alone.index(model.tokenizer.eos_token_id)

    assert 1 < length
    assert alone[:length] == before[:length]
    assert model.input_ids(["a cat"])[0].tolist()[1:3] == before[length : length + 2]


def test_the_older_layout_of_a_tokenizer_gives_the_same_ids(model: BaseModel, tiny_model: Path, tmp_path: Path) -> None:
    """vocab.json and merges.txt, as Stable Diffusion 1.5 has them, stand in for tokenizer.json."""
    folder = shutil.copytree(tiny_model, tmp_path / "older")
    pieces = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(pieces["vocab"]))
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in pieces["merges"]), ""])
    (folder / "tokenizer" / "merges.txt").write_text(merges)

    older = load(folder)

    assert older.digest != model.digest
    for prompt in ("", "beikkpic a cat on a beach", "Naïve 日本"):
        assert torch.equal(model.input_ids([prompt]), older.input_ids([prompt]))


def test_a_model_is_called_by_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    """A folder called `model` takes the name of what it is the model of."""
    shutil.copytree(tiny_model, tmp_path / "circus" / "model")

    assert "circus" == load(tmp_path / "circus" / "model").name
    assert "tiny" == load(tiny_model).name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"in_channels": 8}, "takes 8 channels and its vae makes 4; .* or one for inpainting, which takes 9"),
        ({"cross_attention_dim": 48}, "wants text embeddings 48 wide and its text_encoder makes 32"),
        ({"class_embed_type": "timestep"}, "has class_embed_type timestep"),
    ],
    ids=["another picture", "another text encoder", "more than a prompt"],
)
def test_parts_that_do_not_fit_are_refused(
    tiny_model: Path, tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    """A denoiser that needs other input than a latent, a timestep and this text encoder's embedding is named."""
    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    config = UNet2DConditionModel.load_config(tiny_model, subfolder="unet")
    UNet2DConditionModel.from_config({**config, **change}).save_pretrained(folder / "unet")

    with pytest.raises(UnusableBaseModel, match=complaint):
        load(folder)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_damaged_weights_are_refused_in_one_line(tiny_model: Path, tmp_path: Path, part: str) -> None:
    """A file that was cut short is no model, and the library's own complaint does not escape as a traceback."""
    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    (folder / part).write_bytes((folder / part).read_bytes()[:1000])

    with pytest.raises(UnusableBaseModel, match="cannot be loaded") as caught:
        load(folder)

    assert "\n" not in str(caught.value)


def test_a_check_beside_an_encoding_changes_neither(model: BaseModel) -> None:
    """Tokens are padded to the context's length, and a word's are not, while another thread asks for the other."""
    before, stops = sys.getswitchinterval(), threading.Event()
    sys.setswitchinterval(1e-5)  # threads take turns within a call of the tokenizer, too
    words: list[int] = []

    def check() -> None:
        while not stops.is_set():
            words.append(len(model.token_ids("a cat")))

    checking = threading.Thread(target=check)
    checking.start()
    try:
        lengths = {model.input_ids(["a dog on a beach"]).shape[1] for _ in range(3000)}
    finally:
        stops.set()
        checking.join()
        sys.setswitchinterval(before)

    assert {model.context_tokens} == lengths
    assert {len(model.token_ids("a cat"))} == set(words)
