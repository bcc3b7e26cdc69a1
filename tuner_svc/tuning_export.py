"""Export a tuning: as a diffusers UNet, or as a LoRA under the names of kohya's sd-scripts or of PEFT.

    python -m tuner_svc.tuning_export --base-model MODEL --store STORE --weights PATH --format diffusers --out OUT
    python -m tuner_svc.tuning_export --base-model MODEL --store STORE --weights PATH --format kohya --rank 16 --out OUT

PATH is the weights' path in the object store, such as `tunings/default/t-0a1b`. `diffusers` writes OUT/unet, which
replaces that folder of the base model. `kohya` writes OUT/lora.safetensors, and `peft` the file that diffusers looks
for in a folder: the change of every matrix and convolution up to the rank, without norms and biases. kohya's trainer
has diffusers' names for Stable Diffusion 1.x and 2.x, and those of single files for SDXL. Imagic's embeddings are left
out. Weights of embeddings alone (Textual Inversion, null-text) are refused. The last line of stdout is OUT.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from tuner_svc.base_model import BaseModel, load
from tuner_svc.lora_file import KOHYA
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.original_names import original_module
from tuner_svc.probe import probe_answer
from unitune.base_model import SUPER_RESOLUTION_STAGES
from unitune.codecs import LORA_RANK, decode, low_rank
from unitune.errors import DataLoss, FailedPrecondition, UniTuneError
from unitune.object_store import ObjectStore
from unitune.system_errors import failure_sentence
from unitune.weights import FAST_LORA_TUNED, MANIFEST_FILE, PROBES, Manifest, TunedWeights

WIDTH_OF_2 = 1024  # of the text embeddings of Stable Diffusion 2.x
LORA_FILE = "lora.safetensors"
PEFT_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder


class LoraFactors(NamedTuple):
    """One module's change, up @ down, fp16: down (rank, in ...), up (out, rank ...) as for a convolution of 1x1."""

    up: Tensor
    down: Tensor


def read_weights(store: ObjectStore, path: str) -> TunedWeights:
    """The weights at a path of the store, or in the complete folder below it.

    Raises DataLoss (WEIGHTS_MISSING, WEIGHTS_CORRUPT).
    """
    complete = sorted(found for found in store.list(path) if found.endswith(f"/{MANIFEST_FILE}"))
    if not complete:
        raise DataLoss(f"no weights lie at {path}", reason="WEIGHTS_MISSING")
    manifest = Manifest.from_json(store.get(complete[-1]))
    return store.get_weights(complete[-1].removesuffix(f"/{MANIFEST_FILE}"), manifest.digest)


def tuned_tensors(model: BaseModel, weights: TunedWeights) -> dict[str, Tensor]:
    """The tensors that the tuning changed.

    Raises FailedPrecondition for another base model (BASE_MODEL_MISMATCH) and for embeddings alone (METHOD_MISMATCH).
    """
    if weights.manifest.base_model != model.digest:
        raise FailedPrecondition(
            f"the weights were tuned from base model {weights.manifest.base_model[:12]}, not from {model.digest[:12]}: "
            "give the folder that they were tuned from",
            reason="BASE_MODEL_MISMATCH",
        )
    if not weights.manifest.tensors and set(weights.manifest.extras) - set(PROBES):
        raise FailedPrecondition(
            f"a tuning by {weights.manifest.method} is embeddings alone, with no UNet to export: edit with it here",
            reason="METHOD_MISMATCH",
        )
    base = {name: tensor.cpu().numpy() for name, tensor in model.tensors().items()}
    decoded = decode(weights.denoiser_tensors(), base, weights.manifest.codec)
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in decoded.items()}


def save_diffusers(model: BaseModel, tensors: Mapping[str, Tensor], out: Path) -> Path:
    """Write OUT/unet, config and all tensors. Returns it."""
    unet = copy.deepcopy(model.denoiser.unet).cpu()
    unet.load_state_dict(tensors, strict=False)
    unet.save_pretrained(out / "unet", safe_serialization=True)
    return out / "unet"


def lora_factors(model: BaseModel, tensors: Mapping[str, Tensor], rank: int) -> dict[str, LoraFactors]:
    """The change of every matrix and convolution, by the denoiser's module, up to a rank.

    All have one rank, the largest that one of them needs: zeros are added to smaller ones, since readers have one scale
    for all modules.
    """
    base, found = model.tensors(), {}
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            change = (tensor - base[name].cpu()).reshape(len(tensor), -1).numpy()
            found[name] = [torch.from_numpy(np.ascontiguousarray(factor)).half() for factor in low_rank(change, rank)]
    largest = max((len(down) for _, down in found.values()), default=0)
    made = {}
    for name, (up, down) in found.items():
        lacking = largest - len(down)
        ones = (1,) * (tensors[name].dim() - 2)
        made[name.removesuffix(".weight")] = LoraFactors(
            pad(up, (0, lacking)).reshape(len(up), largest, *ones),
            pad(down, (0, 0, 0, lacking)).reshape(largest, *tensors[name].shape[1:]),
        )
    return made


def with_lora(model: BaseModel, factors: Mapping[str, LoraFactors]) -> dict[str, Tensor]:
    """The tensors that the LoRA changes, with its changes."""
    base = {f"{module}.weight": model.tensors()[f"{module}.weight"].cpu() for module in factors}
    return {
        f"{module}.weight": base[f"{module}.weight"]
        + (up.float().flatten(1) @ down.float().flatten(1)).reshape(base[f"{module}.weight"].shape)
        for module, (up, down) in factors.items()
    }


def save_kohya(model: BaseModel, factors: Mapping[str, LoraFactors], out: Path) -> None:
    """Write OUT/lora.safetensors."""
    stored: dict[str, Tensor] = {}
    for module, (up, down) in factors.items():
        is_original = model.second_tokenizer is not None  # kohya's trainer has SDXL's own network
        named = original_module(module, model.denoiser.unet.config) if is_original else module
        name = KOHYA["unet"] + named.replace(".", "_")
        stored |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(float(len(down))),
        }
    rank = str(max((len(down) for _, down in factors.values()), default=0))
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    save_file(stored, out / LORA_FILE, metadata={**facts, **_family_facts(model)})


def save_peft(model: BaseModel, factors: Mapping[str, LoraFactors], out: Path) -> None:
    """Write OUT/pytorch_lora_weights.safetensors."""
    stored: dict[str, Tensor] = {}
    for module, (up, down) in factors.items():
        stored |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
    save_file(stored, out / PEFT_FILE, metadata={"format": "pt"})


LORA_FORMATS: Mapping[str, Callable[[BaseModel, Mapping[str, LoraFactors], Path], None]] = {
    "kohya": save_kohya,
    "peft": save_peft,
}
FORMATS = ("diffusers", *LORA_FORMATS)


def _family_facts(model: BaseModel) -> dict[str, str]:
    """What tells web UIs the family; they hide a LoRA that they take for one of another."""
    if model.second_tokenizer is not None:
        return {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    return {"ss_v2": str(model.context_width == WIDTH_OF_2)}


def error_of(model: BaseModel, made: Mapping[str, Tensor], weights: TunedWeights) -> float:
    """The loss of an export, as a share of the tuning's effect on the probe's answer; 0 without effect."""
    effect = float(np.linalg.norm(weights.probe_tuned - weights.probe_base))
    answer = probe_answer(model, made, weights.manifest.probe_seed)
    return float(np.linalg.norm(answer - weights.probe_tuned)) / effect if effect else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser("python -m tuner_svc.tuning_export", description="Export a tuning.")
    parser.add_argument("--base-model", type=Path, required=True, help="the diffusers folder that was tuned")
    parser.add_argument("--store", required=True, help="the object store's folder or URL")
    parser.add_argument("--weights", required=True, help="the weights' path in the store")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument("--rank", type=int, default=LORA_RANK, help="of the LoRA, 1 or more; a higher rank loses less")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write into")
    options = parser.parse_args(arguments)
    if options.rank < 1:
        parser.error(f"argument --rank: {options.rank} is no rank: give 1 or more")
    try:
        weights = read_weights(ObjectStore(options.store), options.weights)
        model = load(options.base_model)
        tensors = tuned_tensors(model, weights)
        if extras := [name for name in weights.manifest.extras if name != FAST_LORA_TUNED]:
            what = (
                "the super-resolution tensors' probe"
                if any(map(weights.tunes, SUPER_RESOLUTION_STAGES))
                else "the embeddings"
            )
            print(f"left out: {what} of {weights.manifest.method} ({', '.join(extras)})")
        if options.format in LORA_FORMATS:
            factors = lora_factors(model, tensors, options.rank)
            made = with_lora(model, factors)
            options.out.mkdir(parents=True, exist_ok=True)
            LORA_FORMATS[options.format](model, factors, options.out)
            share = 100 * error_of(model, made, weights)
            left_out = len(tensors) - len(made)
            print(f"the LoRA loses {share:.2g} % of the tuning's effect, {left_out} norms and biases with it")
        else:
            save_diffusers(model, tensors, options.out)
    except Exception as error:
        print(f"export: {failure_sentence(error, options.out, UnusableBaseModel, UniTuneError)}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
