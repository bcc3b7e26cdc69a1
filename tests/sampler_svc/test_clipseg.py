"""CLIPSeg: a tiny random one, exported, against transformers' own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from sampler_svc.sampling.clipseg import ClipSeg
from tests.sampler_svc.tiny_clip import save_tiny_clip
from tests.tiny_model import CONTEXT_TOKENS, tiny_tokenizer
from tuner_svc.export.clip import export_clip
from tuner_svc.export.clipseg import export_clipseg
from tuner_svc.model_folder import CLIP_FOLDER, UnusableBaseModel

SIDE, MEAN, STD = 32, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
THINGS = ["cat", "dog on the beach"]


def save_tiny_clipseg(folder: Path) -> CLIPSegForImageSegmentation:
    """A random CLIPSeg of 32x32 pictures with the tiny model's tokenizer; about half of its logits are above 0."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPSegConfig(
        text_config={**shape, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT_TOKENS},
        vision_config={**shape, "image_size": SIDE, "patch_size": 8},
        projection_dim=32,
        extract_layers=[1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    clipseg = CLIPSegForImageSegmentation(config).eval()
    with torch.no_grad():
        clipseg.decoder.transposed_convolution.bias -= float(np.median(logits(clipseg, picture(SIDE, SIDE))))
    clipseg.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    preprocessor = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return clipseg


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipSeg, CLIPSegForImageSegmentation]:
    """The sampler's CLIPSeg, and the one in PyTorch that it was exported from."""
    folder = tmp_path_factory.mktemp("clipseg")
    clipseg = save_tiny_clipseg(folder / "model")
    return ClipSeg(export_clipseg(folder / "model", folder / "graphs"), threads=1), clipseg


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@torch.no_grad()
def logits(clipseg: CLIPSegForImageSegmentation, pixels: np.ndarray) -> np.ndarray:
    """transformers' own answer for the picture at its size and each thing."""
    encoded = tiny_tokenizer()(THINGS, padding="max_length", max_length=CONTEXT_TOKENS, return_tensors="pt")
    image = (torch.tensor(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    batch = image.permute(2, 0, 1)[None].repeat(len(THINGS), 1, 1, 1)
    found: np.ndarray = clipseg(input_ids=encoded.input_ids, pixel_values=batch).logits.numpy()
    return found


def test_the_exported_graph_answers_as_transformers_does(exported) -> None:
    """The same logits per thing, with normalisation and tokenizer in place."""
    sampler, clipseg = exported
    pixels = picture(SIDE, SIDE)

    found = sampler.logits(pixels, THINGS)

    assert found.shape == (2, SIDE, SIDE) and np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_allclose(found, logits(clipseg, pixels), rtol=1e-4, atol=1e-4)  # values up to 5


def test_the_mask_is_where_any_thing_is_likelier_than_not(exported) -> None:
    """It has the picture's own size, and both things."""
    sampler, clipseg = exported
    pixels = picture(50, 70)
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    found = sampler.find(pixels, THINGS)

    shown = (logits(clipseg, small) > 0).any(axis=0)
    assert 0.2 < shown.mean() < 0.8
    expected = Image.fromarray(shown.astype(np.float32)).resize((70, 50), Image.Resampling.BILINEAR)
    assert (np.abs(found - np.asarray(expected)) > 1e-6).mean() < 0.01  # except logits that are 0 up to rounding


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    """The exporter names the folder, and the sampler the command that writes what it misses."""
    with pytest.raises(UnusableBaseModel, match="holds no CLIPSeg"):
        export_clipseg(tmp_path, tmp_path / "graphs")
    with pytest.raises(FileNotFoundError, match="has no clipseg"):
        ClipSeg(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A folder with pytorch_model.bin alone is not loaded; the error names the file and the remedy (r10)."""
    clipseg = save_tiny_clipseg(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(clipseg.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnusableBaseModel, match=r"pytorch_model\.bin is not loaded.* with model\.safetensors"):
        export_clipseg(tmp_path, tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def test_a_pickled_clip_is_refused(tmp_path: Path) -> None:
    """The same for a base model's CLIP, and nothing in the file is run (r10)."""
    clip = save_tiny_clip(tmp_path / CLIP_FOLDER)
    (tmp_path / CLIP_FOLDER / "model.safetensors").unlink()
    torch.save(clip.state_dict(), tmp_path / CLIP_FOLDER / "pytorch_model.bin")
    (tmp_path / "graphs").mkdir()
    with pytest.raises(UnusableBaseModel, match=r"clip/pytorch_model\.bin is not loaded"):
        export_clip(tmp_path / "graphs", tmp_path)
    assert list((tmp_path / "graphs").iterdir()) == []
