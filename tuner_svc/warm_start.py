"""The warm start of a base model: weights from which a tuning of any picture needs fewer updates.

Much of what tunings learn is common to all pictures: that the rare tokens mean exactly one picture. That part is
learned once for a base model (tuner_svc.learn_warm_start), and lies in its folder as a change of the denoiser's
weights, with the means of the optimizer's second moments, without which its first steps would be too large.
"""

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from tuner_svc.adafactor import Adafactor
from tuner_svc.model_folder import (
    WARM_START_FOLDER,
    WARM_START_SETTINGS,
    WARM_START_WEIGHTS,
    UnusableBaseModel,
    denoiser_digest,
    read_object,
)
from tuner_svc.trainable import trainable_parameters
from tuner_svc.tuning_config import TuningConfig
from unitune.codecs import DecodedTensors, tensor_names
from unitune.errors import DataLoss, InvalidField
from unitune.tuning_check import BOUND_TO_WARM_START, check_of_warm_start

CODEC = "int4"  # of the change; coarse, and compressed with the whole file
STEP = 0.85  # of encode_coarse
WARM_START_MODES = ("full", "attn_out")  # in which the weights themselves are tuned
_CHANGE, _MOMENTS = "change.", "moments."  # begin the names in the file
_BASE = "denoiser"  # beside the settings: the digest of the weights that it changes


@dataclass(frozen=True)
class WarmStartSettings:
    """What tunings it was learned with, and is for. The fields are TuningConfig's; `steps` are the updates that the
    second moments stand for."""

    mode: str
    updates: int
    batch: int
    learning_rate: float
    rare_tokens: str
    steps: int

    def defaults(self) -> dict[str, Any]:
        """The options of tunings that begin with it, by name."""
        own = asdict(self)
        del own["steps"]
        return {**own, "warm_start": True}


@dataclass(frozen=True)
class WarmStart:
    """A warm start in memory: its change as a codec stores it, or, while it is learned, the weights themselves."""

    settings: WarmStartSettings
    change: Mapping[str, NDArray[Any]]  # parts, as unitune.codecs stores them
    moments: Mapping[str, Sequence[NDArray[np.float32]]]  # by tensor, a vector for each of its axes; empty: not known
    codec: str = CODEC

    def check(self, config: TuningConfig) -> None:
        """Raises InvalidField unless it is for such tunings."""
        for name in BOUND_TO_WARM_START:
            check_of_warm_start(name, getattr(config, name), getattr(self.settings, name), "config.")

    @torch.no_grad()
    def begin(self, weights: Mapping[str, Tensor], optimizer: Adafactor) -> None:
        """Have a tuning begin with it: `weights` are the parameters that `optimizer` moves, still the base model's."""
        base = {name: tensor.detach().cpu().numpy() for name, tensor in weights.items()}
        for name, tensor in DecodedTensors(self.change, base, self.codec).items():
            weights[name].copy_(torch.from_numpy(tensor))
        if not self.moments:
            return
        moments = [
            [torch.from_numpy(mean).to(each.device) for mean in self.moments[name]] for name, each in weights.items()
        ]
        optimizer.begin_at(moments, self.settings.steps)

    def save(self, folder: Path, base_model: Path) -> None:
        """Write it as a folder below `folder`, for the base model in a folder. In that one it changes its digest."""
        place = folder / WARM_START_FOLDER
        unfinished = place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        tensors = {f"{_CHANGE}{name}": torch.from_numpy(part) for name, part in self.change.items()}
        for name, means in self.moments.items():
            kept = [torch.from_numpy(mean).bfloat16() for mean in means]  # fp16 has no numbers as small
            tensors |= {f"{_MOMENTS}{name}.{axis}": mean for axis, mean in enumerate(kept)}
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        (unfinished / WARM_START_WEIGHTS).write_bytes(gzip.compress(data, mtime=0))  # equal contents are equal files
        told = {**asdict(self.settings), _BASE: denoiser_digest(base_model)}
        (unfinished / WARM_START_SETTINGS).write_text(json.dumps(told, indent=2) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)


def read_warm_start(folder: Path, unet: UNet2DConditionModel) -> WarmStart | None:
    """That of a base model's folder, if it has one. Raises UnusableBaseModel for one that does not fit."""
    place = folder / WARM_START_FOLDER
    if not place.is_dir():
        return None
    settings = read_settings(folder)
    assert settings is not None, "its folder is there"
    if read_object(place / WARM_START_SETTINGS)[_BASE] != denoiser_digest(folder):
        remedy = "learn it anew (unitune calibrate --warm-start), or delete it"
        raise UnusableBaseModel(f"{place} was learned for other weights of the denoiser: {remedy}")
    path = place / WARM_START_WEIGHTS
    try:
        stored = load(gzip.decompress(path.read_bytes()))
    except Exception as error:  # gzip, zlib and safetensors have their own
        raise UnusableBaseModel(f"{path} cannot be loaded: {error}") from error
    change = {name.removeprefix(_CHANGE): part.numpy() for name, part in stored.items() if name.startswith(_CHANGE)}
    moments: dict[str, list[NDArray[np.float32]]] = {}
    base = trainable_parameters(unet, settings.mode)
    for name, tensor in base.items():
        names = [f"{_MOMENTS}{name}.{axis}" for axis in range(max(tensor.dim(), 1))]
        moments[name] = [stored[one].float().numpy() for one in names if one in stored]
        if [len(mean) for mean in moments[name]] != list(tensor.shape or (1,)):
            raise UnusableBaseModel(f"{path} does not fit the base model: second moments of {name}")
    if foreign := tensor_names(change) - base.keys():
        raise UnusableBaseModel(f"{path} does not fit the base model: {min(foreign)}")
    try:
        decoded = DecodedTensors(change, {name: tensor.cpu().numpy() for name, tensor in base.items()}, CODEC)
        for name in decoded:
            decoded[name]
    except DataLoss as error:
        raise UnusableBaseModel(f"{path} does not fit the base model: {error.message}") from error
    return WarmStart(settings, change, moments)


def read_settings(folder: Path) -> WarmStartSettings | None:
    """Of a base model's folder, if it has a warm start. Raises UnusableBaseModel naming the setting that is wrong."""
    path = folder / WARM_START_FOLDER / WARM_START_SETTINGS
    if not path.parent.is_dir():
        return None
    given = read_object(path)
    for field in fields(WarmStartSettings):
        value = given.get(field.name)
        if type(value) is not field.type and not (field.type is float and type(value) is int):
            wanted = getattr(field.type, "__name__", field.type)
            raise UnusableBaseModel(f"{path}: {field.name} is {value!r}: it must be {wanted}")
    if type(given.pop(_BASE, None)) is not str:
        raise UnusableBaseModel(f"{path}: {_BASE} must be the digest of the denoiser that it was learned for")
    if unknown := given.keys() - {field.name for field in fields(WarmStartSettings)}:
        raise UnusableBaseModel(f"{path}: {min(unknown)} is not a setting")
    settings = WarmStartSettings(**given)
    if settings.mode not in WARM_START_MODES:
        remedy = f"it must be {' or '.join(WARM_START_MODES)}"
        raise UnusableBaseModel(f"{path}: mode is {settings.mode!r}: {remedy}")
    try:
        TuningConfig(**settings.defaults())
    except InvalidField as error:
        raise UnusableBaseModel(f"{path}: {error.message.removeprefix('config.')}") from error
    return settings
