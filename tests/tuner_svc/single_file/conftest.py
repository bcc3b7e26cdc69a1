"""The tiny SDXL model as a single file."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from tests.original_names import original_tensors
from tests.tiny_sdxl import tiny_sdxl as tiny_pipeline
from tuner_svc.single_file.model import Source


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    """The tiny SDXL model, in memory."""
    return tiny_pipeline()


@pytest.fixture
def source(pipeline: StableDiffusionXLPipeline, tiny_sdxl: Path, tmp_path: Path) -> Source:
    """It as a single file."""
    save_file(original_tensors(pipeline), tmp_path / "tiny.safetensors")
    return Source(tmp_path / "tiny.safetensors", config=tiny_sdxl)
