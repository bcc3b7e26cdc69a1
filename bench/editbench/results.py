"""What one setting made of one case, on disk: a picture and what was measured of it."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench.editbench.cases import Case
from bench.editbench.scores import Score
from bench.editbench.settings import Setting
from unitune import images
from unitune.images import Pixels


@dataclass(frozen=True)
class Result:
    """One case under one setting."""

    case: str
    picture: str
    category: str
    aligned: bool
    setting: str
    prompt: str
    image: str  # file of the edited picture
    score: Score
    edit_s: float  # on one core
    tuning_s: float  # of the tuning, which cases may share; on one core
    artifact_bytes: int  # of the tuning's weights file; 0 without a tuning

    @classmethod
    def read(cls, path: Path, setting: str) -> "Result":
        """A result on disk, under the name that the setting has now."""
        fields = json.loads(path.read_text())
        fields["score"] = Score(**fields["score"])
        return cls(**{**fields, "setting": setting})

    def pixels(self, out: Path) -> Pixels:
        """The edited picture; `out` is the folder of the whole bench."""
        return images.decode((out / "results" / self.image).read_bytes())


def result_file(out: Path, base_model: str, case: Case, setting: Setting) -> Path:
    """Where a case's result lies; its picture lies beside it."""
    return out / "results" / f"{setting.key(base_model, case.id)}.json"


def save(path: Path, pixels: np.ndarray, fields: dict[str, object], score: Score) -> None:
    """Write the picture, then the result beside it; the result appears whole or not at all."""
    image = path.with_suffix(".png")
    Image.fromarray(pixels).save(image)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({**fields, "image": image.name, "score": asdict(score)}))
    unfinished.replace(path)


def by_setting(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by the name of their setting, in order."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.setting, []).append(result)
    return grouped
