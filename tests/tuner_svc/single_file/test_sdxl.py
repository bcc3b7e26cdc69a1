"""A single file of SDXL becomes the folder that it was made of."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.original_names import original_tensors, original_unet, original_vae
from tuner_svc.base_model import load
from tuner_svc.model_folder import UnusableBaseModel, digest, read_schedule, read_text_settings
from tuner_svc.single_file.convert import read_text_encoders, read_unet
from tuner_svc.single_file.family import SDXL, family_of
from tuner_svc.single_file.model import Source, write_configs, write_folder
from tuner_svc.single_file.prediction import PredictionType
from tuner_svc.tensor_file import read_header

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a base model by part and name."""
    return {
        f"{part}.{name.removeprefix('text_model.')}": tensor
        for part in PARTS
        for path in (folder / part).glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def assert_alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """The same names, and values equal to the bit."""
    assert found.keys() == wanted.keys()
    assert [] == [name for name in wanted if not torch.equal(found[name], wanted[name])]


def test_a_file_becomes_the_folder_that_it_was_made_of(
    source: Source, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor comes back to the bit, no connection is tried, and prompts are encoded as before (M1)."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = write_folder(source, tmp_path / "made")
    assert_alike(weights(folder), weights(tiny_sdxl))
    ours, theirs = load(folder), load(tiny_sdxl)
    for prompt in ("", "a dog in snow"):
        assert torch.equal(ours.encode_prompt(prompt), theirs.encode_prompt(prompt))


def test_a_file_gives_what_diffusers_reads_from_it(source: Source, tiny_sdxl: Path, tmp_path: Path) -> None:
    """diffusers' own reader of single files finds the same tensors."""
    folder = write_folder(source, tmp_path / "made")
    theirs = StableDiffusionXLPipeline.from_single_file(
        source.file, config=str(tiny_sdxl), local_files_only=True, torch_dtype=torch.float32
    )
    kinds = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection)
    for part, kind in zip(PARTS, kinds, strict=True):
        ours = kind.from_pretrained(folder, subfolder=part, local_files_only=True).state_dict()
        assert_alike(ours, getattr(theirs, part).state_dict())


def test_averaged_weights_in_16_bits_are_taken(
    pipeline: StableDiffusionXLPipeline, source: Source, tmp_path: Path
) -> None:
    """The averaged denoiser (EMA) is taken where it is complete, and the file's type stays (M6, M8)."""
    plain = original_unet(pipeline)
    averages = {f"model_ema.diffusion_model{name.replace('.', '')}": one + 1 for name, one in plain.items()}
    halves = {name: one.half() for name, one in (original_tensors(pipeline) | averages).items()}
    save_file(halves, source.file)
    found = weights(write_folder(source, tmp_path / "made"))
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    name = "add_embedding.linear_1.weight"
    assert torch.equal(found[f"unet.{name}"], (pipeline.unet.state_dict()[name] + 1).half())


def test_an_autoencoder_is_taken_from_elsewhere_if_its_scale_is_the_same(
    pipeline: StableDiffusionXLPipeline, source: Source, tiny_sdxl: Path, tmp_path: Path
) -> None:
    """A file without one needs `--vae`, a folder or a file; one of Stable Diffusion 1.x is refused (M9)."""
    whole = original_tensors(pipeline)
    save_file({name: one for name, one in whole.items() if not name.startswith("first_stage_model.")}, source.file)
    save_file({name: one.contiguous() for name, one in original_vae(pipeline).items()}, tmp_path / "vae.safetensors")
    with pytest.raises(UnusableBaseModel, match="no autoencoder: give one as --vae"):
        write_folder(source, tmp_path / "none")
    for number, vae in enumerate((tiny_sdxl, tmp_path / "vae.safetensors")):
        folder = write_folder(replace(source, vae=vae), tmp_path / f"made{number}")
        assert_alike(weights(folder), weights(tiny_sdxl))
    other = tmp_path / "vae"
    other.mkdir()
    config = json.loads((tiny_sdxl / "vae" / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.18215}))
    with pytest.raises(UnusableBaseModel, match=r"scales its latents by 0\.18215 and this model by 0\.13025"):
        write_folder(replace(source, vae=other), tmp_path / "none")


def test_clip_skip_is_told_by_the_folder(
    pipeline: StableDiffusionXLPipeline, source: Source, tiny_sdxl: Path, tmp_path: Path
) -> None:
    """Clip skip 2 leaves one more layer out, as diffusers' clip_skip 1 does; the pooled embedding stays (M10)."""
    folder = write_folder(replace(source, clip_skip=2), tmp_path / "made")
    ours = load(folder).encode_prompt("a cat by day")
    context, _, pooled, _ = pipeline.encode_prompt("a cat by day", clip_skip=1, do_classifier_free_guidance=False)
    assert torch.allclose(ours[:, :-1], context, atol=1e-6)
    assert torch.allclose(ours[:, -1, : pooled.shape[-1]], pooled, atol=1e-6)
    assert digest(folder) != digest(write_folder(source, tmp_path / "plain"))
    with pytest.raises(UnusableBaseModel, match="clip skip is 4: give 1 to 3"):
        write_folder(replace(source, clip_skip=4), tmp_path / "none")


def test_a_tensor_too_few_or_too_many_is_refused(
    pipeline: StableDiffusionXLPipeline, source: Source, tmp_path: Path
) -> None:
    """Every tensor of both text encoders and of the size's embedding is accounted for."""
    whole = original_tensors(pipeline)
    second, sizes = "conditioner.embedders.1.model.", "model.diffusion_model.label_emb.0.2.bias"
    for changed, told in (
        ({key: one for key, one in whole.items() if key != f"{second}text_projection"}, "text encoder 2 lacks 1 "),
        ({**whole, f"{second}transformer.extra": torch.zeros(1)}, "text encoder 2 has unknown 1 "),
        ({**whole, sizes: torch.zeros(1)}, "denoiser has of another shape 1 "),
    ):
        save_file({key: tensor.clone() for key, tensor in changed.items()}, source.file)
        with pytest.raises(UnusableBaseModel, match=told):
            write_folder(source, tmp_path / "made")
        assert not list(tmp_path.glob("*made*"))


@pytest.fixture(scope="module")
def true_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header of a whole SDXL base model; its tensors have no bytes."""
    first, second = (
        CLIPTextConfig(**{name: value for name, value in config.items() if name != "architectures"})
        for config in SDXL.text_encoders.values()
    )
    with torch.device("meta"):
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_config(dict(SDXL.vae)),
            text_encoder=CLIPTextModel(first),
            text_encoder_2=CLIPTextModelWithProjection(second),
            tokenizer=None,
            tokenizer_2=None,
            unet=UNet2DConditionModel.from_config(dict(SDXL.unet)),
            scheduler=None,
        )
        tensors = original_tensors(pipeline)
    entries = {
        name: {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [0, 2 * tensor.numel()]}
        for name, tensor in tensors.items()
    }
    offset = 0
    for entry in entries.values():
        size = entry["data_offsets"][1]
        entry["data_offsets"] = [offset, offset + size]
        offset += size
    text = json.dumps(entries).encode()
    file = tmp_path_factory.mktemp("true") / "true.safetensors"
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + offset)  # a hole: no byte is written to the disk
    return file


def test_a_true_files_names_are_recognised(true_file: Path) -> None:
    """The names and shapes of the published architecture are SDXL's, and every tensor of its parts is found."""
    header = read_header(true_file)
    assert family_of(header) is SDXL
    assert len(read_unet(header, SDXL).tensors) == 1680
    assert {part: len(found) for part, found in read_text_encoders(header, SDXL).items()} == {
        "text_encoder": 196,
        "text_encoder_2": 517,
    }


def test_the_configurations_of_a_true_file_are_those_that_were_published(tmp_path: Path) -> None:
    """Without --config: zeros for an empty prompt, two tokenizers with their own padding, and SDXL's schedule."""
    write_configs(tmp_path, SDXL, PredictionType("epsilon", "a test"), Source(tmp_path))
    assert read_text_settings(tmp_path) == (True, 0)
    ids = [
        CLIPTokenizer.from_pretrained(tmp_path, subfolder=part, local_files_only=True)(
            "a cat", padding="max_length", max_length=5
        ).input_ids
        for part in ("tokenizer", "tokenizer_2")
    ]
    assert ids == [[49406, 320, 2368, 49407, 49407], [49406, 320, 2368, 49407, 0]]
    schedule = read_schedule(tmp_path)
    assert (schedule.timestep_spacing, schedule.prediction_type) == ("leading", "epsilon")
