"""Tunings taken elsewhere: what diffusers reads of them answers like the tuned model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from tuner_svc.base_model import BaseModel
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import Tuned, tune
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.tuning_export import LORA_FILE, main
from unitune.images import ModelImage
from unitune.object_store import ObjectStore
from unitune.weights import probe_input

CONFIG = TuningConfig(mode="full", updates=3, batch=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def tuned(model: BaseModel, image: ModelImage) -> Tuned:
    """A short tuning of everything."""
    return tune(model, image, CONFIG)


@pytest.fixture(scope="module")
def store(model: BaseModel, tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object store that has it, without a codec's error, below an attempt's folder."""
    folder = tmp_path_factory.mktemp("store")
    ObjectStore(str(folder)).put_weights("tunings/t/1", *pack_tuned(model, tuned, CONFIG, "key"))
    return folder


@torch.no_grad()
def answer(model: BaseModel, unet: UNet2DConditionModel) -> np.ndarray:
    """What a UNet says."""
    values = probe_input(3, 4, model.latent_side, (model.context_tokens, model.context_width))
    return unet(*(torch.from_numpy(value) for value in values.values())).sample.numpy()


def reference(model: BaseModel, tiny_model: Path, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """What diffusers' UNet of the base model says with some tensors replaced."""
    unet = UNet2DConditionModel.from_pretrained(tiny_model, subfolder="unet")
    unet.load_state_dict(tensors, strict=False)
    return answer(model, unet)


def test_the_unet_folder_is_the_tuned_model(
    model: BaseModel, tuned: Tuned, tiny_model: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """diffusers loads it as any UNet, and it answers to the bit like the tuned tensors."""
    arguments = ["--base-model", str(tiny_model), "--store", str(store), "--weights", "tunings/t"]

    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0

    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    np.testing.assert_array_equal(answer(model, loaded), reference(model, tiny_model, tuned.tensors))
    assert np.abs(answer(model, loaded) - reference(model, tiny_model, {})).max() > 1e-3


@pytest.mark.parametrize("rank", [2, 512])
def test_the_lora_is_read_by_diffusers_and_makes_the_same_matrices(
    model: BaseModel, tuned: Tuned, tiny_model: Path, store: Path, tmp_path: Path, rank: int
) -> None:
    """Through diffusers' own reader of such files each factor finds its matrix; a full rank loses only fp16's rounding,
    norms and biases apart, and a low one is still nearer to the tuned matrices than to the base model's."""
    arguments = ["--base-model", str(tiny_model), "--store", str(store), "--weights", "tunings/t", "--format", "kohya"]

    assert main([*arguments, "--rank", str(rank), "--out", str(tmp_path)]) == 0

    unet = UNet2DConditionModel.from_pretrained(tiny_model, subfolder="unet")
    read, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path / LORA_FILE, unet_config=unet.config)
    base, made = unet.state_dict(), {}
    for name in (name for name, tensor in tuned.tensors.items() if tensor.dim() > 1):
        up, down = (_find(read, name, part) for part in ("up", "down"))
        assert len(down) == up.shape[1] <= rank
        product = up.float().flatten(1) @ down.float().flatten(1)
        made[name] = base[name] + product.reshape(base[name].shape)  # alpha is the rank, so the scale is 1
    assert sorted(set(alphas.values())) == sorted({float(len(_find(read, name, "down"))) for name in made})

    expected = reference(model, tiny_model, {name: tuned.tensors[name] for name in made})
    effect = np.linalg.norm(expected - reference(model, tiny_model, {}))
    error = np.linalg.norm(reference(model, tiny_model, made) - expected)
    assert error < {2: 0.9, 512: 0.005}[rank] * effect


def _find(read: dict[str, torch.Tensor], name: str, part: str) -> torch.Tensor:
    """The one factor of a matrix, whatever diffusers puts between its name and the part."""
    plain = name.removesuffix(".weight").replace("to_out.0", "to_out").replace(".", "_")
    found = [
        tensor
        for key, tensor in read.items()
        if key.endswith((f"lora.{part}.weight", f"lora_{'B' if part == 'up' else 'A'}.weight"))
        and key.removeprefix("unet.").rpartition("lora")[0].replace("processor.", "").strip("._").replace(".", "_")
        == plain
    ]
    assert len(found) == 1, (name, [key for key in read if name.split(".")[0] in key][:3])
    return found[0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"--weights": "tunings/other"}, "no weights lie at tunings/other"),
        ({"--base-model": "elsewhere"}, "elsewhere"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    tiny_model: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, complaint: str
) -> None:
    """Weights that are not there and a folder that is no base model."""
    options = {"--base-model": str(tiny_model), "--store": str(store), "--weights": "tunings/t", "--out": str(tmp_path)}

    code = main([word for option in (options | change).items() for word in option])

    told = capsys.readouterr().err.strip()
    assert code == 1 and told.startswith("export: ") and complaint in told and "\n" not in told


def test_weights_of_another_base_model_are_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A delta over the wrong base would be noise."""
    from tests.tiny_model import save_tiny_model

    other = save_tiny_model(tmp_path / "other", seed=5)

    code = main(
        ["--base-model", str(other), "--store", str(store), "--weights", "tunings/t", "--out", str(tmp_path / "out")]
    )

    assert code == 1 and "tuned from base model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_embeddings_are_left_out_and_told_of_and_alone_they_are_refused(
    model: BaseModel, image: ModelImage, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imagic's UNet is exported, with a line about its embeddings; Textual Inversion changes none, and says so."""
    few = {"updates": 1, "batch": 1}
    for config in (
        TuningConfig(method="imagic", mode="attn_out", prompt="a cat", embedding_updates=1, **few),
        TuningConfig(method="textual_inversion", rare_tokens="S*", initial_word="cat", **few),
    ):
        packed = pack_tuned(model, tune(model, image, config), config, "key")
        ObjectStore(str(tmp_path / "store")).put_weights(f"{config.method}/1", *packed)
    arguments = ["--base-model", str(tiny_model), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]

    refused = main([*arguments, "--weights", "textual_inversion"])
    told = capsys.readouterr().err.strip()
    assert refused == 1 and "embeddings alone" in told and "\n" not in told
    assert not (tmp_path / "out").exists()

    assert main([*arguments, "--weights", "imagic"]) == 0
    assert "left out: the embeddings of imagic (optimized, prompt)" in capsys.readouterr().out
    assert (tmp_path / "out" / "unet").is_dir()


def test_the_command_line_exports_what_its_home_holds(tiny_model: Path, store: Path, tmp_path: Path) -> None:
    """`unitune tunings export` finds the weights by the tuning's name and prints the path of what it wrote, whose mode
    is the user's own. What is no name, and a name without weights, is refused before anything is made.
    """
    home = tmp_path / "home"
    shutil.copytree(store / "tunings" / "t", home / "store" / "tunings" / "default" / "t")
    command = [sys.executable, "-m", "unitune_client", "tunings", "export", "--base-model", str(tiny_model)]
    environment = {**os.environ, "UNITUNE_HOME": str(home)}

    def told(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=300)

    done = told("tenants/default/tunings/t", "--format", "kohya", "-o", str(tmp_path / "out"))
    refused = told("t")
    unknown = told("tenants/default/tunings/t-0123456789", "-o", str(tmp_path / "nowhere"))

    file = tmp_path / "out" / LORA_FILE
    assert (0, f"{file}\n") == (done.returncode, done.stdout), done.stderr
    (tmp_path / "own").touch()
    assert file.stat().st_size > 1000 and file.stat().st_mode == (tmp_path / "own").stat().st_mode
    assert refused.returncode == 2 and "give a tuning's name" in refused.stderr
    wanted = f"NAME is 'tenants/default/tunings/t-0123456789': no weights of it are in {home / 'store'}"
    assert unknown.returncode == 2 and unknown.stderr.startswith(f"error: {wanted}"), unknown.stderr
    assert len(list((home / "logs").iterdir())) == 1 and not (tmp_path / "nowhere").exists()
