"""What a base model's folder must hold, and what is read from it."""

import errno
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuner_svc.base_model import load
from tuner_svc.fp32_copy import is_in_memory
from tuner_svc.model_folder import (
    WEIGHTS,
    UnusableBaseModel,
    check_layout,
    digest,
    read_preset,
    read_schedule,
    read_vocabulary,
)
from unitune import tensor_file
from unitune.base_model import Preset


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def change_json(path: Path, **values: object) -> None:
    """Set values of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_diffusers_folder_is_taken(tiny_model: Path) -> None:
    """What save_pretrained writes is a base model."""
    check_layout(tiny_model)


@pytest.mark.parametrize(
    "missing",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    """A folder that lacks a part is refused with the part's name."""
    (folder / missing).unlink()

    with pytest.raises(UnusableBaseModel, match=missing):
        check_layout(folder)


def test_a_folder_without_a_tokenizer_is_refused_by_both_layouts_names(folder: Path) -> None:
    """Neither tokenizer.json nor vocab.json and merges.txt is there."""
    shutil.rmtree(folder / "tokenizer")

    with pytest.raises(UnusableBaseModel, match=r"tokenizer/vocab\.json, tokenizer/merges\.txt"):
        check_layout(folder)


def test_any_other_folder_is_refused(tmp_path: Path) -> None:
    """A folder that is no model says what it lacks."""
    with pytest.raises(UnusableBaseModel, match=r"no model_index\.json"):
        digest(tmp_path)


def test_an_sdxl_model_without_its_second_text_encoder_is_refused(folder: Path) -> None:
    """A model of the next generation is recognised rather than half loaded."""
    change_json(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")

    with pytest.raises(UnusableBaseModel, match="its text_encoder_2 is None; only CLIPTextModelWithProjection"):
        check_layout(folder)


def test_another_kind_of_part_is_refused(folder: Path) -> None:
    """A denoiser that is no UNet is named."""
    change_json(folder / "model_index.json", unet=["diffusers", "SD3Transformer2DModel"])

    with pytest.raises(UnusableBaseModel, match="its unet is SD3Transformer2DModel"):
        check_layout(folder)


def test_shards_count_as_weights(folder: Path) -> None:
    """Weights in several files, with an index, are found, and a missing shard is named."""
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "one.safetensors")
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "one.safetensors"}}))
    check_layout(folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "one.safetensors", "conv_out.bias": "two"}}))

    with pytest.raises(UnusableBaseModel, match="lacks unet/two"):
        check_layout(folder)


def test_a_variant_is_taken_where_there_are_no_plain_weights(folder: Path, tiny_model: Path) -> None:
    """fp16 files are loaded as the values that they hold, sharded or not; plain ones beside them win (M6)."""
    for part in WEIGHTS:
        weights = folder / part / WEIGHTS[part]
        halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
        weights.unlink()
        if part == "unet":  # in two shards
            names = sorted(halves)
            shards = {"a-1.fp16.safetensors": names[::2], "a-2.fp16.safetensors": names[1::2]}
            for shard, some in shards.items():
                save_file({name: halves[name] for name in some}, folder / part / shard, {"format": "pt"})
            places = {name: shard for shard, some in shards.items() for name in some}
            index = {"metadata": {"total_size": 0}, "weight_map": places}
            (folder / part / f"{WEIGHTS[part]}.index.fp16.json").write_text(json.dumps(index))
        else:
            save_file(halves, weights.with_suffix(".fp16.safetensors"), {"format": "pt"})

    plain, loaded = load(tiny_model).tensors(), load(folder).tensors()

    assert [] == [name for name in plain if not torch.equal(loaded[name], plain[name].half().float())]
    before = digest(folder)
    for part in WEIGHTS:
        shutil.copy(tiny_model / part / WEIGHTS[part], folder / part)
    assert before != digest(folder) == digest(tiny_model)


@pytest.mark.parametrize("disk", ["has room", "has none", "fills up", "is memory"])
def test_large_weights_in_fp16_are_mapped_in_fp32(folder: Path, monkeypatch: pytest.MonkeyPatch, disk: str) -> None:
    """They have the values that the file holds, and take no memory of this process: they lie in a file that has lost
    its name. Without room on the disk they stay in memory, with the same values."""
    for part in WEIGHTS:
        halves = {name: tensor.half() for name, tensor in load_file(folder / part / WEIGHTS[part]).items()}
        save_file(halves, folder / part / WEIGHTS[part], {"format": "pt"})
    in_memory = load(folder)
    monkeypatch.setattr("tuner_svc.fp32_copy.is_large", lambda size_bytes: True)
    if disk == "has none":
        monkeypatch.setattr("tuner_svc.fp32_copy.ROOM", 1 << 40)
    if disk == "is memory":
        assert is_in_memory(Path("/dev/shm")) and not is_in_memory(Path("/proc"))
        monkeypatch.setattr("tuner_svc.fp32_copy.is_in_memory", lambda copy: True)
    if disk == "fills up":
        write_file, written = tensor_file.write_file, []

        def filling_up(*arguments: Any) -> None:
            written.append(write_file(*arguments))
            if len(written) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tuner_svc.fp32_copy.tensor_file.write_file", filling_up)

    loaded = load(folder)

    for part in ("denoiser", "text_encoder", "image_decoder"):
        wanted, found = (getattr(model, part).state_dict() for model in (in_memory, loaded))
        assert wanted.keys() == found.keys()
        assert [] == [name for name, tensor in found.items() if not torch.equal(tensor, wanted[name])]
    assert all(tensor.dtype == torch.float32 for tensor in loaded.tensors().values())
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "unitune-fp32-" in line]
    spans = [range(*(int(end, 16) for end in line[0].split("-"))) for line in maps]
    assert all(line[-1] == "(deleted)" for line in maps)
    is_mapped = [any(one.data_ptr() in span for span in spans) for one in loaded.tensors().values()]
    assert all(is_mapped) if disk == "has room" else not any(is_mapped)


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickled_weights_beside_the_others_are_not_read(
    folder: Path, tiny_model: Path, tmp_path: Path, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The .safetensors file is loaded, and nothing is said of the .bin beside it, which is no part of the digest; alone
    it is refused with the remedy (M5)."""
    stem = WEIGHTS[part].removesuffix("model.safetensors") + ("pytorch_model" if part == "text_encoder" else "model")
    pickled = folder / part / f"{stem}.bin"
    pickled.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))

    plain, loaded = load(tiny_model), load(folder)

    for name in ("denoiser", "text_encoder", "image_decoder"):
        wanted, found = (getattr(model, name).state_dict() for model in (plain, loaded))
        assert [] == [key for key, tensor in wanted.items() if not torch.equal(tensor, found[key])]
    assert digest(folder) == digest(tiny_model)
    assert ".bin" not in "".join(capfd.readouterr())
    (folder / part / WEIGHTS[part]).unlink()
    with pytest.raises(
        UnusableBaseModel, match=rf"{stem}\.bin is not loaded.* with {WEIGHTS[part]}, as save_pretrained"
    ):
        digest(folder)
    assert not (tmp_path / "ran").exists()


def test_a_shard_outside_of_its_folder_is_refused(folder: Path) -> None:
    """A shard's name leads nowhere else (M7)."""
    weights = folder / "unet" / WEIGHTS["unet"]
    weights.rename(folder / "x.safetensors")
    index = {"weight_map": {"conv_in.weight": "../x.safetensors"}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))

    with pytest.raises(UnusableBaseModel, match="a shard must lie beside its index"):
        check_layout(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_json(folder / "unet" / "config.json", norm_eps=1e-3),
        lambda folder: change_json(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"),
        lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").open("ab").write(b"\0"),
        lambda folder: change_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=12),
        lambda folder: (folder / "unitune_preset.json").write_text('{"updates": 3}'),
    ],
    ids=["config", "schedule", "weights", "tokenizer", "preset"],
)
def test_the_digest_changes_with_everything_that_matters(folder: Path, change: Callable[[Path], None]) -> None:
    """Two models that could behave differently never share a digest."""
    before = digest(folder)

    change(folder)

    assert before != digest(folder)


def test_the_digest_does_not_change_with_the_place_or_with_other_files(folder: Path, tiny_model: Path) -> None:
    """A copy elsewhere, with a README beside it, is the same model."""
    (folder / "README.md").write_text("hello")

    assert digest(tiny_model) == digest(folder)


def test_a_preset_overrides_defaults(folder: Path) -> None:
    """Named values replace the defaults, a whole number is taken for a fraction, and the rest stays."""
    (folder / "unitune_preset.json").write_text('{"mode": "full", "updates": 64, "guidance_scale": 5}')

    preset = read_preset(folder)

    assert Preset(mode="full", updates=64, guidance_scale=5.0) == preset
    assert isinstance(preset.guidance_scale, float)


def test_a_family_has_its_own_defaults(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Those of SDXL are in force with a preset and without one; what the preset sets comes first."""
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path / "xl"))

    assert (5e-5, 5.0) == (read_preset(folder).learning_rate, read_preset(folder).guidance_scale)
    assert {5.0, 7.5} == {guidance for _, guidance in read_preset(folder).automatic_points}
    (folder / "unitune_preset.json").write_text('{"guidance_scale": 7}')
    assert (5e-5, 7.0) == (read_preset(folder).learning_rate, read_preset(folder).guidance_scale)


def test_a_preset_has_a_section_per_method(folder: Path) -> None:
    """A method's own values come before published ones, those before UniTune's, and no other method sees them."""
    (folder / "unitune_preset.json").write_text(
        '{"scheduler": "euler", "updates": 64, "methods": {"imagic": {"learning_rate": 0.001, "eta": 1, "updates": 9}}}'
    )

    preset = read_preset(folder)

    imagic, dreambooth = preset.method_preset("imagic"), preset.method_preset("dreambooth")
    assert (9, 1e-3, 1.0, "full", 1.0, "euler") == (
        imagic.updates,
        imagic.learning_rate,
        imagic.eta,
        imagic.mode,
        imagic.strength,
        imagic.scheduler,
    )
    assert isinstance(imagic.eta, float)
    assert (800, 5e-6, "euler") == (dreambooth.updates, dreambooth.learning_rate, dreambooth.scheduler)
    assert (64, 0.85) == (preset.method_preset("unitune").updates, preset.method_preset("unitune").strength)


def test_sdedit_has_a_section_too(folder: Path) -> None:
    """What an edit without a tuning starts from; flat settings stay UniTune's; the CLIP filter's are for all."""
    (folder / "unitune_preset.json").write_text(
        '{"strength": 0.9, "clip_filter_kept": 0.5, "automatic_points": [[0.5, 3]],'
        ' "methods": {"sdedit": {"strength": 0.8, "guidance_scale": 6}}}'
    )

    preset = read_preset(folder)

    assert (0.9, 7.5) == (preset.strength, preset.guidance_scale)
    sdedit = preset.method_preset("sdedit")
    assert (0.8, 6.0) == (sdedit.strength, sdedit.guidance_scale)
    assert (0.5, ((0.5, 3.0),)) == (sdedit.clip_filter_kept, sdedit.automatic_points)


def test_the_interval_of_guidance_is_unitunes_own(folder: Path) -> None:
    """The other methods are guided at every step unless their own section says otherwise."""
    (folder / "unitune_preset.json").write_text(
        '{"guidance_sigma_high": 7, "methods": {"imagic": {"guidance_sigma_low": 0.5}}}'
    )

    preset = read_preset(folder)

    assert (0.0, 7.0) == (
        preset.method_preset("unitune").guidance_sigma_low,
        preset.method_preset("unitune").guidance_sigma_high,
    )
    assert (0.0, math.inf) == (
        preset.method_preset("sdedit").guidance_sigma_low,
        preset.method_preset("sdedit").guidance_sigma_high,
    )
    assert (0.5, math.inf) == (
        preset.method_preset("imagic").guidance_sigma_low,
        preset.method_preset("imagic").guidance_sigma_high,
    )


def test_a_model_with_a_closed_vocabulary_has_a_weaker_second_pass(folder: Path) -> None:
    """It has only learnt whole objects; its own preset comes before that. Other models keep the usual one."""
    assert 0.2 == read_preset(folder).second_pass_strength
    (folder / "vocabulary.json").write_text('{"objects": ["cat"]}')
    assert 0.1 == read_preset(folder).second_pass_strength
    (folder / "unitune_preset.json").write_text('{"second_pass_strength": 0.3}')
    assert 0.3 == read_preset(folder).second_pass_strength
    (folder / "unitune_preset.json").write_text('{"second_pass_strength": 1.5}')
    with pytest.raises(UnusableBaseModel, match=r"second_pass_strength is 1\.5"):
        read_preset(folder)


def test_fast_steps_are_unitunes_own(folder: Path) -> None:
    """They are at most as many as UniTune's own steps, whatever the other methods have."""
    (folder / "unitune_preset.json").write_text(
        '{"num_inference_steps": 10, "fast_steps": 4, "methods": {"sdedit": {"num_inference_steps": 3}}}'
    )

    assert 4 == read_preset(folder).method_preset("unitune").fast_steps
    assert 0 == Preset().fast_steps


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"fast_steps": 51}', "json: fast_steps is 51: it must be 0 to num_inference_steps, 50"),
        ('{"fast_steps": -1}', "fast_steps is -1: it must be 0 to num_inference_steps, 50"),
        ('{"fast_steps": null}', "fast_steps is None; it must be int"),
        ('{"methods": {"sdedit": {"fast_steps": 4}}}', "fast_steps is set for sdedit, which has no such setting"),
        ('{"methods": {"null_text": {"fast_steps": 4}}}', "fast_steps is set for null_text, which has no such setting"),
        ('{"guidance_sigma_low": 3, "guidance_sigma_high": 3}', r"guidance_sigma_high is 3\.0: it must be above"),
        ('{"guidance_sigma_high": 20000}', r"guidance_sigma_high is 20000\.0: it must be 0 to 10000"),
        ('{"guidance_sigma_low": -1}', r"guidance_sigma_low is -1\.0: it must be 0 to 10000"),
        ('{"methods": {"prompt_to_prompt": {"guidance_sigma_high": 7}}}', "prompt_to_prompt guides every step"),
        (
            '{"methods": {"sdedit": {"clip_filter_kept": 0.5}}}',
            "clip_filter_kept is set for sdedit: put it beside methods",
        ),
        (
            '{"methods": {"imagic": {"automatic_points": [[1, 7]]}}}',
            "automatic_points is set for imagic: put it beside",
        ),
        ('{"methods": {"sdedit": {"scheduler": "pndm"}}}', "scheduler is 'pndm': it must be one of ddim"),
        ('{"methods": {"prompt_to_prompt": {"scheduler": "euler"}}}', "prompt_to_prompt inverts ddim alone"),
        ('{"methods": {"prompt_to_prompt": {"self_replace": 1.5}}}', r"self_replace is 1\.5: it must be 0 to 1"),
        ('{"methods": {"sdedit": {"cross_replace": 0.4}}}', "cross_replace is set for sdedit, which has no such"),
        ('{"methods": {"null_text": {"batch": 2}}}', "batch is set for null_text, which has no such setting"),
        ('{"methods": {"null_text": {"guidance_scale": 5}}}', "guidance_scale is set for null_text, which has no such"),
        ('{"methods": {"null_text": {"updates": -1}}}', r"methods\.null_text\.updates is -1: it must be 0 to 5000"),
        ('{"methods": {"magic": {}}}', "magic is not a method; known are unitune, imagic"),
        ('{"methods": {"imagic": {"etta": 1}}}', r"methods\.imagic\.etta is not a setting"),
        ('{"methods": {"imagic": {"updates": "many"}}}', r"methods\.imagic\.updates is 'many'; it must be int"),
        (
            '{"methods": {"imagic": {"embedding_updates": 5001}}}',
            r"methods\.imagic\.embedding_updates is 5001: it must be 0 to 5000",
        ),
        ('{"methods": {"textual_inversion": {"num_vectors": 0}}}', r"inversion\.num_vectors is 0: it must be 1 to 16"),
        ('{"methods": {"sdedit": {"strength": 1.5}}}', r"methods\.sdedit\.strength is 1\.5: it must be 0 to 1"),
        ('{"methods": {"imagic": {"eta": 3}}}', r"methods\.imagic\.eta is 3\.0: it must be 0 to 2"),
        ('{"methods": {"dreambooth": {"eta": 1}}}', "eta is set for dreambooth, which has no such setting"),
        ('{"methods": {"sdedit": {"updates": 9}}}', "updates is set for sdedit, which has no such setting"),
        ('{"methods": {"imagic": {"num_vectors": 2}}}', "num_vectors is set for imagic, which has no such setting"),
        ('{"guidance_scale": -1}', r"json: guidance_scale is -1\.0: it must be 0 to 64"),
        ('{"automatic_points": [[0.9, Infinity]]}', r"automatic_points is \[\[0\.9, inf\]\]; it must be 1 to 8 pairs"),
        ('{"clip_filter_round_trip": 2}', r"clip_filter_round_trip is 2\.0: it must be 0 to 1"),
        ('{"methods": ["imagic"]}', "methods must be an object of objects"),
        ('{"upates": 3}', "upates is not a setting"),
        ('{"updates": "many"}', "updates is 'many'; it must be int"),
        ('{"updates": true}', "updates is True; it must be int"),
        ('{"updates": -1}', "updates is -1: it must be 0 to 5000"),
        ('{"mode": "all"}', "mode is 'all': it must be one of full, attn_out, lora"),
        ('{"scheduler": "pndm"}', "scheduler is 'pndm': it must be one of ddim"),
        ('{"distilled": "fast"}', "distilled is 'fast': it must be one of lcm, turbo, lightning, hyper"),
        ('{"distilled": "turbo", "strength": 0.2}', r"strength is 0\.2: it must be 1 / 4, one of its steps, or more"),
        ('{"scheduler": "lcm", "num_inference_steps": 60}', "num_inference_steps is 60: it must be 1 to 50 with"),
        ('{"timestep_spacing": "karras"}', "timestep_spacing is 'karras': it must be one of leading, trailing"),
        ('{"guidance_rescale": 2}', r"guidance_rescale is 2\.0: it must be 0 to 1"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_wrong_preset_is_refused(folder: Path, text: str, complaint: str) -> None:
    """A name that nobody reads, or a value of another kind, stops the start."""
    (folder / "unitune_preset.json").write_text(text)

    with pytest.raises(UnusableBaseModel, match=complaint):
        read_preset(folder)


def test_a_vocabulary_is_the_words_of_its_phrases(folder: Path) -> None:
    """Phrases are split into words, each listed once; no file means every word is known."""
    assert () == read_vocabulary(folder)

    (folder / "vocabulary.json").write_text('{"objects": ["cat", "dog"], "places": ["on a beach", "on the cat"]}')

    assert ("cat", "dog", "on", "a", "beach", "the") == read_vocabulary(folder)


def test_a_schedule_without_optional_keys_has_the_defaults_of_diffusers(folder: Path) -> None:
    """Stable Diffusion 1.5's own config names neither the spacing nor the prediction type."""
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}))

    schedule = read_schedule(folder)

    assert ("epsilon", "leading", True, 0) == (
        schedule.prediction_type,
        schedule.timestep_spacing,
        schedule.set_alpha_to_one,
        schedule.steps_offset,
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"prediction_type": "flow_prediction"}, "prediction_type"), ({"trained_betas": [0.1, 0.2]}, "trained_betas")],
)
def test_a_schedule_that_the_sampler_does_not_know_is_refused(
    folder: Path, change: dict[str, object], complaint: str
) -> None:
    """The tuner does not take a model that could not be sampled from."""
    change_json(folder / "scheduler" / "scheduler_config.json", **change)

    with pytest.raises(UnusableBaseModel, match=complaint):
        read_schedule(folder)
