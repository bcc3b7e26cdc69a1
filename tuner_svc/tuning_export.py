"""Export a tuning: as a diffusers UNet, or as a LoRA in the format of kohya's sd-scripts.

    python -m tuner_svc.tuning_export --base-model MODEL --store STORE --weights PATH --format diffusers --out OUT
    python -m tuner_svc.tuning_export --base-model MODEL --store STORE --weights PATH --format kohya --rank 16 --out OUT

PATH is the weights' path in the object store, such as `tunings/default/t-0a1b`. `diffusers` writes OUT/unet, which
replaces that folder of the base model. `kohya` writes OUT/lora.safetensors: the change of every matrix and convolution
up to the rank, without norms and biases. Imagic's embeddings are left out. Weights of embeddings alone (Textual
Inversion, null-text) are refused. The last line of stdout is OUT.
"""

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tuner_svc.base_model import BaseModel, load
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.probe import probe_answer
from unitune.codecs import LORA_RANK, decode, low_rank
from unitune.errors import DataLoss, FailedPrecondition, UniTuneError
from unitune.object_store import ObjectStore
from unitune.system_errors import failure_sentence
from unitune.weights import MANIFEST_FILE, Manifest, TunedWeights

FORMATS = ("diffusers", "kohya")
LORA_FILE = "lora.safetensors"


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
    if weights.manifest.extras and not weights.manifest.tensors:
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


def save_kohya(model: BaseModel, tensors: Mapping[str, Tensor], out: Path, rank: int) -> dict[str, Tensor]:
    """Write OUT/lora.safetensors, fp16. Returns the denoiser's tensors with the LoRA."""
    base, stored, made = model.tensors(), {}, {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2:
            continue
        original = base[name].cpu()
        factors = low_rank((tensor - original).reshape(len(tensor), -1).numpy(), rank)
        up, down = (torch.from_numpy(np.ascontiguousarray(factor)).half() for factor in factors)
        made[name] = original + (up.float() @ down.float()).reshape(tensor.shape)
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        ones = (1,) * (tensor.dim() - 2)  # a convolution's factors are convolutions, the second one of a single pixel
        stored[f"{module}.lora_down.weight"] = down.reshape(-1, *tensor.shape[1:])
        stored[f"{module}.lora_up.weight"] = up.reshape(*up.shape, *ones)
        stored[f"{module}.alpha"] = torch.tensor(float(len(down)))
    out.mkdir(parents=True, exist_ok=True)
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    save_file(stored, out / LORA_FILE, metadata=facts)
    return made


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
        if weights.manifest.extras:
            what = "the super-resolution tensors' probe" if weights.tunes_super_resolution else "the embeddings"
            print(f"left out: {what} of {weights.manifest.method} ({', '.join(weights.manifest.extras)})")
        if options.format == "kohya":
            made = save_kohya(model, tensors, options.out, options.rank)
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
