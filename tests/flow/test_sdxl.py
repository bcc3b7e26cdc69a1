"""An edit with an SDXL folder, as a user runs it: the command starts services of its own, real processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuner_svc.export.exported_folder import DIGEST_CHARACTERS
from unitune.base_model import BaseModelSpec
from unitune.png_text import texts_of

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600  # a busy machine starts Python slowly


@pytest.mark.exhaustive  # tests/reports/test_single_file.py goes this way; each service has tests with SDXL
def test_a_landscape_is_edited_with_an_sdxl_folder(tiny_sdxl: Path, tiny_sdxl_graphs: Path, tmp_path: Path) -> None:
    """`unitune edit PHOTO PROMPT --base-model FOLDER` builds an engine, tunes, and writes a picture of the
    photo's size, sampled at a size of its own aspect; the picture tells the model. Graphs are there already."""
    photo, home, spec = tmp_path / "photo.png", tmp_path / "home", BaseModelSpec.load(tiny_sdxl_graphs)
    blotches = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    blotches.resize((66, 44), Image.Resampling.BICUBIC).save(photo)
    shutil.copytree(tiny_sdxl_graphs, home / "graphs" / spec.digest[:DIGEST_CHARACTERS])
    words = ["edit", photo, "a dog by night", "--base-model", tiny_sdxl, "--updates", 1, "--steps", 3]
    command = [sys.executable, "-m", "unitune_client", *map(str, words), "-o", str(tmp_path / "out"), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    own = {"UNITUNE_HOME": str(home), "UNITUNE_THREADS": "1", "PYTHONPATH": str(ROOT)}

    ended = subprocess.run(command, env=environment | own, capture_output=True, text=True, timeout=PATIENCE_S)

    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    (image,) = (one for one in told if one["event"] == "edited_image")
    (result,) = (one for one in told if one.get("kind") == "picture")
    assert (48, 32) == (image["working_width"], image["working_height"])
    assert (66, 44) == Image.open(result["value"]).size
    record = json.loads(texts_of(Path(result["value"]).read_bytes())["unitune"])
    assert (spec.digest, "unitune") == (record["base_model"]["digest"], record["method"])
    assert 1 == record["tuning"]["config"]["updates"]
    assert [home / "graphs" / spec.digest[:DIGEST_CHARACTERS]] == list((home / "graphs").iterdir())
