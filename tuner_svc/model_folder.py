"""A base model's folder: diffusers layout, digest, preset and vocabulary."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from tuner_svc.family_presets import CLOSED, SDXL, STABLE_DIFFUSION
from tuner_svc.few_steps import KINDS, LORA_SETTINGS, ZERO_SNR, settings_of, told_by_configs
from tuner_svc.tuning_config import TuningConfig
from unitune.base_model import (
    EVERY_STEP,
    SUPER_RESOLUTION_STAGES,
    FastLoraSpec,
    NoiseSchedule,
    Preset,
    file_digest,
)
from unitune.choices import EDIT_METHODS, NULL_TEXT, PROMPT_TO_PROMPT, TUNING_METHODS
from unitune.diffusion.schedule import Schedule, num_late_steps
from unitune.diffusion.solvers import ORIGINAL_STEPS, OWN_TIMESTEPS
from unitune.errors import InvalidField
from unitune.options import SAMPLING, TUNING, check_values, read_by

PRESET_FILE = "unitune_preset.json"
VOCABULARY_FILE = "vocabulary.json"
CLIP_FILTER_SETTINGS = {name for name in vars(Preset) if name.startswith("clip_filter_")} | {"automatic_points"}
METHODS = (*EDIT_METHODS, NULL_TEXT)  # these may have a section in a preset
SAMPLING_SETTINGS = tuple(name for name in SAMPLING if name in vars(Preset))
CLIP_FILTER_RANGES = {  # ends included
    "clip_filter_gain": (-2, 2),
    "clip_filter_prompt": (-1, 1),
    "clip_filter_kept": (-1, 1),
    "clip_filter_enough": (-1, 1),
    "clip_filter_round_trip": (0, 1),
    "clip_filter_detail": (0, 1),
    "clip_filter_saturated": (0, 1),
}
SCHEDULER_FILE = "scheduler_config.json"
# In a folder of each stage of SUPER_RESOLUTION_STAGES, optional: a UNet2DConditionModel and its scheduler.
SUPER_RESOLUTION_FILES = ("config.json", "diffusion_pytorch_model.safetensors", SCHEDULER_FILE)
# These two are true in its scheduler's config: see unitune.base_model.SuperResolutionSpec and tuner_svc.channel_scale.
PRECONDITIONED, CHANNEL_SCALES = "is_preconditioned", "has_channel_scales"
CLIP_FOLDER = "clip"  # optional: a CLIPModel of transformers, for the CLIP filter
CLIP_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
PICKLED = "*pytorch_model*.bin*"  # of transformers and diffusers, in one file or in several, of any variant
FAST_LORA_FOLDER = "fast_lora"  # optional: a LoRA that distils to few steps, added while sampling
FAST_LORA_SETTINGS, FAST_LORA_WEIGHTS = "config.json", "lora.safetensors"  # in that folder
WARM_START_FOLDER = "warm_start"  # optional: where tunings begin; tuner_svc.warm_start
WARM_START_SETTINGS, WARM_START_WEIGHTS = "config.json", "weights.safetensors.gz"  # in that folder
WARM_START_FILES = tuple(Path(WARM_START_FOLDER, name) for name in (WARM_START_SETTINGS, WARM_START_WEIGHTS))
SECOND_TEXT_ENCODER, SECOND_TOKENIZER = "text_encoder_2", "tokenizer_2"  # of SDXL
INDEX_FILE = "model_index.json"
CLASSES = {  # by part
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
SECOND_CLASSES = {
    SECOND_TEXT_ENCODER: ("CLIPTextModelWithProjection",),
    SECOND_TOKENIZER: ("CLIPTokenizer", "CLIPTokenizerFast"),
}
WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
VARIANTS = (None, "fp16", "bf16")  # of weights, in the order in which they are taken
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


class UnusableBaseModel(ValueError):
    """The folder is no base model that can be tuned. The message gives the reason and the remedy."""


def check_layout(folder: Path) -> None:
    """Raises UnusableBaseModel unless the folder holds a Stable Diffusion 1.x, 2.x or XL model in diffusers layout."""
    if not (folder / INDEX_FILE).is_file():
        raise UnusableBaseModel(f"{folder} is not a diffusers folder: it has no {INDEX_FILE}")
    index = read_object(folder / INDEX_FILE)
    has_pair = has_two_text_encoders(folder)
    if has_pair and _class_of(index, "text_encoder") is None:
        raise UnusableBaseModel(f"{folder} holds an SDXL refiner, which cannot be tuned: give SDXL's base model")
    for part, allowed in {**CLASSES, **(SECOND_CLASSES if has_pair else {})}.items():
        found = _class_of(index, part)
        if found not in allowed:
            raise UnusableBaseModel(
                f"{folder}: its {part} is {found}; only {' or '.join(allowed)} can be tuned and exported"
            )
    model_files(folder)


def has_two_text_encoders(folder: Path) -> bool:
    """Whether its index lists a second one, or is SDXL's."""
    index = read_object(folder / INDEX_FILE)
    return _class_of(index, SECOND_TEXT_ENCODER) is not None or "XL" in str(index.get("_class_name"))


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    found: str | None = (index.get(part) or [None, None])[1]
    return found


class TextSettings(NamedTuple):
    """How an SDXL model's prompts are encoded, beyond its parts' configurations."""

    empty_is_zeros: bool = False  # diffusers' force_zeros_for_empty_prompt
    skipped_layers: int = 0  # of the text encoders, beyond the one that SDXL leaves out: diffusers' clip_skip


class FastLoraSettings(NamedTuple):
    """How a fast LoRA is used."""

    spec: FastLoraSpec
    weight: float  # how much of it is added


def read_text_settings(folder: Path) -> TextSettings:
    """From the index of a folder with two text encoders; others have none. Raises UnusableBaseModel."""
    if not has_two_text_encoders(folder):
        return TextSettings()
    index = read_object(folder / INDEX_FILE)
    settings = TextSettings(index.get("force_zeros_for_empty_prompt", True), index.get("clip_skip") or 0)
    layers = min(  # transformers leaves its default, 12, out of a configuration
        read_object(folder / part / "config.json").get("num_hidden_layers", 12)
        for part in ("text_encoder", SECOND_TEXT_ENCODER)
    )
    if type(settings.skipped_layers) is not int or not 0 <= settings.skipped_layers < layers:
        remedy = f"it must be 0 to {layers - 1}, fewer than the text encoders' layers"
        raise UnusableBaseModel(f"{folder / INDEX_FILE}: clip_skip is {settings.skipped_layers!r}: {remedy}")
    return settings


def model_files(folder: Path) -> list[Path]:
    """The files that define the model, relative and sorted: configs, weights, tokenizer, preset, vocabulary, the
    super-resolution stages, the CLIP filter's model, the fast LoRA and the warm start. Other files do not matter.

    Raises UnusableBaseModel naming every file that is missing.
    """
    has_pair = has_two_text_encoders(folder)
    text_encoders = ("text_encoder", *([SECOND_TEXT_ENCODER] if has_pair else []))
    tokenizers = ("tokenizer", *([SECOND_TOKENIZER] if has_pair else []))
    needed = [Path("scheduler", SCHEDULER_FILE), *([Path(INDEX_FILE)] if has_pair else [])]
    for part in (*text_encoders, "unet", "vae"):
        needed += [Path(part, "config.json"), *weight_files(folder, part, weights_of(part))]
    for tokenizer in tokenizers:
        if not (folder / tokenizer / "tokenizer.json").is_file():  # the older layout
            needed += [Path(tokenizer, "vocab.json"), Path(tokenizer, "merges.txt")]
    if (folder / CLIP_FOLDER).is_dir():
        needed += [Path(CLIP_FOLDER, name) for name in CLIP_FILES]
    for stage in super_resolution_stages(folder):
        needed += [Path(stage, name) for name in SUPER_RESOLUTION_FILES]
    if (folder / FAST_LORA_FOLDER).is_dir():
        needed += [Path(FAST_LORA_FOLDER, name) for name in (FAST_LORA_SETTINGS, FAST_LORA_WEIGHTS)]
    if (folder / WARM_START_FOLDER).is_dir():
        needed += WARM_START_FILES
    for part in (*text_encoders, "unet", "vae", CLIP_FOLDER):
        check_safetensors(folder / part)
    missing = [str(path) for path in needed if not (folder / path).is_file()]
    if missing:
        raise UnusableBaseModel(f"{folder} lacks {', '.join(missing)}")
    optional = [Path(PRESET_FILE), Path(VOCABULARY_FILE)]
    optional += [Path(tokenizer, name) for tokenizer in tokenizers for name in TOKENIZER_FILES]
    return sorted({*needed, *(path for path in optional if (folder / path).is_file())})


def super_resolution_stages(folder: Path) -> list[str]:
    """The names of a cascade's stages. Raises UnusableBaseModel for one without the stage before it."""
    found = [stage for stage in SUPER_RESOLUTION_STAGES if (folder / stage).is_dir()]
    for stage, wanted in zip(found, SUPER_RESOLUTION_STAGES, strict=False):
        if stage != wanted:
            raise UnusableBaseModel(f"{folder} has {stage}, which enlarges the pictures of {wanted}, and no {wanted}")
    return found


def digest(folder: Path) -> str:
    """sha256, hexadecimal, over names and contents of `model_files`. Raises UnusableBaseModel."""
    return _digest_of(folder, model_files)


def graphs_digest(folder: Path) -> str:
    """The same without the preset and the warm start, on which no exported graph depends."""
    leaves_out = (Path(PRESET_FILE), *WARM_START_FILES)
    return _digest_of(folder, lambda folder: [path for path in model_files(folder) if path not in leaves_out])


def _digest_of(folder: Path, files: Callable[[Path], list[Path]]) -> str:
    check_layout(folder)
    total = hashlib.sha256()
    for path in files(folder):
        total.update(f"{path.as_posix()} {file_digest(folder / path)}\n".encode())
    return total.hexdigest()


def denoiser_digest(folder: Path) -> str:
    """sha256, hexadecimal, over the names and contents of the UNet's weights. Raises UnusableBaseModel."""
    return _digest_of(folder, lambda folder: weight_files(folder, "unet", weights_of("unet")))


def read_schedule(folder: Path, part: str = "scheduler") -> NoiseSchedule:
    """The training noise schedule of a part. Raises UnusableBaseModel for a kind that the sampler does not know."""
    from diffusers import DDIMScheduler  # its defaults; PyTorch comes with it, and takes seconds to load

    config = {**DDIMScheduler().config, **read_object(folder / part / SCHEDULER_FILE)}
    if config.get("trained_betas") is not None:
        raise UnusableBaseModel(f"{folder}: its scheduler lists trained_betas; only a named beta_schedule can be used")
    if config["rescale_betas_zero_snr"] and config["timestep_spacing"] == "leading":
        # Leading spacing never visits the last timestep, which alone is pure noise (arXiv 2305.08891, section 3.4).
        config["timestep_spacing"] = "trailing"
    known = {field.name: config[field.name] for field in fields(NoiseSchedule)}
    try:
        Schedule(**known)
    except ValueError as error:
        raise UnusableBaseModel(f"{folder}: its scheduler's {error}") from error
    return NoiseSchedule(**known)


def read_preset(folder: Path) -> Preset:
    """The defaults of this model. Raises UnusableBaseModel for an unknown name and for a wrong type of value."""
    if not (folder / PRESET_FILE).is_file():
        return _with_fast_lora(folder, Preset(**_family_settings(folder) | _distilled_settings(folder)))
    given = read_object(folder / PRESET_FILE)
    methods = given.pop("methods", {})
    if not isinstance(methods, dict) or not all(isinstance(own, dict) for own in methods.values()):
        raise UnusableBaseModel(f"{folder / PRESET_FILE}: methods must be an object of objects, by method")
    if unknown := methods.keys() - METHODS:
        known = ", ".join(METHODS)
        raise UnusableBaseModel(f"{folder / PRESET_FILE}: {min(unknown)} is not a method; known are {known}")
    for method, own in methods.items():
        if of_all := own.keys() & CLIP_FILTER_SETTINGS:
            remedy = "put it beside methods, it is one for all of them"
            raise UnusableBaseModel(f"{folder / PRESET_FILE}: {min(of_all)} is set for {method}: {remedy}")
        if foreign := own.keys() & _foreign_settings(method):
            raise UnusableBaseModel(
                f"{folder / PRESET_FILE}: {min(foreign)} is set for {method}, which has no such setting"
            )
    own_settings = {method: _settings(folder, own, f"methods.{method}.") for method, own in methods.items()}
    settings = _settings(folder, given)
    kind = settings.get("distilled", "")
    if kind and kind not in KINDS:
        known = ", ".join(KINDS)
        raise UnusableBaseModel(f"{folder / PRESET_FILE}: distilled is {kind!r}: it must be one of {known}")
    of_kind = settings_of(kind, is_pair=has_two_text_encoders(folder))
    preset = Preset(**{**_family_settings(folder), **of_kind, **settings}, methods=own_settings)
    preset = _with_fast_lora(folder, preset)
    for method in METHODS:
        _check_values(folder, preset, method)
    return preset


def read_fast_lora_settings(folder: Path) -> FastLoraSettings | None:
    """How the fast LoRA of a folder is used, if it has one. Raises UnusableBaseModel."""
    path = folder / FAST_LORA_FOLDER / FAST_LORA_SETTINGS
    if not path.parent.is_dir():
        return None
    if not path.is_file():
        raise UnusableBaseModel(f"{folder} lacks {FAST_LORA_FOLDER}/{FAST_LORA_SETTINGS}")
    given = read_object(path)
    kind, steps, weight = given.get("distilled", ""), given.get("steps"), given.get("weight", 1.0)
    if unknown := given.keys() - {"distilled", "steps", "weight"}:
        raise UnusableBaseModel(f"{path}: {min(unknown)} is not a setting; known are distilled, steps, weight")
    if kind not in KINDS:
        raise UnusableBaseModel(f"{path}: distilled is {kind!r}: it must be one of {', '.join(KINDS)}")
    if type(steps) is not int or not 2 <= steps <= ORIGINAL_STEPS:
        raise UnusableBaseModel(f"{path}: steps is {steps!r}: it must be 2 to {ORIGINAL_STEPS}")
    if type(weight) not in (int, float) or not math.isfinite(weight):
        raise UnusableBaseModel(f"{path}: weight is {weight!r}: it must be a number")
    of_kind = settings_of(kind, is_pair=has_two_text_encoders(folder))
    settings = {name: of_kind[name] for name in LORA_SETTINGS if name in of_kind}
    return FastLoraSettings(FastLoraSpec(kind, num_inference_steps=steps, **settings), float(weight))


def _with_fast_lora(folder: Path, preset: Preset) -> Preset:
    """The preset, whose fast edits have the steps of the folder's fast LoRA, if it has one and the preset has none.

    Raises UnusableBaseModel for one in a base model that is distilled itself, or that has fewer steps.
    """
    fast = read_fast_lora_settings(folder)
    if fast is None:
        return preset
    if preset.distilled:
        remedy = f"leave {FAST_LORA_FOLDER} out, or give the model that it was distilled from"
        raise UnusableBaseModel(f"{folder} is distilled to few steps itself ({preset.distilled}): {remedy}")
    fast_steps = fast.spec.num_inference_steps
    if not preset.fast_steps and fast_steps > preset.num_inference_steps:
        raise UnusableBaseModel(
            f"{folder / PRESET_FILE}: num_inference_steps is {preset.num_inference_steps}: its fast LoRA is for "
            f"{fast_steps} steps, so give at least as many, or set fast_steps"
        )
    return replace(preset, fast_steps=preset.fast_steps or fast_steps)


def _family_settings(folder: Path) -> dict[str, Any]:
    """The settings of the model's family, and of a model that ends in pure noise, as its scheduler says."""
    scheduler = read_object(folder / "scheduler" / SCHEDULER_FILE)
    ends_in_noise = scheduler.get("rescale_betas_zero_snr") and scheduler.get("prediction_type") == "v_prediction"
    family = SDXL if has_two_text_encoders(folder) else STABLE_DIFFUSION
    closed = CLOSED if (folder / VOCABULARY_FILE).is_file() else {}
    return {**family, **closed, **(ZERO_SNR if ends_in_noise else {})}


def _distilled_settings(folder: Path) -> dict[str, Any]:
    """The settings of a model that its own configurations say to be distilled."""
    scheduler, unet = read_object(folder / "scheduler" / SCHEDULER_FILE), read_object(folder / "unet" / "config.json")
    found = told_by_configs(scheduler, unet)
    if found is None:
        return {}
    settings = settings_of(found.kind, is_pair=has_two_text_encoders(folder))
    return {**settings, "distilled": found.kind, "num_inference_steps": found.steps}


def _check_values(folder: Path, preset: Preset, method: str) -> None:
    """Check a method's defaults like a caller's values. Raises UnusableBaseModel naming place and value."""

    def refusal(name: str, complaint: str) -> UnusableBaseModel:
        place = f"methods.{method}." if name in preset.methods.get(method, {}) else ""
        return UnusableBaseModel(f"{folder / PRESET_FILE}: {place}{complaint}")

    own = preset.method_preset(method)
    sampling = {name: getattr(own, name) for name in SAMPLING_SETTINGS}
    if not own.timestep_spacing:
        del sampling["timestep_spacing"]
    if own.guidance_sigma_high == math.inf:
        del sampling["guidance_sigma_high"]  # the interval has no such end
    try:
        if method in TUNING_METHODS:
            TuningConfig.from_preset(preset, method)
        check_values(SAMPLING, sampling)
    except InvalidField as error:
        name = error.metadata["field"].removeprefix("config.")
        raise refusal(name, error.message.removeprefix("config.")) from error
    if method == PROMPT_TO_PROMPT and own.scheduler != "ddim":
        raise refusal("scheduler", f"scheduler is {own.scheduler!r}: {PROMPT_TO_PROMPT} inverts ddim alone")
    if own.scheduler in OWN_TIMESTEPS and own.num_inference_steps > ORIGINAL_STEPS:
        most = f"it must be 1 to {ORIGINAL_STEPS} with scheduler {own.scheduler}"
        raise refusal("num_inference_steps", f"num_inference_steps is {own.num_inference_steps}: {most}")
    if own.distilled and num_late_steps(own.num_inference_steps, own.strength) == 0:
        share = f"1 / {own.num_inference_steps}, one of its steps, or more"
        raise refusal("strength", f"strength is {own.strength}: it must be {share}")
    for name, (low, high) in CLIP_FILTER_RANGES.items():
        value = getattr(own, name)
        if not low <= value <= high:
            raise refusal(name, f"{name} is {value}: it must be {low} to {high}")
    if SAMPLING["fast"].is_read_by(method) and not 0 <= own.fast_steps <= own.num_inference_steps:
        most = f"num_inference_steps, {own.num_inference_steps}"
        raise refusal("fast_steps", f"fast_steps is {own.fast_steps}: it must be 0 to {most}")
    ends = own.guidance_sigma_low, own.guidance_sigma_high
    if ends[0] >= ends[1]:
        raise refusal("guidance_sigma_high", f"guidance_sigma_high is {ends[1]}: it must be above _low, {ends[0]}")
    if method == PROMPT_TO_PROMPT and ends != tuple(EVERY_STEP.values()):
        raise refusal("guidance_sigma_high", f"guidance_sigma_low to _high is {ends}: {method} guides every step")


def _foreign_settings(method: str) -> set[str]:
    """The settings of a preset that belong only to other methods."""
    own = set(read_by(TUNING, method)) if method in TUNING_METHODS else set()
    of_sampling = SAMPLING.keys() - read_by(SAMPLING, method)
    if not SAMPLING["fast"].is_read_by(method):
        of_sampling.add("fast_steps")
    if method == NULL_TEXT:  # its edits are Prompt-to-Prompt's, whose section has their settings
        of_sampling |= {*SAMPLING_SETTINGS, *CLIP_FILTER_RANGES} - {"scheduler"}
    return (TUNING.keys() - own - SAMPLING.keys()) | of_sampling


def _settings(folder: Path, given: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Settings of a preset by name; int values of float settings become floats. `place` is their place in the file.
    Raises UnusableBaseModel."""
    kinds = {field.name: type(field.default) for field in fields(Preset) if field.name != "methods"}
    settings: dict[str, Any] = {}
    for name, value in given.items():
        if name not in kinds:
            known = ", ".join(kinds)
            raise UnusableBaseModel(f"{folder / PRESET_FILE}: {place}{name} is not a setting; known are {known}")
        if name == "automatic_points":
            settings[name] = _points(folder, value)
            continue
        number = kinds[name] is float and type(value) is int
        if type(value) is not kinds[name] and not number:
            wanted = kinds[name].__name__
            raise UnusableBaseModel(f"{folder / PRESET_FILE}: {place}{name} is {value!r}; it must be {wanted}")
        settings[name] = float(value) if number else value
    return settings


def _points(folder: Path, value: object) -> tuple[tuple[float, float], ...]:
    """Pairs of strength and guidance_scale. Raises UnusableBaseModel for anything else."""
    wanted = "1 to 8 pairs of strength (0 to 1) and guidance_scale (0 or more, and finite)"
    try:
        points = tuple((float(strength), float(guidance)) for strength, guidance in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        points = ()
    if not 1 <= len(points) <= 8 or not all(0 <= s <= 1 and 0 <= g < math.inf for s, g in points):
        raise UnusableBaseModel(f"{folder / PRESET_FILE}: automatic_points is {value!r}; it must be {wanted}")
    return points


def read_vocabulary(folder: Path) -> tuple[str, ...]:
    """Every word of the lists of phrases in `vocabulary.json`, once; empty without that file."""
    if not (folder / VOCABULARY_FILE).is_file():
        return ()
    lists = read_object(folder / VOCABULARY_FILE).values()
    if not all(isinstance(phrases, list) and all(isinstance(phrase, str) for phrase in phrases) for phrases in lists):
        raise UnusableBaseModel(f"{folder / VOCABULARY_FILE} must be an object whose values are lists of words")
    return tuple(dict.fromkeys(word for phrases in lists for phrase in phrases for word in phrase.split()))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UnusableBaseModel for anything else."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UnusableBaseModel(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UnusableBaseModel(f"{path} is not a JSON object")
    return found


def check_safetensors(folder: Path) -> None:
    """Raises UnusableBaseModel for a folder of transformers or diffusers whose weights are only pickled."""
    pickled = min(folder.glob(PICKLED), default=None)
    if pickled is not None and not any(folder.glob("*.safetensors")):
        is_diffusers = pickled.name.startswith("diffusion_")
        name, library = (WEIGHTS["unet"], "diffusers") if is_diffusers else (WEIGHTS["text_encoder"], "transformers")
        raise UnusableBaseModel(
            f"{pickled} is not loaded, since a pickled file can run any code: give {folder} with "
            f"{name}, as save_pretrained(..., safe_serialization=True) of {library} writes it"
        )


def weights_of(part: str) -> str:
    """The name of a part's weights file. A second text encoder's are called as the first one's."""
    return WEIGHTS["text_encoder" if part == SECOND_TEXT_ENCODER else part]


def variant_of(folder: Path, part: str) -> str | None:
    """Which of a part's weights are taken where it has several: the plain ones, None, before fp16 before bf16."""
    for variant in VARIANTS:
        if any((folder / part / name).is_file() for name in weight_names(weights_of(part), variant)):
            return variant
    return None


def weight_names(weights: str, variant: str | None) -> tuple[str, str]:
    """The names of a variant of a weights file and of its index, as diffusers and transformers write them."""
    stem, ending = weights.rsplit(".", 1)
    between = f".{variant}" if variant else ""
    return f"{stem}{between}.{ending}", f"{weights}.index{between}.json"


def weight_files(folder: Path, part: str, weights: str) -> list[Path]:
    """A part's weights: one file, or an index and the shards that it lists. Raises UnusableBaseModel."""
    name, index = weight_names(weights, variant_of(folder, part))
    if (folder / part / name).is_file() or not (folder / part / index).is_file():
        return [Path(part, name)]
    shards = set(read_object(folder / part / index)["weight_map"].values())
    if outside := sorted(str(shard) for shard in shards if Path(str(shard)).name != shard):
        raise UnusableBaseModel(f"{folder / part / index} names {outside[0]!r}: a shard must lie beside its index")
    return [Path(part, index), *sorted(Path(part, shard) for shard in shards)]
