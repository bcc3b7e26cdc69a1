"""LoRA files merged into SDXL: under kohya's names, with diffusers' and the original blocks, and under PEFT's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.original_names import original_unet
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.model import Lora, Source, write_folder

RANK, ALPHA, WEIGHT = 3, 2.0, 0.7
PARTS = ("unet", "text_encoder", "text_encoder_2")
# Of the denoiser: at every kind of place, with two layers in one block of attention.
UNET = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_out.0",
    "down_blocks.1.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj",
    "mid_block.resnets.1.time_emb_proj",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.2.resnets.1.conv_shortcut",
)
# With an out_proj, by which diffusers tells of which age the names are.
TEXT = tuple(
    f"text_model.encoder.layers.{place}" for place in ("0.self_attn.q_proj", "1.self_attn.out_proj", "1.mlp.fc2")
)
MODULES = {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT}


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors that a LoRA may change, by part and name."""
    return {
        f"{part}.{name}": tensor
        for part in PARTS
        for path in (folder / part).glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def factors(before: dict[str, Tensor]) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Random down and up by part and module."""
    torch.manual_seed(1)
    found = {}
    for part, modules in MODULES.items():
        for module in modules:
            shape = before[f"{part}.{module}.weight"].shape
            ones = (1,) * (len(shape) - 2)
            found[part, module] = (torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK, *ones))
    return found


def kohya(part: str, module: str, originals: dict[str, str]) -> str:
    """A module in kohya's words; `originals` are the denoiser's names in single files."""
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part]
    return prefix + (originals.get(module, module) if part == "unet" else module).replace(".", "_")


def of_diffusers(tensors: dict[str, Tensor], pipeline: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    """What is added to each weight by diffusers' own renaming of kohya's names, and by fuse_lora's formula."""
    renamed = _maybe_map_sgm_blocks_to_diffusers(dict(tensors), pipeline.unet.config)
    named, alphas = _convert_non_diffusers_lora_to_diffusers(renamed)
    assert len(alphas) == sum(len(modules) for modules in MODULES.values())
    assert set(alphas.values()) == {ALPHA}
    found = {}
    for part in PARTS:
        ours = {name.removeprefix(f"{part}."): one for name, one in named.items() if name.startswith(f"{part}.")}
        converted = convert_unet_state_dict_to_peft(ours) if part == "unet" else convert_state_dict_to_peft(ours)
        for name, down in converted.items():
            module = name.removesuffix(".lora_A.weight")
            if module != name:
                up = converted[f"{module}.lora_B.weight"].double()
                found[f"{part}.{module}.weight"] = up.reshape(-1, RANK) @ down.double().reshape(RANK, -1)
    return found


def assert_fused(after: dict[str, Tensor], before: dict[str, Tensor], deltas: dict[str, Tensor], scale: float) -> None:
    """Every weight is the one before, or W + scale * delta."""
    assert len(deltas) == sum(len(modules) for modules in MODULES.values())
    for name, tensor in before.items():
        if name in deltas:
            wanted = tensor.double() + scale * deltas[name].reshape(tensor.shape)
            assert torch.allclose(after[name].double(), wanted, rtol=1e-6, atol=1e-6), name
            assert (after[name] - tensor).abs().max() > 0.1
        else:
            assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("has_original_blocks", [False, True])
def test_kohyas_names_mean_what_diffusers_makes_of_them(
    has_original_blocks: bool, source: Source, pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """`lora_unet_input_blocks_4_1_...` or `lora_unet_down_blocks_...`, `lora_te1_` and `lora_te2_` (M11)."""
    before = weights(write_folder(source, tmp_path / "before"))
    originals = {}
    if has_original_blocks:
        new_names = {one.data_ptr(): name for name, one in pipeline.unet.state_dict().items()}
        originals = {
            new_names[one.data_ptr()].removesuffix(".weight"): name.removesuffix(".weight")
            for name, one in original_unet(pipeline).items()
        }
        assert originals[UNET[4]] == "input_blocks.2.0.op"
    tensors = {}
    for (part, module), (down, up) in factors(before).items():
        name = kohya(part, module, originals)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(ALPHA),
        }
    save_file(tensors, tmp_path / "lora.safetensors")

    after = weights(
        write_folder(replace(source, loras=(Lora(tmp_path / "lora.safetensors", WEIGHT),)), tmp_path / "after")
    )

    assert_fused(after, before, of_diffusers(tensors, pipeline), WEIGHT * ALPHA / RANK)


def test_pefts_names_are_known(source: Source, tmp_path: Path) -> None:
    """`unet.`, `text_encoder.` and `text_encoder_2.` with `lora_A` and `lora_B`, without alpha (M11)."""
    before = weights(write_folder(source, tmp_path / "before"))
    pairs = factors(before)
    tensors = {}
    for (part, module), (down, up) in pairs.items():
        tensors |= {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")

    after = weights(
        write_folder(replace(source, loras=(Lora(tmp_path / "lora.safetensors", WEIGHT),)), tmp_path / "after")
    )

    deltas = {
        f"{part}.{module}.weight": up.double().reshape(-1, RANK) @ down.double().reshape(RANK, -1)
        for (part, module), (down, up) in pairs.items()
    }
    assert_fused(after, before, deltas, WEIGHT)


@pytest.mark.parametrize(
    "module", ["lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_input_blocks_1_1_proj_in"]
)
def test_a_lora_of_another_family_is_refused(module: str, source: Source, tmp_path: Path) -> None:
    """One of Stable Diffusion 1.x has another text encoder's name, and attention at the first level."""
    save_file({f"{module}.lora_down.weight": torch.zeros(RANK, 32)}, tmp_path / "lora.safetensors")
    with pytest.raises(UnusableBaseModel, match="does not fit this model: 1 of its 1 tensors have no place in it"):
        write_folder(replace(source, loras=(Lora(tmp_path / "lora.safetensors"),)), tmp_path / "made")
    assert not (tmp_path / "made").exists()
