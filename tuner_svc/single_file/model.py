"""Writes a single file as a diffusers folder: recognised, renamed, with another autoencoder and LoRA where given."""

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tuner_svc.base_model import load
from tuner_svc.fast_lora import read_factors
from tuner_svc.few_steps import KINDS, Distilled, names_of_file, told_by_names
from tuner_svc.lora_file import Factors, merged, read_lora
from tuner_svc.model_folder import (
    FAST_LORA_FOLDER,
    FAST_LORA_SETTINGS,
    FAST_LORA_WEIGHTS,
    INDEX_FILE,
    PRESET_FILE,
    SCHEDULER_FILE,
    SECOND_TEXT_ENCODER,
    SECOND_TOKENIZER,
    VARIANTS,
    WEIGHTS,
    UnusableBaseModel,
    check_layout,
    has_two_text_encoders,
    read_object,
    weight_names,
    weights_of,
)
from tuner_svc.single_file.convert import (
    has_vae,
    read_text_encoders,
    read_unet,
    read_vae,
    text_encoder_shapes,
    unet_shapes,
)
from tuner_svc.single_file.family import SAMPLE_SIDE_OF_V, SD_2, Family, family_of, refuse_other_kinds
from tuner_svc.single_file.measured_prediction import kind_of, measure
from tuner_svc.single_file.prediction import PredictionType, UntoldPrediction, prediction_of
from tuner_svc.tensor_file import read_header, write_tensors
from unitune.tensor_file import FileHeader

MERGES = Path(__file__).parent / "clip_merges.txt.gz"  # of CLIP's vocabulary
SOURCE_FILE = "unitune_source.json"  # in the folder: what it was made of; no part of the model's digest
PARTS = {
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
PARTS_OF_PAIR = {
    **PARTS,
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    SECOND_TEXT_ENCODER: ("transformers", "CLIPTextModelWithProjection"),
    SECOND_TOKENIZER: ("transformers", "CLIPTokenizer"),
}
OLDEST_DIFFUSERS = "0.42.0"  # that this package is made for
Say = Callable[[str], None]


@dataclass(frozen=True)
class Lora:
    """A LoRA file, and how much of it is added."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Source:
    """A file, and what is to be made of it."""

    file: Path
    vae: Path | None = None  # an autoencoder's file, or its folder in diffusers layout, in place of the file's own
    loras: Sequence[Lora] = ()
    prediction: str | None = None  # epsilon or v; None: as the file says
    clip_skip: int = 1  # 2 leaves the text encoder's last layer out, as many illustration models want
    config: Path | None = None  # a diffusers folder of the same architecture, for one that is no SD 1.x, 2.x or XL
    distilled: str | None = None  # of few_steps.KINDS, or "no"; None: as file names and metadata say
    steps: int | None = None  # that it was distilled to
    fast_lora: Lora | None = None  # added while sampling; then the two before are said of it


def write_folder(source: Source, out: Path, say: Say = lambda line: None) -> Path:
    """Write a base model's folder, tensor by tensor, in the file's own dtype. The folder appears when it is whole.

    Raises UnusableBaseModel for what is no such model, for a LoRA or an autoencoder that does not fit it, and for a
    folder that is there already; OSError.
    """
    if out.exists():
        raise UnusableBaseModel(f"{out} is there already: give another folder")
    header = read_header(source.file)
    family = _family(header, source.config)
    untold: UntoldPrediction | None = None
    try:
        prediction = prediction_of(header, family, source.prediction)
    except UntoldPrediction as error:
        prediction, untold = PredictionType("epsilon", "not yet known", "ztsnr" in header.shapes), error
    whole = family
    family = _sized(family, prediction, source).without_last_layers(source.clip_skip)
    say(f"{family.name}, predicts {prediction.kind} ({prediction.source})" if untold is None else family.name)
    if source.fast_lora is not None and source.distilled == "no":
        raise UnusableBaseModel(f"--distilled is no: a fast LoRA is one for few steps; give one of {', '.join(KINDS)}")
    fast = _of_fast_lora(header, source, source.fast_lora) if source.fast_lora is not None else None
    distilled = _distilled(header, source) if fast is None else None
    if fast is not None:
        say(f"with a fast LoRA for {fast.steps} steps, {fast.kind} ({fast.source})")
    if distilled is not None:
        say(f"for {distilled.steps} steps, {distilled.kind} ({distilled.source}); --distilled no if it is not")
    unet = read_unet(header, family)
    if unet.is_averaged:
        say("the averaged weights (EMA) are taken")
    tensors = {
        "unet": unet.tensors,
        **read_text_encoders(header, family),
        "vae": read_vae(*_vae_source(header, family, source.vae)),
    }
    changes = _changes(source.loras, whole, unet.original_names)  # a LoRA was made for all layers
    if source.fast_lora is not None:
        is_pair, shapes = family.second_text_encoder is not None, unet_shapes(family)
        read_factors(source.fast_lora.path, source.fast_lora.weight, shapes, unet.original_names, is_pair=is_pair)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / "model"
        write_configs(folder, family, prediction, source)
        if distilled is not None:
            _write(folder / PRESET_FILE, {"distilled": distilled.kind, "num_inference_steps": distilled.steps})
        if source.fast_lora is not None and fast is not None:
            settings = {"distilled": fast.kind, "steps": fast.steps, "weight": source.fast_lora.weight}
            _write(folder / FAST_LORA_FOLDER / FAST_LORA_SETTINGS, settings)
            shutil.copyfile(source.fast_lora.path, folder / FAST_LORA_FOLDER / FAST_LORA_WEIGHTS)
        for part, found in tensors.items():
            say(f"writing {part}")
            write_tensors(folder / part / weights_of(part), _made(found, changes.get(part, {})), found)
        if untold is not None:
            say("measuring what it predicts")
            prediction = _measured(folder, prediction, untold)
            family = _sized(family, prediction, source)
            write_configs(folder, family, prediction, source)
            say(f"it predicts {prediction.kind} ({prediction.source})")
        _write(folder / SOURCE_FILE, _told(source, family, prediction, unet.is_averaged, distilled))
        check_layout(folder)
        folder.rename(out)
    return out


def _family(header: FileHeader, config: Path | None) -> Family:
    if config is None:
        return family_of(header)
    check_layout(config)
    refuse_other_kinds(header)
    parts = {part: read_object(config / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    scheduler = read_object(config / "scheduler" / SCHEDULER_FILE)
    family = Family(f"as {config.name}", **parts, tokenizer={}, scheduler=scheduler)
    if not has_two_text_encoders(config):
        return family
    second = read_object(config / SECOND_TEXT_ENCODER / "config.json")
    return replace(family, second_text_encoder=second, second_tokenizer={})


def _sized(family: Family, prediction: PredictionType, source: Source) -> Family:
    """The family at the size of its models that predict so: those of 2.x that predict v are of 768 pixels."""
    if source.config is None and family.name == SD_2.name and prediction.kind == "v_prediction":
        return replace(family, unet={**family.unet, "sample_size": SAMPLE_SIDE_OF_V})
    return family


def _measured(folder: Path, assumed: PredictionType, untold: UntoldPrediction) -> PredictionType:
    """What the model in a folder is found to predict. Raises `untold` where trying does not show it clearly."""
    errors = measure(load(folder))
    kind = kind_of(errors)
    if kind is None:
        raise UntoldPrediction(f"{untold}; trying it did not show it") from None
    worse = max(errors[:2]) / min(errors[:2])
    return assumed._replace(kind=kind, source=f"measured, the other one is {worse:.1f} times worse")


def _distilled(header: FileHeader, source: Source) -> Distilled | None:
    """What the caller says, else the names of the model and of the LoRA merged into it.

    Raises UnusableBaseModel for one step: an edit begins later than at pure noise, and would have none left.
    """
    merged_headers = [read_header(lora.path) for lora in source.loras if lora.weight]
    names = (name for one in (header, *merged_headers) for name in names_of_file(one.path, one.metadata))
    found = told_by_names(names)
    if source.distilled == "no":
        found = None
    elif source.distilled is not None:
        known = found.steps if found is not None and found.kind == source.distilled else None
        steps = known or KINDS[source.distilled]["num_inference_steps"]
        found = Distilled(source.distilled, steps, "--distilled")
    if source.steps is not None:
        if found is None:
            raise UnusableBaseModel(f"--steps is {source.steps}: give --distilled beside it, one of {', '.join(KINDS)}")
        found = found._replace(steps=source.steps)
    if found is not None and found.steps < 2:
        raise UnusableBaseModel(
            f"{header.path} is for {found.steps} step ({found.source}), and an edit skips the first steps: give the "
            "weights for 2 steps or more"
        )
    return found


def _of_fast_lora(header: FileHeader, source: Source, lora: Lora) -> Distilled:
    """How the fast LoRA was distilled: as the caller says, else its names.

    Raises UnusableBaseModel where nothing says it, and for a model that says to be distilled itself.
    """
    if source.distilled is None and (own := _distilled(header, replace(source, steps=None))) is not None:
        raise UnusableBaseModel(
            f"{header.path} is for few steps itself ({own.source}): give the model that it was distilled from, or, if "
            f"it is not, --distilled with how the fast LoRA was made, one of {', '.join(KINDS)}"
        )
    found = _distilled(read_header(lora.path), replace(source, loras=()))
    if found is None:
        raise UnusableBaseModel(
            f"{lora.path}: no name says how it was distilled: give --distilled, one of {', '.join(KINDS)}, and --steps"
        )
    return found


def _vae_source(header: FileHeader, family: Family, given: Path | None) -> tuple[FileHeader, Family]:
    """Where the autoencoder is read from. Raises UnusableBaseModel where there is none, or another scale."""
    if given is None:
        if not has_vae(header):
            raise UnusableBaseModel(f"{header.path} has no autoencoder: give one as --vae")
        return header, family
    if not given.is_dir():
        return read_header(given), family
    folder = given / "vae" if (given / "vae").is_dir() else given
    scale = read_object(folder / "config.json").get("scaling_factor", 0.18215)
    if scale != family.vae["scaling_factor"]:
        raise UnusableBaseModel(
            f"{given} scales its latents by {scale} and this model by {family.vae['scaling_factor']}: pictures would "
            "come out wrong; give an autoencoder of the same family"
        )
    files = [folder / weight_names(WEIGHTS["vae"], variant)[0] for variant in VARIANTS]
    return read_header(next((file for file in files if file.is_file()), files[0])), family


def _changes(
    loras: Sequence[Lora], family: Family, original_names: Mapping[str, str]
) -> dict[str, dict[str, list[Factors]]]:
    """What all LoRA add, by part and tensor."""
    shapes = {"unet": unet_shapes(family), **text_encoder_shapes(family)}
    total: dict[str, dict[str, list[Factors]]] = {part: {} for part in shapes}
    for lora in loras:
        for part, found in read_lora(lora.path, lora.weight, shapes, original_names).items():
            for name, factors in found.items():
                total[part].setdefault(name, []).extend(factors)
    return total


def _made(found: Mapping[str, Tensor], changes: Mapping[str, list[Factors]]) -> dict[str, Callable[[], Tensor]]:
    """A function for each tensor, so that only one is in memory at a time."""

    def maker(name: str) -> Callable[[], Tensor]:
        return lambda: merged(found[name], changes.get(name, []))

    return {name: maker(name) for name in found}


def write_configs(folder: Path, family: Family, prediction: PredictionType, source: Source) -> None:
    """Write all of a base model's folder but its weights."""
    _write(folder / INDEX_FILE, _index(family, source))
    scheduler = {**family.scheduler, "prediction_type": prediction.kind}
    if prediction.has_zero_snr:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    _write(folder / "scheduler" / SCHEDULER_FILE, scheduler)
    for part, config in {"unet": family.unet, "vae": family.vae, **family.text_encoders}.items():
        _write(folder / part / "config.json", config)
    _write_tokenizer(folder / "tokenizer", family.tokenizer, source.config)
    if family.second_tokenizer is not None:
        _write_tokenizer(folder / SECOND_TOKENIZER, family.second_tokenizer, source.config)


def _index(family: Family, source: Source) -> dict[str, Any]:
    nothing = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    kind = "Inpaint" if family.is_for_inpainting else ""
    written_by = {"_diffusers_version": OLDEST_DIFFUSERS} if kind else {}  # without it such a folder is not opened
    if family.second_text_encoder is None:
        parts = {part: list(place) for part, place in PARTS.items()}
        return {"_class_name": f"StableDiffusion{kind}Pipeline", **written_by, **parts, **nothing}
    given = read_object(source.config / INDEX_FILE) if source.config is not None else {}
    return {
        "_class_name": f"StableDiffusionXL{kind}Pipeline",
        **written_by,
        **{part: list(place) for part, place in PARTS_OF_PAIR.items()},
        "force_zeros_for_empty_prompt": given.get("force_zeros_for_empty_prompt", True),
        "clip_skip": source.clip_skip - 1,  # diffusers counts the layers that are left out
    }


def _write_tokenizer(folder: Path, settings: Mapping[str, Any], config: Path | None) -> None:
    if config is not None:
        shutil.copytree(config / folder.name, folder, dirs_exist_ok=True)
        return
    merges = gzip.decompress(MERGES.read_bytes()).decode()
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "vocab.json", vocabulary(merges))
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


def vocabulary(merges: str) -> dict[str, int]:
    """CLIP's tokens by number: every byte's letter, inside and at the end of a word, every merge, begin and end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [256 + index for index in range(256 - len(printable))]  # letters that stand for the other bytes
    letters = [chr(code) for code in [*printable, *rest]]
    pairs = ["".join(line.split()) for line in merges.splitlines()[1:]]
    ends = [f"{letter}</w>" for letter in letters]
    tokens = [*letters, *ends, *pairs, "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def _told(
    source: Source, family: Family, prediction: PredictionType, is_averaged: bool, distilled: Distilled | None
) -> dict[str, Any]:
    return {
        "file": source.file.name,
        "family": family.name,
        "prediction_type": prediction.kind,
        "prediction_type_told_by": prediction.source,
        "is_averaged": is_averaged,
        "distilled_told_by": distilled.source if distilled is not None else None,
        "vae": source.vae.name if source.vae else None,
        "loras": [{**asdict(lora), "path": lora.path.name} for lora in source.loras],
        "clip_skip": source.clip_skip,
        "fast_lora": {**asdict(source.fast_lora), "path": source.fast_lora.path.name} if source.fast_lora else None,
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
