"""What differs between the builds for each backend, and what they share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unitune.base_model import SPEC_FILE, BaseModelSpec
from unitune.graph_files import DENOISER
from unitune.hard_link import link_or_copy

DENOISER_DATA = f"{DENOISER}.data"
EXPORT_AGAIN = "export the base model again"


class BuildError(Exception):
    """The graphs do not give an engine. The message says why."""


@dataclass(frozen=True)
class BackendBuilder:
    """The steps of a build that depend on the backend. They raise BuildError."""

    facts: Mapping[str, str]  # the runtime, its device and how it builds, for the key
    denoiser: str  # the exported denoiser, within the graphs folder
    specifications: tuple[str, ...]  # files that have the digests of all that is used
    check: Callable[[Path, BaseModelSpec], None]  # of the graphs
    fill: Callable[[Path, Path, BaseModelSpec], None]  # an engine folder, from the graphs
    # Takes graphs and engine folder; writes the base model's probe. Returns the proven refit modes if it has several.
    verify: Callable[[Path, Path, BaseModelSpec], tuple[str, ...] | None]


def link_others(folder: Path, graphs: Path, spec: BaseModelSpec) -> None:
    """All files of the graphs except the denoiser's graph, under a second name in an engine folder."""
    for name in {SPEC_FILE, *spec.files} - {DENOISER, DENOISER_DATA}:
        link_or_copy(graphs / name, folder / name)
