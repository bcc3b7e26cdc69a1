"""The specification that crosses from the tuner's export to the sampler."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unitune.base_model import BaseModelSpec, NoiseSchedule, Preset, TensorSpec

SPEC = BaseModelSpec(
    name="tiny",
    digest="ab" * 32,
    image_side=(48, 32),
    latent_side=(12, 8),
    latent_channels=4,
    context_tokens=16,
    context_width=32,
    schedule=NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    preset=Preset(updates=64, fast_steps=4, strength=0.7, methods={"imagic": {"eta": 1.0}}),
    tensors={
        "conv_in.weight": TensorSpec((32, 4, 3, 3)),
        "to_q.weight": TensorSpec((32, 16), layout="transposed"),
        "norm.bias": TensorSpec((8,), layout="reshaped", graph_shape=(8, 1, 1)),
    },
    vocabulary=("cat", "dog"),
    latent_to_rgb=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    files={"denoiser.onnx": "cd" * 32},
)


def test_a_specification_survives_its_file(tmp_path: Path) -> None:
    """What is saved is what is loaded, tuples and nested parts too."""
    SPEC.save(tmp_path)

    assert BaseModelSpec.load(tmp_path) == SPEC


@pytest.mark.parametrize("high", [math.inf, 7.0])
def test_an_open_interval_of_guidance_is_written_as_json_that_every_parser_reads(tmp_path: Path, high: float) -> None:
    """JSON has no Infinity: an upper end that is open is null, at the top and in a method's section, and comes back."""
    own = {"unitune": {"guidance_sigma_high": math.inf}, "imagic": {"guidance_sigma_low": 0.5}}
    spec = replace(SPEC, preset=Preset(guidance_sigma_high=high, methods=own))

    spec.save(tmp_path)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    preset = json.loads((tmp_path / "spec.json").read_text(), parse_constant=refuse)["preset"]
    assert preset["guidance_sigma_high"] == (None if high == math.inf else high)
    assert preset["methods"]["unitune"] == {"guidance_sigma_high": None}
    assert BaseModelSpec.load(tmp_path) == spec


def test_a_number_that_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    """Anywhere else it is a mistake: nothing lies in the folder then."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(SPEC, latent_to_rgb=((math.nan, 0.0, 0.0),)).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_same_specification_gives_the_same_bytes(tmp_path: Path) -> None:
    """Order of tensors does not matter, so the file can be part of a digest."""
    turned = replace(SPEC, tensors=dict(reversed(SPEC.tensors.items())))

    SPEC.save(tmp_path)
    first = (tmp_path / "spec.json").read_bytes()
    turned.save(tmp_path)

    assert (tmp_path / "spec.json").read_bytes() == first


def test_another_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """The error names both schemas and says to export again."""
    SPEC.save(tmp_path)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))

    with pytest.raises(ValueError, match="schema 99, this program reads 7; export again"):
        BaseModelSpec.load(tmp_path)


def test_a_folder_without_specification_is_not_found(tmp_path: Path) -> None:
    """A missing file is a missing file."""
    with pytest.raises(FileNotFoundError):
        BaseModelSpec.load(tmp_path)


@pytest.mark.parametrize("name", sorted(SPEC.tensors))
def test_layouts_keep_every_value(name: str) -> None:
    """A tensor laid out for the graph has the graph's shape, contiguous, and undoing the layout gives it back."""
    spec = SPEC.tensors[name]
    tensor = np.random.default_rng(0).standard_normal(spec.shape, dtype=np.float32)

    laid_out = spec.to_graph(tensor)

    assert laid_out.flags.c_contiguous
    if spec.layout == "transposed":
        np.testing.assert_array_equal(laid_out.T, tensor)
    else:
        assert laid_out.shape == (spec.graph_shape or spec.shape)
        np.testing.assert_array_equal(laid_out.reshape(spec.shape), tensor)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, "null", "[]", "7", '{"schema": 1}', "[" * 100_000])
def test_a_specification_that_is_cut_short_or_none_is_refused_with_the_remedy(
    tmp_path: Path, part: float | str
) -> None:
    """Whatever lies there instead, it is a ValueError, which each program tells in one line (r16)."""
    SPEC.save(tmp_path)
    path = tmp_path / "spec.json"
    text = path.read_text()
    path.write_text(part if isinstance(part, str) else text[: int(part * len(text))])
    with pytest.raises(ValueError) as damaged:
        BaseModelSpec.load(tmp_path)
    assert isinstance(damaged.value, json.JSONDecodeError) or "export again" in str(damaged.value)
