"""What a file is, by its header alone; what it predicts; and what is never opened."""

import json
import pickle
from pathlib import Path

import pytest

from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.family import SD_1, SD_2, SDXL, Family, family_of
from tuner_svc.single_file.prediction import prediction_of
from tuner_svc.tensor_file import read_header

SD_1_NAMES = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": [768],
}
SD_2_NAMES = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 1024],
    "cond_stage_model.model.ln_final.weight": [1024],
}
SDXL_NAMES = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": [640, 2048],
    "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": [1280, 2048],
    "model.diffusion_model.label_emb.0.0.weight": [1280, 2816],
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": [768],
    "conditioner.embedders.1.model.ln_final.weight": [1280],
}
FIRST, CROSS_ATTENTION, *_ = SD_1_NAMES
_, SDXL_CROSS_ATTENTION, DEEPEST, CLASS_EMBEDDING, FIRST_TEXT, _ = SDXL_NAMES


def without(name: str) -> dict[str, list[int]]:
    """SDXL's names but one."""
    return {other: shape for other, shape in SDXL_NAMES.items() if other != name}


def header_file(path: Path, shapes: dict[str, list[int]], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of these names, whose tensors have no bytes."""
    entries = {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({**entries, **({"__metadata__": metadata} if metadata else {})}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


def test_the_families_are_told_apart(tmp_path: Path) -> None:
    """The width of the text embeddings tells them apart (M2)."""
    assert family_of(read_header(header_file(tmp_path / "1.safetensors", SD_1_NAMES))) is SD_1
    assert family_of(read_header(header_file(tmp_path / "2.safetensors", SD_2_NAMES))) is SD_2
    assert family_of(read_header(header_file(tmp_path / "xl.safetensors", SDXL_NAMES))) is SDXL


@pytest.mark.parametrize(("shapes", "family"), [(SD_1_NAMES, SD_1), (SD_2_NAMES, SD_2), (SDXL_NAMES, SDXL)])
def test_models_for_inpainting_are_told_by_their_nine_channels(
    shapes: dict[str, list[int]], family: Family, tmp_path: Path
) -> None:
    """They are of the same family but for the denoiser's input, and say so."""
    header = read_header(header_file(tmp_path / "paint.safetensors", {**shapes, FIRST: [320, 9, 3, 3]}))
    found = family_of(header)
    assert (True, f"{family.name} for inpainting") == (found.is_for_inpainting, found.name)
    assert {**family.unet, "in_channels": 9} == found.unet
    assert not family.is_for_inpainting


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"joint_blocks.0.weight": [1]}, "a Stable Diffusion 3 model"),
        ({"double_blocks.0.weight": [1]}, "a Flux model"),
        ({**without(FIRST_TEXT), CLASS_EMBEDDING: [1280, 2560], SDXL_CROSS_ATTENTION: [640, 1280]}, "an SDXL refiner"),
        ({**SDXL_NAMES, FIRST: [320, 8, 3, 3]}, "an InstructPix2Pix model"),
        ({**SDXL_NAMES, "edm_mean": [4]}, r"a Playground 2\.5 model"),
        ({**SDXL_NAMES, "edm_vpred.sigma_max": [1]}, "an EDM model"),
        (without(DEEPEST), "a smaller model made from SDXL, as SSD-1B, Vega and KOALA are"),
        (without(CLASS_EMBEDDING), "a model of SDXL's kind whose network is another"),
        (without(FIRST_TEXT), "a network without its text encoder"),
        ({**SD_1_NAMES, "embedder.model.weight": [1]}, "an unCLIP model"),
        ({**SD_1_NAMES, "edm_mean": [4]}, r"a Playground 2\.5 model"),
        ({"lora_unet_mid_block.hada_w1_a": [4, 4]}, "a LoHa"),
        ({"lora_unet_mid_block.lokr_w1": [4, 4]}, "a LoKr"),
        ({"control_model.time_embed.0.weight": [1]}, "a ControlNet"),
        (
            {**SD_1_NAMES, "model.diffusion_model.time_embed.cond_proj.weight": [320, 256]},
            "a full latent consistency model",
        ),
        ({**SD_1_NAMES, FIRST: [320, 8, 3, 3]}, "an InstructPix2Pix model"),
        ({**SD_1_NAMES, FIRST: [320, 5, 3, 3]}, "a depth model"),
        ({**SD_1_NAMES, FIRST: [320, 7, 3, 3]}, "an upscaler"),
        ({**SD_1_NAMES, "model.diffusion_model.label_emb.0.0.weight": [1280, 2816]}, "a model of SDXL's kind"),
        ({**SD_1_NAMES, CROSS_ATTENTION: [320, 1280]}, "a model whose text embeddings are 1280 wide"),
        ({FIRST: [320, 4, 3, 3], CROSS_ATTENTION: [320, 768]}, "a network without its text encoder"),
        ({"lora_unet_mid_block.lora_down.weight": [4, 4]}, "a LoRA: give it as --lora beside a model"),
        ({"unet.mid_block.to_q.lora_A.weight": [4, 4]}, "a LoRA: give it as --lora beside a model"),
        ({"first_stage_model.decoder.conv_in.weight": [4]}, "an autoencoder alone: give it as --vae beside a model"),
        ({"a": [1]}, "no Stable Diffusion model"),
    ],
)
def test_another_family_is_refused_by_its_name(shapes: dict[str, list[int]], told: str, tmp_path: Path) -> None:
    """A file that cannot be used says what it is; one that nobody knows is not taken for Stable Diffusion 1 (M2)."""
    with pytest.raises(UnusableBaseModel, match=f"is {told}"):
        family_of(read_header(header_file(tmp_path / "other.safetensors", shapes)))


@pytest.mark.parametrize(
    ("extra", "metadata", "yaml", "kind", "source"),
    [
        ({}, {"modelspec.prediction_type": "v"}, "", "v_prediction", "modelspec.prediction_type"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "", "epsilon", "modelspec.prediction_type"),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "", "v_prediction", "modelspec.architecture"),
        ({"v_pred": [0]}, {}, "", "v_prediction", "tensor v_pred"),
        ({}, {}, 'model:\n  params:\n    parameterization: "v"\n', "v_prediction", "model.yaml"),
        ({}, {}, "model:\n  params:\n    parameterization: eps\n", "epsilon", "model.yaml"),
    ],
)
def test_the_prediction_type_is_found_in_the_file(
    extra: dict[str, list[int]], metadata: dict[str, str], yaml: str, kind: str, source: str, tmp_path: Path
) -> None:
    """Metadata, a tensor or a .yaml beside the file say what it predicts, and which of them is told (M3)."""
    header = read_header(header_file(tmp_path / "model.safetensors", {**SD_2_NAMES, **extra}, metadata))
    if yaml:
        (tmp_path / "model.yaml").write_text(yaml)
    found = prediction_of(header, SD_2, None)
    assert found.kind == kind
    assert source in found.source
    other = "epsilon" if kind == "v_prediction" else "v"
    with pytest.raises(UnusableBaseModel, match=f"--prediction is {other}: its .*|.*leave --prediction out"):
        prediction_of(header, SD_2, other)


def test_a_word_for_the_prediction_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """Metadata that name another prediction are not taken for epsilon: pictures would be noise."""
    header = read_header(header_file(tmp_path / "m.safetensors", SD_1_NAMES, {"modelspec.prediction_type": "sample"}))
    with pytest.raises(UnusableBaseModel, match="predicts 'sample', which is none of epsilon, v"):
        prediction_of(header, SD_1, None)


def test_a_prediction_type_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    """Stable Diffusion 1.x predicts epsilon; of 2.x there are both, so it is asked for (M3)."""
    header = read_header(header_file(tmp_path / "model.safetensors", SD_2_NAMES))
    with pytest.raises(UnusableBaseModel, match=r"does not say what it predicts: .* with --prediction v"):
        prediction_of(header, SD_2, None)
    assert prediction_of(header, SD_2, "v").kind == "v_prediction"
    assert prediction_of(header, SD_1, None) == ("epsilon", "the family's own", False)


def test_zero_terminal_snr_is_found(tmp_path: Path) -> None:
    """The tensor ztsnr says that the last timestep is pure noise (M3)."""
    header = read_header(header_file(tmp_path / "m.safetensors", {**SD_1_NAMES, "v_pred": [0], "ztsnr": [0]}))
    assert prediction_of(header, SD_1, None).has_zero_snr


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    """A pickled file is refused by its ending and by its first bytes, and nothing of it runs (M4)."""
    (tmp_path / name).write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(UnusableBaseModel, match="is not opened, since a pickled file can run any code"):
        read_header(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    """A download that stopped is refused with what is missing."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "cut.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(10))
    with pytest.raises(UnusableBaseModel, match="is cut short: 6 bytes are missing"):
        read_header(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        (400000).to_bytes(8, "little") + b"[" * 400000,
        b"\xff" * 64,
        (9).to_bytes(8, "little") + b"not json!",
    ],
)
def test_other_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    """Whatever else a file holds is no safetensors file, in one sentence."""
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UnusableBaseModel, match="is not a safetensors file"):
        read_header(tmp_path / "m.safetensors")
