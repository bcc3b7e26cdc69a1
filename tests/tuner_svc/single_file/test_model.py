"""A single file becomes the folder that it was made of, whatever names and types it has."""

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.original_names import original_tensors, original_unet, original_vae
from tests.tiny_model import tiny_pipeline
from tuner_svc.base_model import load
from tuner_svc.model_folder import UnusableBaseModel, digest
from tuner_svc.single_file.__main__ import main
from tuner_svc.single_file.convert import text_encoder_shapes, unet_shapes, vae_shapes
from tuner_svc.single_file.family import SD_1, SD_2, SDXL, Family, family_of
from tuner_svc.single_file.model import Lora, Source, write_folder
from tuner_svc.tensor_file import read_header

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    """The tiny base model, in memory."""
    return tiny_pipeline()


@pytest.fixture
def source(pipeline: StableDiffusionPipeline, tiny_model: Path, tmp_path: Path) -> Source:
    """The tiny base model as a single file; its architecture is no family's, so its configurations are given."""
    save_file(original_tensors(pipeline), tmp_path / "tiny.safetensors")
    return Source(tmp_path / "tiny.safetensors", config=tiny_model)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a base model by part and name."""
    return {
        f"{part}.{name.removeprefix('text_model.')}": tensor
        for part in PARTS
        for path in (folder / part).glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def assert_alike(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same names, and values equal to the bit."""
    assert found.keys() == wanted.keys()
    assert [] == [name for name in wanted if not torch.equal(found[name], wanted[name])]


@pytest.mark.parametrize("is_open_clip", [False, True])
def test_a_file_becomes_the_folder_that_it_was_made_of(
    is_open_clip: bool,
    pipeline: StableDiffusionPipeline,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every tensor comes back to the bit, CLIP's names or OpenCLIP's, and no connection is tried (M1)."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was tried")

    file = tmp_path / "tiny.safetensors"
    save_file(original_tensors(pipeline, is_open_clip=is_open_clip), file)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = write_folder(Source(file, config=tiny_model), tmp_path / "made")
    assert_alike(weights(folder), weights(tiny_model))
    model = load(folder)
    assert model.input_ids(["a dog in snow"]).tolist() == load(tiny_model).input_ids(["a dog in snow"]).tolist()


def test_a_file_gives_what_diffusers_reads_from_it(source: Source, tiny_model: Path, tmp_path: Path) -> None:
    """diffusers' own reader of single files finds the same tensors."""
    folder = write_folder(source, tmp_path / "made")
    theirs = StableDiffusionPipeline.from_single_file(
        source.file, config=str(tiny_model), local_files_only=True, safety_checker=None, torch_dtype=torch.float32
    )
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        ours = kind.from_pretrained(folder, subfolder=part, local_files_only=True).state_dict()
        assert_alike(ours, getattr(theirs, part).state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_keeps_its_dtype(
    dtype: torch.dtype, pipeline: StableDiffusionPipeline, tiny_model: Path, tmp_path: Path
) -> None:
    """A file in 16 bits becomes a folder in 16 bits, whose loaded values are those of the file (M6)."""
    halves = {name: tensor.to(dtype) for name, tensor in original_tensors(pipeline).items()}
    save_file(halves, tmp_path / "half.safetensors")
    folder = write_folder(Source(tmp_path / "half.safetensors", config=tiny_model), tmp_path / "made")
    assert {tensor.dtype for tensor in weights(folder).values()} == {dtype}
    name = "conv_in.weight"
    assert torch.equal(load(folder).tensors()[name], pipeline.unet.state_dict()[name].to(dtype).float())


@pytest.mark.parametrize("is_complete", [True, False])
def test_averaged_weights_are_taken_when_all_are_there(
    is_complete: bool, pipeline: StableDiffusionPipeline, source: Source, tiny_model: Path, tmp_path: Path
) -> None:
    """The averaged denoiser (EMA) is taken where it is complete, and that is said; else the plain one is (M8)."""
    averages = {
        "model_ema.diffusion_model" + name.replace(".", ""): tensor + 1
        for name, tensor in original_unet(pipeline).items()
    }
    if not is_complete:
        averages.popitem()
    save_file(original_tensors(pipeline) | averages, source.file)
    said: list[str] = []
    folder = write_folder(source, tmp_path / "made", said.append)
    ours, plain = weights(folder), weights(tiny_model)
    difference = ours["unet.conv_in.weight"] - plain["unet.conv_in.weight"]
    assert torch.allclose(difference, torch.full_like(difference, float(is_complete)), atol=1e-6)
    assert is_complete == any("EMA" in line for line in said)
    assert is_complete == json.loads((folder / "unitune_source.json").read_text())["is_averaged"]


def test_a_file_without_an_autoencoder_needs_one(
    pipeline: StableDiffusionPipeline, source: Source, tiny_model: Path, tmp_path: Path
) -> None:
    """A file without its autoencoder is refused, and taken with one: a folder, or a file of either names (M9)."""
    whole = original_tensors(pipeline)
    save_file({name: one for name, one in whole.items() if not name.startswith("first_stage_model.")}, source.file)
    with pytest.raises(UnusableBaseModel, match="no autoencoder: give one as --vae"):
        write_folder(source, tmp_path / "none")
    save_file({name: one.contiguous() for name, one in original_vae(pipeline).items()}, tmp_path / "vae.safetensors")
    beside = tiny_model / "vae" / "diffusion_pytorch_model.safetensors"
    for number, vae in enumerate((tiny_model, beside, tmp_path / "vae.safetensors")):
        folder = write_folder(replace(source, vae=vae), tmp_path / f"made{number}")
        assert_alike(weights(folder), weights(tiny_model))


def test_an_autoencoder_under_older_names_is_taken(
    pipeline: StableDiffusionPipeline, source: Source, tiny_model: Path, tmp_path: Path
) -> None:
    """diffusers once called the parts of an attention query, key, value and proj_attn, and a folder may be in fp16."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for name, tensor in pipeline.vae.state_dict().items():
        new = next((word for word in names if f".attentions.0.{word}." in name), None)
        older[name.replace(new, names[new]) if new else name] = tensor
    folder = tmp_path / "vae"
    folder.mkdir()
    shutil.copy(tiny_model / "vae" / "config.json", folder)
    save_file(older, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert sum("proj_attn" in name for name in older) == 4
    assert_alike(weights(write_folder(replace(source, vae=folder), tmp_path / "made")), weights(tiny_model))


def test_an_autoencoder_of_another_scale_is_refused(source: Source, tiny_model: Path, tmp_path: Path) -> None:
    """An autoencoder whose latents are scaled otherwise would make wrong pictures without any error (M9)."""
    other = tmp_path / "vae"
    other.mkdir()
    config = json.loads((tiny_model / "vae" / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    os.link(tiny_model / "vae" / "diffusion_pytorch_model.safetensors", other / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UnusableBaseModel, match=r"scales its latents by 0\.13025 and this model by 0\.5"):
        write_folder(replace(source, vae=other), tmp_path / "made")


def test_clip_skip_leaves_the_last_layer_out(source: Source, tiny_model: Path, tmp_path: Path) -> None:
    """Clip skip 2 gives the hidden states before the last layer, through the final norm, and another digest (M10)."""
    folder = write_folder(replace(source, clip_skip=2), tmp_path / "made")
    base, ours = load(tiny_model), load(folder)
    ids = base.input_ids(["a cat by day"])
    whole = CLIPTextModel.from_pretrained(tiny_model, subfolder="text_encoder", local_files_only=True)
    with torch.no_grad():
        states = whole(ids, output_hidden_states=True).hidden_states
        norm = getattr(whole, "text_model", whole).final_layer_norm
        wanted = norm(states[-2])
    assert torch.allclose(ours.encode_prompt("a cat by day"), wanted, atol=1e-6)
    assert digest(folder) != digest(tiny_model)
    with pytest.raises(UnusableBaseModel, match="clip skip is 3: give 1 to 2"):
        write_folder(replace(source, clip_skip=3), tmp_path / "none")


def test_a_lora_of_all_layers_fits_a_shorter_text_encoder(source: Source, tmp_path: Path) -> None:
    """With clip skip 2 a LoRA still names the last layer; what it says of that is left out."""
    tensors = {}
    for layer in (0, 1):
        module = f"lora_te_text_model_encoder_layers_{layer}_mlp_fc1"
        tensors |= {f"{module}.lora_down.weight": torch.ones(2, 32), f"{module}.lora_up.weight": torch.ones(64, 2)}
    save_file(tensors, tmp_path / "lora.safetensors")
    plain = weights(write_folder(replace(source, clip_skip=2), tmp_path / "plain"))
    merged = replace(source, clip_skip=2, loras=(Lora(tmp_path / "lora.safetensors"),))
    changed = weights(write_folder(merged, tmp_path / "made"))
    assert changed.keys() == plain.keys()
    assert ["text_encoder.encoder.layers.0.mlp.fc1.weight"] == [
        name for name in plain if not torch.equal(plain[name], changed[name])
    ]


def test_a_lora_beyond_the_type_of_the_weights_is_refused(
    pipeline: StableDiffusionPipeline, tiny_model: Path, tmp_path: Path
) -> None:
    """A sum that is not finite in fp16 is no base model, and leaves no folder."""
    save_file({name: one.half() for name, one in original_tensors(pipeline).items()}, tmp_path / "half.safetensors")
    module = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    large = {f"{module}.lora_down.weight": torch.full((2, 32), 1e3), f"{module}.lora_up.weight": torch.ones(64, 2)}
    save_file(large, tmp_path / "lora.safetensors")
    loras = (Lora(tmp_path / "lora.safetensors", 1e3),)
    with pytest.raises(UnusableBaseModel, match="not finite"):
        write_folder(Source(tmp_path / "half.safetensors", config=tiny_model, loras=loras), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_another_kind_of_file_is_told_with_a_config_too(tiny_model: Path, tmp_path: Path) -> None:
    """An architecture that is given does not make a model of a LoRA."""
    save_file({"lora_unet_mid_block.lora_down.weight": torch.zeros(1, 1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UnusableBaseModel, match="is a LoRA: give it as --lora"):
        write_folder(Source(tmp_path / "lora.safetensors", config=tiny_model), tmp_path / "made")


def test_a_tensor_too_few_or_too_many_is_refused(
    pipeline: StableDiffusionPipeline, source: Source, tmp_path: Path
) -> None:
    """Every tensor that is needed must be there, in its shape, and every one of the parts must be used."""
    whole = original_tensors(pipeline)
    name = "model.diffusion_model.out.2.weight"
    for changed, told in (
        ({key: tensor for key, tensor in whole.items() if key != name}, r"denoiser lacks 1 tensors \(conv_out\.weight"),
        ({**whole, "model.diffusion_model.extra.weight": whole[name]}, "denoiser has unknown 1 tensors"),
        ({**whole, name: whole[name][:, :3].contiguous()}, "denoiser has of another shape 1 tensors"),
        ({**whole, "first_stage_model.decoder.extra": whole[name]}, "autoencoder has unknown"),
        ({**whole, "cond_stage_model.transformer.text_model.extra": whole[name]}, "text encoder has unknown 1"),
    ):
        save_file({key: tensor.clone() for key, tensor in changed.items()}, source.file)
        with pytest.raises(UnusableBaseModel, match=told):
            write_folder(source, tmp_path / "made")
        assert not list(tmp_path.glob("*made*"))


def test_a_folder_that_is_there_is_left_alone(source: Source, tmp_path: Path) -> None:
    """Nothing is written over; and what fails half way leaves nothing behind."""
    (tmp_path / "made").mkdir()
    with pytest.raises(UnusableBaseModel, match="is there already"):
        write_folder(source, tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        (SD_1, (859_520_964, 83_653_863, 123_060_480)),
        (SD_2, (865_910_724, 83_653_863, 340_387_840)),
        (SDXL, (2_567_463_684, 83_653_863, 123_060_480, 694_659_840)),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_the_families_are_those_that_were_published(family: Family, wanted: tuple[int, ...]) -> None:
    """At their true sizes the parts have the published numbers of parameters; nothing is computed."""
    shapes = (unet_shapes(family), vae_shapes(family), *text_encoder_shapes(family).values())
    assert tuple(sum(int(np.prod(shape)) for shape in part.values()) for part in shapes) == wanted


@pytest.mark.parametrize("family", [SD_1, SD_2], ids=lambda family: family.name)
def test_a_true_files_names_are_recognised(family: object, tmp_path: Path) -> None:
    """The names and shapes of a true file, all on the meta device, are a family's, and every tensor is found."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        text = {name: value for name, value in family.text_encoder.items() if name != "architectures"}
        text["num_hidden_layers"] = 24 if family is SD_2 else 12
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_config(dict(family.vae)),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
            tokenizer=CLIPTokenizer({"<|startoftext|>": 0, "<|endoftext|>": 1}, []),
            unet=UNet2DConditionModel.from_config(dict(family.unet)),
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        tensors = original_tensors(pipeline, is_open_clip=family is SD_2)
    header = {
        name: {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [0, 0]} for name, tensor in tensors.items()
    }
    text = json.dumps(header).encode()
    file = tmp_path / "true.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    assert family_of(read_header(file)) is family
    unet = {name: one for name, one in tensors.items() if name.startswith("model.diffusion_model.")}
    found = convert_ldm_unet_checkpoint(unet, dict(family.unet))
    assert {name: tuple(one.shape) for name, one in found.items()} == unet_shapes(family)


def test_the_vocabulary_is_clips(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    """Known prompts have the token ids that CLIP's published vocabulary gives them."""
    import gzip

    from tuner_svc.single_file.model import MERGES, vocabulary

    merges = gzip.decompress(MERGES.read_bytes()).decode()
    words = vocabulary(merges)
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text(merges)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SD_1.tokenizer))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(words) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello, world!").input_ids == [49406, 3306, 267, 1002, 256, 49407]


def test_the_program_says_what_it_found(
    source: Source, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line is the folder; a file that is none ends it with one line and status 1."""
    given = [str(source.file), "--config", str(tiny_model), "--out", str(tmp_path / "made")]
    assert main(given) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'made'}\n"
    assert "predicts epsilon" in told.err
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert main([str(tmp_path / "text.safetensors"), "--out", str(tmp_path / "none")]) == 1
    assert (
        capsys.readouterr().err
        == f"import: {tmp_path / 'text.safetensors'} is not a safetensors file: download it again, or give another\n"
    )
