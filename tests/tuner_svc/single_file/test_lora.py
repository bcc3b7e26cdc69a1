"""LoRA files merged into a base model, under every name that they come by."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.original_names import original_tensors
from tests.tiny_model import tiny_pipeline
from tuner_svc.model_folder import UnusableBaseModel, digest
from tuner_svc.single_file.model import Lora, Source, write_folder

RANK = 3
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUTPUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
POINTWISE = "down_blocks.0.attentions.0.proj_in"
MODULES = (LINEAR, OUTPUT, CONVOLUTION, POINTWISE)
Names = Callable[[str, str], str]  # module, "down" or "up" -> the tensor's name


def kohya(module: str, way: str) -> str:
    """As kohya's trainer names it."""
    return f"lora_unet_{module.replace('.', '_')}.lora_{way}.weight"


def peft(module: str, way: str) -> str:
    """As PEFT names it."""
    return f"unet.{module}.lora_{'A' if way == 'down' else 'B'}.weight"


def dotted(module: str, way: str) -> str:
    """As diffusers named it for a while."""
    return f"unet.{module}.lora.{way}.weight"


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny base model as a single file."""
    file = tmp_path_factory.mktemp("file") / "tiny.safetensors"
    save_file(original_tensors(tiny_pipeline()), file)
    return Source(file, config=tiny_model)


@pytest.fixture
def factors(tiny_model: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors, down and up, for each of MODULES."""
    torch.manual_seed(1)
    weights = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    found = {}
    for module in MODULES:
        shape = weights[f"{module}.weight"].shape
        ones = (1,) * (len(shape) - 2)
        found[module] = (torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK, *ones))
    return found


def lora_file(path: Path, factors: dict[str, tuple[Tensor, Tensor]], names: Names, alpha: float | None = None) -> Path:
    """A LoRA's file under a writer's names."""
    tensors = {}
    for module, (down, up) in factors.items():
        tensors |= {names(module, "down"): down, names(module, "up"): up}
        if alpha is not None:
            tensors[names(module, "down").split(".lora")[0] + ".alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def unet(folder: Path) -> dict[str, Tensor]:
    """The denoiser's tensors."""
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("names", [kohya, peft, dotted])
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_lora_is_added_under_every_name(
    names: Names, alpha: float | None, base: Source, factors: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    """W + 0.5 * (alpha / rank) * up @ down for linear layers and convolutions; all else stays to the bit (M11)."""
    lora = lora_file(tmp_path / "lora.safetensors", factors, names, alpha)
    before = unet(write_folder(base, tmp_path / "before"))
    after = unet(write_folder(replace(base, loras=(Lora(lora, 0.5),)), tmp_path / "after"))
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module not in factors:
            assert torch.equal(after[name], tensor)
            continue
        down, up = factors[module]
        if tensor.dim() == 4:
            delta = torch.einsum("orxy,rihw->oihw", up, down)
        else:
            delta = up @ down
        scale = 0.5 * (alpha if alpha is not None else RANK) / RANK
        assert torch.allclose(after[name], tensor + scale * delta, atol=1e-5)
        assert (after[name] - tensor).abs().max() > 0.1


def processor(prefix: str) -> Names:
    """As diffusers named attention's factors at first; `prefix` is of a pipeline, or empty as a denoiser saves them."""

    def name(module: str, way: str) -> str:
        place, projection = module.removesuffix(".0").rsplit(".", 1)
        return f"{prefix}{place}.processor.{projection}_lora.{way}.weight"

    return name


def saved_by_peft(module: str, way: str) -> str:
    """As PEFT itself saves a denoiser."""
    return f"base_model.model.{module}.lora_{'A' if way == 'down' else 'B'}.weight"


@pytest.mark.parametrize("names", [processor("unet."), processor(""), saved_by_peft], ids=["unet", "bare", "peft"])
def test_the_older_names_of_diffusers_are_known(
    names: Names, base: Source, factors: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    """`attn1.processor.to_q_lora.down.weight` means what diffusers' own renaming and PEFT's merge make of it (M11)."""
    lora = lora_file(tmp_path / "old.safetensors", {module: factors[module] for module in (LINEAR, OUTPUT)}, names)
    before = unet(write_folder(base, tmp_path / "before"))

    after = unet(write_folder(replace(base, loras=(Lora(lora, 0.7),)), tmp_path / "after"))

    given = {name.removeprefix("base_model.model.").removeprefix("unet."): one for name, one in load_file(lora).items()}
    assert_fused(after, before, convert_unet_state_dict_to_peft(given), 0.7)


@pytest.mark.parametrize("style", ["self_attn.to_{}_lora", "self_attn.{}_proj.lora_linear_layer"])
def test_the_older_names_of_text_encoders_are_known(style: str, base: Source, tmp_path: Path) -> None:
    """`self_attn.to_q_lora.down.weight` and `q_proj.lora_linear_layer.down.weight` mean `q_proj` (M11)."""
    torch.manual_seed(2)
    before = load_file(write_folder(base, tmp_path / "before") / "text_encoder" / "model.safetensors")
    width = before["text_model.encoder.layers.0.self_attn.q_proj.weight"].shape[0]
    tensors = {}
    for letter in ("q", "out"):
        place = f"text_encoder.text_model.encoder.layers.0.{style.format(letter)}"
        tensors |= {f"{place}.down.weight": torch.randn(RANK, width), f"{place}.up.weight": torch.randn(width, RANK)}
    save_file(tensors, tmp_path / "te.safetensors")

    merged = write_folder(replace(base, loras=(Lora(tmp_path / "te.safetensors", 0.7),)), tmp_path / "after")

    after = load_file(merged / "text_encoder" / "model.safetensors")
    given = {name.removeprefix("text_encoder."): one for name, one in tensors.items()}
    assert_fused(after, before, convert_state_dict_to_peft(given), 0.7)


def assert_fused(
    after: dict[str, Tensor], before: dict[str, Tensor], factors: dict[str, Tensor], weight: float
) -> None:
    """Every weight is the one before, or W + weight * B @ A where PEFT's names have factors, as fuse_lora sums."""
    modules = {name.rsplit(".lora_", 1)[0] for name in factors}
    assert len(modules) == 2
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module in modules:
            down, up = (factors[f"{module}.lora_{factor}.weight"].double() for factor in "AB")
            wanted = tensor.double() + weight * (up @ down)
            assert torch.allclose(after[name].double(), wanted, rtol=1e-6, atol=1e-6)
            assert (after[name] - tensor).abs().max() > 0.1
        else:
            assert torch.equal(after[name], tensor)


def test_a_weight_of_zero_is_the_base_to_the_bit(
    base: Source, factors: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    """A LoRA of weight 0 changes no byte; of another weight it is another base model (M11)."""
    lora = lora_file(tmp_path / "lora.safetensors", factors, kohya)
    plain = digest(write_folder(base, tmp_path / "plain"))
    assert digest(write_folder(replace(base, loras=(Lora(lora, 0.0),)), tmp_path / "zero")) == plain
    assert digest(write_folder(replace(base, loras=(Lora(lora, 0.1),)), tmp_path / "some")) != plain


def test_text_encoders_are_changed_too(base: Source, tmp_path: Path) -> None:
    """kohya's `lora_te_` names mean the text encoder's modules."""
    before = write_folder(base, tmp_path / "before") / "text_encoder" / "model.safetensors"
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    rows, columns = load_file(before)[name].shape
    module = "lora_te_" + name.removesuffix(".weight").replace(".", "_")
    down, up = torch.randn(RANK, columns), torch.randn(rows, RANK)
    save_file({f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}, tmp_path / "te.safetensors")
    after = write_folder(replace(base, loras=(Lora(tmp_path / "te.safetensors"),)), tmp_path / "after")
    found = load_file(after / "text_encoder" / "model.safetensors")[name]
    assert torch.allclose(found, load_file(before)[name] + up @ down, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lora_unet_mid_block.hada_w1_a", "a LoHa"),
        ("lora_unet_mid_block.lokr_w1", "a LoKr"),
        ("lora_unet_mid_block.lora_mid.weight", "a LoRA of three factors"),
        ("lora_unet_mid_block.dora_scale", "a DoRA"),
        ("lora_te2_text_model.lora_down.weight", "a LoRA of an SDXL model"),
        ("lora_unet_nowhere.lora_down.weight", "does not fit this model: 1 of its 1 tensors have no place in it"),
        (kohya(LINEAR, "down"), "is not whole: .* lacks its factor up"),
    ],
)
def test_what_cannot_be_merged_is_refused(name: str, told: str, base: Source, tmp_path: Path) -> None:
    """Other kinds of adapters are named, and a LoRA of another model is told by its names (M11)."""
    save_file({name: torch.zeros(RANK, 32)}, tmp_path / "lora.safetensors")
    with pytest.raises(UnusableBaseModel, match=told):
        write_folder(replace(base, loras=(Lora(tmp_path / "lora.safetensors"),)), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_factors_of_another_shape_are_refused(base: Source, tmp_path: Path) -> None:
    """A LoRA of a wider model is told by shapes, before anything is written."""
    save_file(
        {kohya(LINEAR, "down"): torch.zeros(RANK, 768), kohya(LINEAR, "up"): torch.zeros(768, RANK)},
        tmp_path / "lora.safetensors",
    )
    with pytest.raises(UnusableBaseModel, match=r"does not fit this model: .* its factors are"):
        write_folder(replace(base, loras=(Lora(tmp_path / "lora.safetensors"),)), tmp_path / "made")


def test_the_unet_still_computes(base: Source, factors: dict[str, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """diffusers opens the merged folder, and its answers differ from the base model's."""
    lora = lora_file(tmp_path / "lora.safetensors", factors, kohya)
    torch.manual_seed(0)
    given = (torch.randn(1, 4, 12, 12), 10, torch.randn(1, 16, 32))
    answers = []
    for name, loras in (("plain", ()), ("merged", (Lora(lora, 0.5),))):
        folder = write_folder(replace(base, loras=loras), tmp_path / name)
        model = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
        with torch.no_grad():
            answers.append(model(*given).sample)
    assert (answers[0] - answers[1]).abs().max() > 1e-3
