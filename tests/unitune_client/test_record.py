"""What a picture of an earlier version says of its making."""

import json
from dataclasses import replace
from typing import cast

from unitune.options import Flat
from unitune_client.cli.record import KEYWORD, parsed
from unitune_client.cli.show import lines_of
from unitune_client.messages import edit_request
from unitune_client.options import EditOptions, TuningOptions

# As 0.x wrote it, where the CLIP filter was called gate.
OLD = (
    '{"base_model":{"digest":"' + "b" * 64 + '","name":"stickerbook"},"mask":{"sha256":"' + "c" * 64 + '"},'
    '"method":"unitune","picture":{"sha256":"' + "a" * 64 + '"},"prompt":"a dog","sampled_seed":1007,'
    '"sampling":{"base_mixture":0.0,"gate":true,"guidance_scale":7.5,"guidance_sigma_high":7.0,"interpolation":1.0,'
    '"mask_blur":2.0,"mask_padding":32,"mask_source":"given","method":"unitune","num_inference_steps":20,'
    '"only_masked":true,"prompt_guidance_scale":0.0,"resamples":3,"scheduler":"ddim","strength":0.75,'
    '"super_resolution":true,"super_resolution_guidance_scale":1.0,"super_resolution_noise_level":50,'
    '"super_resolution_steps":1,"dynamic_thresholding":true,"unconditional_model":"tuned"},'
    '"seed":7,"software":"UniTune 0.1","tuning":{"config":{"batch":4,"learning_rate":0.0001,"method":"unitune",'
    '"mode":"attn_out","rare_tokens":"beikkpic","seed":3,"updates":128},"key":"k"},"version":1}'
)


def test_a_picture_of_an_earlier_version_is_made_again() -> None:
    """Every setting of its record is in the request, the CLIP filter under its new name (`edit --like`)."""
    record = parsed({KEYWORD: OLD}, "old.png", "--like")
    options = record.options(EditOptions())
    tuning = record.tuning_options(TuningOptions(), None)

    request = edit_request("", record.prompt, cast(EditOptions, {**options, **tuning}))

    said = json.loads(OLD)
    config, tuned = Flat(request.config), Flat(request.tuning_config)
    assert config.clip_filter is True and (list(request.seeds), tuned.seed) == ([7], 3)
    assert said["sampling"] == {
        name: config.clip_filter if name == "gate" else getattr(config, name) for name in said["sampling"]
    }
    assert {name: said["tuning"]["config"][name] for name in ("mode", "updates", "batch", "rare_tokens")} == {
        name: getattr(tuned, name) for name in ("mode", "updates", "batch", "rare_tokens")
    }


def test_a_picture_of_an_earlier_version_is_shown_as_it_says() -> None:
    """`unitune show` prints the record as it is."""
    record = parsed({KEYWORD: OLD}, "old.png", "PICTURE")

    assert json.loads(OLD) == record.facts
    assert {"gate true", "mask_source given", "scheduler ddim"} <= set(lines_of(record.facts["sampling"]))


def test_a_picture_is_made_again_with_the_fast_lora() -> None:
    """Its steps, scheduler and guidance are for many steps, and are left to the LoRA; the rest stays. A picture that
    was made with it keeps them."""
    record = parsed({KEYWORD: OLD}, "old.png", "--like")

    options = record.options(EditOptions(fast_lora=True))
    again = replace(record, sampling={**options, "num_inference_steps": 6}).options(EditOptions(fast_lora=True))

    assert not {"scheduler", "num_inference_steps", "guidance_scale"} & options.keys()
    assert (True, [7]) == (options["fast_lora"], options["seeds"])
    assert record.sampling["strength"] == options["strength"]
    assert 6 == again["num_inference_steps"]
