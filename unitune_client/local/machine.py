"""What this machine has to run the services with: the packages of their extras, and a base model."""

import hashlib
import importlib.util
from pathlib import Path

from unitune.errors import InvalidField
from unitune.system_errors import full_sentence

PRESET_FILE = "unitune_preset.json"  # in a base model's folder
# What each extra is recognised by. Finding a module does not import it.
EXTRAS = {
    "tuner": ("torch", "diffusers", "transformers", "onnx", "onnxscript"),
    "sampler": ("onnxruntime", "tokenizers"),
    "gateway": ("numpy", "obstore", "safetensors", "grpc_health", "grpc_reflection", "jwt"),
}


class LocalError(Exception):
    """The services cannot run on this machine, or one of them ended. The message is for people, as it is."""


def disk_full(path: Path) -> LocalError:
    """The error of a path of UniTune's whose disk is full, with what frees space."""
    return LocalError(f"{full_sentence(path)}, as by `unitune tunings delete NAME`")


def missing_modules() -> list[str]:
    """Modules that the services need and that are not installed."""
    return [name for names in EXTRAS.values() for name in names if importlib.util.find_spec(name) is None]


def embedded_base_model() -> Path | None:
    """The folder of the base model that comes with the product; None if it is not installed."""
    found = importlib.util.find_spec("stickerbook")
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / "model" / "model_index.json").is_file():
            return Path(folder) / "model"
    return None


def base_model_file(given: str | None, argument: str = "--base-model") -> Path | None:
    """The base model that is given, if it is a single file. Raises InvalidField naming the argument for other kinds."""
    file = Path(given).expanduser().absolute() if given else None
    if file is None or not file.is_file():
        return None
    if file.suffix != ".safetensors":
        remedy = "give a .safetensors file or a folder in diffusers layout; files that are pickled are never opened"
        raise InvalidField(argument, file, remedy)
    return file


def base_model_folder(given: str | None, models: Path) -> Path:
    """The base model to use: the one that is given, else the embedded one. Raises InvalidField and LocalError.

    Of a single file it is the folder below `models` that the file is written as, once.
    """
    if given:
        if file := base_model_file(given):
            return folder_of_file(file, models)
        folder = Path(given).expanduser().absolute()
        if not (folder / "model_index.json").is_file():
            remedy = "give a folder in diffusers layout, with model_index.json in it, or a .safetensors file"
            raise InvalidField("--base-model", Path(given), remedy)
        return folder
    embedded = embedded_base_model()
    if embedded is None:
        raise LocalError("no base model is installed here: give --base-model FOLDER in diffusers layout")
    return embedded


def folder_of_file(file: Path, models: Path) -> Path:
    """Where a single file is written as a folder. Another file under the same name has another one."""
    facts = file.stat()
    identity = hashlib.sha256(f"{file}:{facts.st_size}:{facts.st_mtime_ns}".encode(errors="surrogateescape"))
    return models / identity.hexdigest()[:16] / file.stem


def base_model_name(folder: Path) -> str:
    """What people call a base model: `stickerbook` for the embedded one, else its folder's name."""
    return "stickerbook" if folder == embedded_base_model() else folder.name
