"""A tuning of SDXL taken elsewhere as a LoRA, under the names of its trainers and of PEFT."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.original_names import original_tensors
from tests.tiny_sdxl import tiny_sdxl as tiny_pipeline
from tuner_svc.base_model import BaseModel, load
from tuner_svc.original_names import original_module
from tuner_svc.probe import pack_tuned, probe_answer
from tuner_svc.single_file.family import SDXL, UNET
from tuner_svc.single_file.model import Lora, Source, write_folder
from tuner_svc.tune import Tuned, tune
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.tuning_export import LORA_FILE, PEFT_FILE, main
from unitune.object_store import ObjectStore

FILES = {"kohya": LORA_FILE, "peft": PEFT_FILE}
CONFIG = TuningConfig(mode="full", updates=3, batch=1, learning_rate=1e-3)
PROBE_SEED = 3


@pytest.fixture(scope="module")
def base_model(tiny_sdxl: Path) -> BaseModel:
    """The tiny SDXL model in memory."""
    return load(tiny_sdxl)


@pytest.fixture(scope="module")
def tuned(base_model: BaseModel) -> Tuned:
    """A short tuning of everything."""
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, *base_model.image_side)).astype(np.float32)
    return tune(base_model, image, CONFIG)


@pytest.fixture(scope="module")
def store(base_model: BaseModel, tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object store that has it, without a codec's error."""
    folder = tmp_path_factory.mktemp("store")
    ObjectStore(str(folder)).put_weights("tunings/t/1", *pack_tuned(base_model, tuned, CONFIG, "key"))
    return folder


@pytest.fixture(scope="module")
def exported(tiny_sdxl: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> "Exported":
    """Exports the tuning."""
    return Exported(tiny_sdxl, store, tmp_path_factory.mktemp("exports"))


class Exported:
    """Files of the tuning, by format and rank, each written once."""

    def __init__(self, base_model: Path, store: Path, folder: Path) -> None:
        self._options = ["--base-model", str(base_model), "--store", str(store), "--weights", "tunings/t"]
        self._folder = folder

    def file(self, kind: str, rank: int) -> Path:
        """The LoRA's file."""
        out = self._folder / f"{kind}-{rank}"
        if not out.exists():
            assert 0 == main([*self._options, "--format", kind, "--rank", str(rank), "--out", str(out)])
        return out / FILES[kind]


def answer(base_model: BaseModel, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """The denoiser's answer with some tensors replaced."""
    return probe_answer(base_model, tensors, PROBE_SEED)


def of_diffusers(file: Path, base_model: BaseModel) -> dict[str, Tensor]:
    """The tensors that a LoRA changes, as diffusers reads it: the first steps of its `load_lora_weights`.

    The last one, in which PEFT adds scale * up @ down to each of these modules, is written out.
    """
    unet = base_model.denoiser.unet
    read, alphas = StableDiffusionXLPipeline.lora_state_dict(
        file.parent, weight_name=file.name, unet_config=unet.config
    )
    named = {name.removeprefix("unet."): tensor for name, tensor in read.items()}
    assert len(named) == len(read)
    if not any("lora_A" in name for name in named):
        named = convert_unet_state_dict_to_peft(named)
    ranks = {len(tensor) for name, tensor in named.items() if "lora_A" in name}
    scales = {alpha / rank for alpha in (alphas or dict.fromkeys("1", next(iter(ranks)))).values() for rank in ranks}
    assert (1, {1.0}) == (len(ranks), scales)
    base, changed = base_model.tensors(), {}
    for name, down in named.items():
        if "lora_A" in name:
            module = name.removesuffix(".lora_A.weight")
            up, weight = named[f"{module}.lora_B.weight"], base[f"{module}.weight"]
            changed[f"{module}.weight"] = weight + (up.float().flatten(1) @ down.float().flatten(1)).reshape(
                weight.shape
            )
    assert len(named) == 2 * len(changed)
    return changed


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model as one file."""
    file = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file(original_tensors(tiny_pipeline()), file)
    return file


@pytest.mark.parametrize("rank", [4, 512])
@pytest.mark.parametrize("kind", sorted(FILES))
def test_our_reader_and_that_of_diffusers_make_the_same_denoiser_of_it(
    kind: str,
    rank: int,
    exported: Exported,
    base_model: BaseModel,
    tuned: Tuned,
    single_file: Path,
    tiny_sdxl: Path,
    tmp_path: Path,
) -> None:
    """Every module that is named is found; a full rank loses only fp16's rounding, norms and biases apart (M12)."""
    file = exported.file(kind, rank)
    lora = Lora(file)
    folder = write_folder(Source(single_file, config=tiny_sdxl, loras=(lora,)), tmp_path / "merged")
    merged = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict()
    theirs = of_diffusers(file, base_model)

    expected = answer(base_model, {name: tensor for name, tensor in tuned.tensors.items() if tensor.dim() > 1})
    base, ours = answer(base_model, {}), answer(base_model, merged)
    effect = np.linalg.norm(expected - base)
    assert {name for name, tensor in tuned.tensors.items() if tensor.dim() > 1} == theirs.keys()
    np.testing.assert_allclose(answer(base_model, theirs), ours, rtol=0, atol=1e-6 * np.abs(ours).max())
    assert np.linalg.norm(ours - expected) < {4: 0.9, 512: 0.005}[rank] * effect


def test_kohyas_names_are_those_of_single_files(exported: Exported) -> None:
    """Loaders of SDXL look for these names, and web UIs for this metadata: they hide a LoRA of another family."""
    with safe_open(exported.file("kohya", 4), "pt") as file:
        names, facts = {name.partition(".")[0] for name in file.keys()}, file.metadata()  # noqa: SIM118

    wanted = (
        "input_blocks_0_0 input_blocks_1_0_in_layers_2 input_blocks_2_0_op out_2 label_emb_0_2 time_embed_0 "
        "input_blocks_5_1_transformer_blocks_1_attn2_to_out_0 middle_block_1_proj_in middle_block_2_emb_layers_1 "
        "output_blocks_1_2_conv output_blocks_4_0_skip_connection"
    )
    assert {f"lora_unet_{name}" for name in wanted.split()} <= names
    assert facts["ss_base_model_version"] == "sdxl_base_v1-0"


def test_original_names_are_those_that_diffusers_renames() -> None:
    """Of every tensor of the published architecture, and of a small one with another number of layers."""
    small = {**SDXL.unet, "layers_per_block": 1, "transformer_layers_per_block": [1, 1, 2]}
    for config in (dict(SDXL.unet), small):
        with torch.device("meta"):
            tensors = UNet2DConditionModel.from_config(config).state_dict()
        originals = {}
        for name, tensor in tensors.items():
            module, _, kind = name.rpartition(".")
            originals[f"{UNET}{original_module(module, config)}.{kind}"] = tensor
        assert len(originals) == len(tensors)

        renamed = convert_ldm_unet_checkpoint(dict(originals), config)

        assert {name: id(tensor) for name, tensor in renamed.items()} == {n: id(t) for n, t in tensors.items()}


@pytest.mark.parametrize("module", ["mid_block.resnets.0.other", "down_blocks.0.motion.0.proj", "encoder.conv_in"])
def test_modules_of_another_network_have_no_original_name(module: str) -> None:
    """They would be written under names that no reader knows."""
    with pytest.raises(ValueError, match="no module of such a denoiser"):
        original_module(module, SDXL.unet)
