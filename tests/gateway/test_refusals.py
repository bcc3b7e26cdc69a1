"""Bad requests: each is refused naming the field, its value and the remedy; nothing is kept and the server lives on."""

import math
import time
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.configs import sampling_config, tuning_config
from tests.gateway.conftest import World, picture, refused
from tests.gateway.upstream_servers import BASE_MODEL
from tests.picture_files import png_header
from unitune.v1.edit_pb2 import CancelEditRequest, CompareRequest, EditRequest, GetEditRequest, SamplingConfig
from unitune.v1.server_pb2 import BaseModel, GetServerInfoRequest
from unitune.v1.tuning_pb2 import (
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    Tuning,
    TuningConfig,
    UpdateTuningRequest,
    WatchTuningRequest,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
WHITE = picture("white")
CASCADE = BaseModel(
    name="tiny",
    digest=BASE_MODEL.digest,
    width=64,
    height=64,
    super_resolution_width=128,
    super_resolution_height=128,
    super_resolution_2_width=512,
    super_resolution_2_height=512,
)


BAD_PICTURES = [
    (b"this is no picture", "IMAGE_UNDECODABLE"),
    (b"", "IMAGE_UNDECODABLE"),
    (picture(size=(200, 200))[:-40], "IMAGE_UNDECODABLE"),
    (picture(kind="JPEG", size=(300, 300))[:700], "IMAGE_UNDECODABLE"),
    (picture(kind="GIF"), "IMAGE_UNDECODABLE"),
    (png_header(20_000, 20_000), "IMAGE_TOO_LARGE"),
    (png_header(8_001, 8_000), "IMAGE_TOO_LARGE"),
]


async def lives(world: World) -> None:
    """The server still answers, and the refused request left nothing behind."""
    assert world.stored() == [] and not world.tuner.requests and not world.sampler.requests
    assert list((await world.tunings.ListTunings(ListTuningsRequest())).tunings) == []


@pytest.mark.parametrize(("data", "reason"), BAD_PICTURES)
async def test_bad_picture_is_refused_in_every_way_it_can_come(world: World, data: bytes, reason: str) -> None:
    """Uploaded, or sent along with an edit by either method: the same reason, in the field that carried it."""
    await refused(world.upload(data), INVALID, reason, "image")
    for method in ("unitune", "sdedit"):
        config = sampling_config(method=method)
        call = world.edits.Edit(EditRequest(image_data=data, prompt="a dog", config=config))
        await refused(call, INVALID, reason, "image_data")
    await lives(world)


@pytest.mark.parametrize("method", ["unitune", "sdedit"])
async def test_a_mask_that_is_no_picture_is_refused(world: World, method: str) -> None:
    """Undecodable, cut short, of another kind, announcing too many pixels, or too many bytes: before any tuning."""
    for data, reason in (
        (b"this is no picture", "IMAGE_UNDECODABLE"),
        (picture("white", (200, 200))[:-40], "IMAGE_UNDECODABLE"),
        (picture("white", kind="JPEG"), "IMAGE_UNDECODABLE"),
        (png_header(20_000, 20_000), "IMAGE_TOO_LARGE"),
        (bytes((768 << 10) + 1), "UPLOAD_TOO_LARGE"),
    ):
        config = sampling_config(method=method)
        call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=config, mask=data))
        await refused(call, INVALID, reason, "mask")
    await lives(world)


async def test_a_mask_is_held_to_the_picture_of_an_upload_and_of_a_tuning(world: World) -> None:
    """Wherever the picture comes from, a mask of another size is refused, and no tuning is made for it."""
    image = (await world.upload(picture(size=(50, 20)))).name
    for method in ("unitune", "sdedit"):
        config = sampling_config(method=method)
        call = world.edits.Edit(EditRequest(image=image, prompt="a dog", config=config, mask=WHITE))
        error = await refused(call, INVALID, "INVALID_FIELD", "mask")
        assert "50x20" in error.metadata["remedy"]
    assert list((await world.tunings.ListTunings(ListTuningsRequest())).tunings) == []
    tuning = await world.tuned(picture(size=(50, 20)))
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog", mask=WHITE))
    await refused(call, INVALID, "INVALID_FIELD", "mask")
    assert not world.sampler.requests


@pytest.mark.parametrize("source", ["", "attention"])
async def test_a_mask_of_an_unknown_word_is_refused(world: World, source: str) -> None:
    """A closed vocabulary has no zebra; a CLIPSeg takes it, but for `attention`, which the base model finds alone."""
    asked = sampling_config(method="sdedit", mask_text="the zebra, Dog", mask_source=source)
    request = EditRequest(image_data=picture(), prompt="a dog", config=asked)
    world.sampler.base_model = BaseModel(name="tiny", digest=BASE_MODEL.digest, vocabulary=["dog", "cow"])
    error = await refused(world.edits.Edit(request), INVALID, "INVALID_FIELD", "config.mask.text")
    assert error.metadata["value"] == "zebra"
    await lives(world)

    world.sampler.base_model.has_clipseg = True
    if source:
        await refused(world.edits.Edit(request), INVALID, "INVALID_FIELD", "config.mask.text")
    else:
        assert [event async for event in world.edits.Edit(request)][-1].HasField("done")


@pytest.mark.parametrize("option", ["automatic", "clip_filter"])
async def test_a_gate_is_refused_where_the_base_model_has_none(world: World, option: str) -> None:
    """Said before any tuning, with the option's name."""
    world.sampler.base_model = BaseModel(name="tiny", digest=BASE_MODEL.digest)
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=sampling_config(**{option: True})))
    await refused(call, INVALID, "INVALID_FIELD", f"config.{option}")
    assert list((await world.tunings.ListTunings(ListTuningsRequest())).tunings) == []


async def test_picture_too_large_for_a_request_is_refused(world: World) -> None:
    """Above 3 MiB a picture must be uploaded; above the transport's limit gRPC itself refuses."""
    call = world.edits.Edit(EditRequest(image_data=bytes((3 << 20) + 1), prompt="a dog"))
    await refused(call, INVALID, "UPLOAD_TOO_LARGE", "image_data")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.edits.Edit(EditRequest(image_data=bytes(5 << 20), prompt="a dog")).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await lives(world)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"prompt": ""}, "prompt", ""),
        ({"prompt": " \n "}, "prompt", "blank"),
        ({"prompt": "x" * 10_000}, "prompt", "10000 characters"),
        ({"config": sampling_config(strength=2)}, "config.strength", "2.0"),
        ({"config": sampling_config(strength=-0.1)}, "config.strength", "-0.1"),
        ({"config": sampling_config(strength=math.nan)}, "config.strength", "nan"),
        ({"config": sampling_config(guidance_scale=math.nan)}, "config.guidance_scale", "nan"),
        ({"config": sampling_config(guidance_scale=math.inf)}, "config.guidance_scale", "inf"),
        ({"config": sampling_config(guidance_scale=65)}, "config.guidance_scale", "65.0"),
        ({"config": sampling_config(interpolation=1.5)}, "config.interpolation", "1.5"),
        ({"config": sampling_config(interpolation=math.nan)}, "config.interpolation", "nan"),
        ({"config": sampling_config(num_inference_steps=0)}, "config.num_inference_steps", "0"),
        ({"config": sampling_config(num_inference_steps=1001)}, "config.num_inference_steps", "1001"),
        ({"config": sampling_config(fast=True)}, "config.fast", "true"),
        ({"config": sampling_config(fast=True, num_inference_steps=4)}, "config.num_inference_steps", "4"),
        ({"config": sampling_config(fast=True, automatic=True)}, "config.automatic", "true"),
        ({"config": sampling_config(fast=True, method="sdedit")}, "config.fast", "true"),
        ({"config": sampling_config(fast_lora=True)}, "config.fast_lora", "true"),
        ({"config": sampling_config(fast_lora=True, automatic=True)}, "config.fast_lora", "true"),
        ({"config": sampling_config(tcd_gamma=1.5)}, "config.tcd_gamma", "1.5"),
        ({"config": sampling_config(tcd_gamma=0.5)}, "config.tcd_gamma", "0.5"),
        ({"config": sampling_config(tcd_gamma=0.5, scheduler="lcm")}, "config.tcd_gamma", "0.5"),
        ({"config": sampling_config(scheduler="tcd", num_inference_steps=51)}, "config.num_inference_steps", "51"),
        ({"config": sampling_config(method=99)}, "config.method", "99"),
        ({"config": sampling_config(scheduler=-1)}, "config.scheduler", "-1"),
        ({"config": sampling_config(negative_prompt="x" * 2001)}, "config.negative_prompt", "2001 characters"),
        ({"config": sampling_config(base_prompt="x" * 2001)}, "config.base_prompt", "2001 characters"),
        ({"config": sampling_config(base_prompt="a cat")}, "config.base_prompt", "5 characters"),
        ({"config": sampling_config(prompt_guidance_scale=2)}, "config.base_prompt", "unset"),
        ({"config": sampling_config(prompt_guidance_scale=2, base_prompt=" ")}, "config.base_prompt", "blank"),
        (
            {"config": sampling_config(prompt_guidance_scale=65, base_prompt="a cat")},
            "config.prompt_guidance_scale",
            "65.0",
        ),
        ({"config": sampling_config(prompt_guidance_scale=math.nan)}, "config.prompt_guidance_scale", "nan"),
        ({"config": sampling_config(unconditional_model=3)}, "config.unconditional_model", "3"),
        (
            {"config": sampling_config(method="sdedit", unconditional_model="base")},
            "config.unconditional_model",
            "base",
        ),
        ({"config": sampling_config(base_mixture=1.5)}, "config.base_mixture", "1.5"),
        ({"config": sampling_config(method="sdedit", base_mixture=0.5)}, "config.base_mixture", "0.5"),
        ({"config": sampling_config(guidance_sigma_low=-1)}, "config.guidance_interval.low", "-1.0"),
        ({"config": sampling_config(guidance_sigma_high=math.inf)}, "config.guidance_interval.high", "inf"),
        ({"config": sampling_config(guidance_sigma_high=0)}, "config.guidance_interval.high", "0.0"),
        (
            {"config": sampling_config(guidance_sigma_low=3, guidance_sigma_high=3)},
            "config.guidance_interval.high",
            "3.0",
        ),
        ({"config": sampling_config(scheduler="lcm", num_inference_steps=51)}, "config.num_inference_steps", "51"),
        (
            {"config": sampling_config(scheduler="lcm", timestep_spacing="trailing")},
            "config.timestep_spacing",
            "trailing",
        ),
        ({"config": sampling_config(timestep_spacing=9)}, "config.timestep_spacing", "9"),
        ({"config": sampling_config(guidance_rescale=1.5)}, "config.guidance_rescale", "1.5"),
        (
            {"config": sampling_config(method="prompt_to_prompt", base_prompt="a cat", guidance_rescale=0.5)},
            "config.guidance_rescale",
            "0.5",
        ),
        ({"config": sampling_config(repeats=2)}, "config.repeats", "2"),
        ({"config": sampling_config(super_resolution=True)}, "config.super_resolution", "true"),
        ({"config": sampling_config(second_pass=True, second_pass_scale=1)}, "config.second_pass.scale", "1.0"),
        ({"config": sampling_config(second_pass=True, second_pass_strength=2)}, "config.second_pass.strength", "2.0"),
        (
            {"config": sampling_config(second_pass=True, method="prompt_to_prompt", base_prompt="a cat")},
            "config.second_pass",
            "true",
        ),
        (
            {"config": sampling_config(super_resolution=True, super_resolution_noise_level=1000)},
            "config.super_resolution.noise_level",
            "1000",
        ),
        (
            {"config": sampling_config(super_resolution=True, super_resolution_steps=0)},
            "config.super_resolution.steps",
            "0",
        ),
        (
            {"config": sampling_config(super_resolution=True, super_resolution_width=0)},
            "config.super_resolution.width",
            "0",
        ),
        (
            {"tuning_config": tuning_config(super_resolution_updates=8)},
            "tuning_config.super_resolution_updates",
            "8",
        ),
        (
            {"tuning_config": tuning_config(super_resolution_2_updates=8)},
            "tuning_config.super_resolution_2_updates",
            "8",
        ),
        ({"config": sampling_config(automatic=True, strength=0.5)}, "config.strength", "0.5"),
        ({"config": sampling_config(automatic=True, guidance_scale=5)}, "config.guidance_scale", "5.0"),
        ({"config": sampling_config(automatic=True, clip_filter=True)}, "config.clip_filter", "true"),
        ({"config": sampling_config(clip_filter=True, resamples=9)}, "config.clip_filter.resamples", "9"),
        ({"config": sampling_config(method="sdedit", repeats=0)}, "config.repeats", "0"),
        ({"config": sampling_config(method="sdedit", repeats=11)}, "config.repeats", "11"),
        ({"config": sampling_config(mask_source=6)}, "config.mask.source", "6"),
        ({"config": sampling_config(mask_source="given")}, "mask", "unset"),
        ({"config": sampling_config(mask_source="diffedit"), "mask": picture("white")}, "mask", f"{len(WHITE)} bytes"),
        (
            {"config": sampling_config(mask_source="difference"), "mask": picture("white")},
            "mask",
            f"{len(WHITE)} bytes",
        ),
        ({"config": sampling_config(mask_source="word")}, "config.mask.text", "unset"),
        ({"config": sampling_config(mask_source="attention", mask_text=" ")}, "config.mask.text", "blank"),
        ({"config": sampling_config(mask_text="the, a")}, "config.mask.text", "the, a"),
        ({"config": sampling_config(mask_text="x" * 2001)}, "config.mask.text", "2001 characters"),
        ({"config": sampling_config(mask_text="cat"), "mask": picture("white")}, "config.mask.text", "cat"),
        ({"config": sampling_config(mask_text="cat", mask_source="diffedit")}, "config.mask.text", "cat"),
        ({"config": sampling_config(inverted=True)}, "config.inverted", "true"),
        (
            {"config": sampling_config(inverted=True, mask_text="cat", mask_source="attention")},
            "config.inverted",
            "true",
        ),
        ({"config": sampling_config(inverted=True, mask_text="cat", scheduler="euler")}, "config.inverted", "true"),
        ({"config": sampling_config(inverted=True, mask_text="cat", clip_filter=True)}, "config.inverted", "true"),
        (
            {"config": sampling_config(method="sdedit", inverted=True, mask_text="cat", repeats=2)},
            "config.inverted",
            "true",
        ),
        ({"config": sampling_config(inverted=True, mask_text="cat"), "seeds": [1, 2]}, "seeds", "2 seeds"),
        ({"config": sampling_config(only_masked=True)}, "config.mask.only_masked", "true"),
        ({"config": sampling_config(mask_keeps=True, mask_source="diffedit")}, "config.mask.keeps", "true"),
        ({"config": sampling_config(mask_blur=1)}, "config.mask.blur", "1.0"),
        ({"config": sampling_config(mask_blur=257), "mask": picture("white")}, "config.mask.blur", "257.0"),
        ({"config": sampling_config(mask_padding=4), "mask": picture("white")}, "config.mask.padding", "4"),
        (
            {"config": sampling_config(mask_padding=-1, only_masked=True), "mask": picture("white")},
            "config.mask.padding",
            "-1",
        ),
        ({"mask": picture("black")}, "mask", "all black"),
        ({"mask": picture("white"), "config": sampling_config(mask_keeps=True)}, "mask", "all white"),
        ({"mask": picture("white", (30, 40))}, "mask", "30x40 pixels"),
        ({"seeds": range(9)}, "seeds", "9 seeds"),
        ({"seeds": [1, -1]}, "seeds[1]", "-1"),
        ({"preview_every": -1}, "preview_every", "-1"),
        ({"tuning_config": tuning_config(mode=4)}, "tuning_config.mode", "4"),
        ({"tuning_config": tuning_config(method=6)}, "tuning_config.method", "6"),
        ({"tuning_config": tuning_config(seed=1), "config": sampling_config(method="sdedit")}, "tuning_config", "set"),
        ({"parent": "default"}, "parent", "default"),
        ({"parent": "tenants/Acme"}, "parent", "tenants/Acme"),
        ({"image_data": b""}, "image_data", "an empty file"),
        ({"tuning": "tunings/x"}, "tuning", "tunings/x"),
        ({"tuning": "tenants/default/images/t-1234"}, "tuning", "tenants/default/images/t-1234"),
        ({"image": "tenants/default/images/xyz"}, "image", "tenants/default/images/xyz"),
        ({"image": "tenants/default/images/" + "a" * 64 + "\n"}, "image", "tenants/default/images/" + "a" * 56 + "…"),
    ],
)
async def test_bad_edit_is_refused(world: World, change: dict[str, Any], field: str, value: str) -> None:
    """One bad field among good ones is refused before anything is stored, tuned or sampled."""
    request = {"prompt": "a dog", "image_data": picture(), **change}
    if "tuning" in change or "image" in change:
        del request["image_data"]
    reason = "IMAGE_UNDECODABLE" if field == "image_data" else "INVALID_FIELD"
    error = await refused(world.edits.Edit(EditRequest(**request)), INVALID, reason, field)
    assert error.metadata["value"] == value
    await lives(world)


async def test_strong_guidance_of_pixels_needs_dynamic_thresholding(world: World) -> None:
    """32 without it is refused, and taken with it, and on latents, which never have it (K4)."""
    world.sampler.base_model = CASCADE
    wild = sampling_config(super_resolution=True, super_resolution_guidance_scale=32, dynamic_thresholding=False)
    tame = sampling_config(super_resolution=True, super_resolution_guidance_scale=32, guidance_scale=32)

    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=wild))
    error = await refused(call, INVALID, "INVALID_FIELD", "config.super_resolution.guidance_scale")
    assert error.metadata["value"] == "32.0" and "dynamic_thresholding" in error.metadata["remedy"]
    await lives(world)
    events = [event async for event in world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=tame))]
    assert events[-1].WhichOneof("event") == "done"


@pytest.mark.parametrize(
    ("stage", "too_small", "needed", "enough"),
    [
        ("super_resolution", (64, 100), "82x128", (90, 128)),
        ("super_resolution_2", (90, 128), "360x512", (360, 512)),
    ],
)
async def test_a_stage_is_tuned_on_pictures_of_its_size_alone(
    world: World, stage: str, too_small: tuple[int, int], needed: str, enough: tuple[int, int]
) -> None:
    """A smaller one has no detail to show: it is refused with the size that is needed, and nothing is tuned."""
    world.tuner.base_model = CASCADE
    await world.known()
    small, large = await world.upload(picture(size=too_small)), await world.upload(picture(size=enough))
    config = tuning_config(**{f"{stage}_updates": 8})

    call = world.tunings.CreateTuning(CreateTuningRequest(image=small.name, config=config))
    error = await refused(call, INVALID, "INVALID_FIELD", "image")
    assert error.metadata["value"] == f"{too_small[0]}x{too_small[1]} pixels"
    assert f"{stage}_updates needs a picture of {needed} pixels or more" in error.metadata["remedy"]
    tuning = await world.tunings.CreateTuning(CreateTuningRequest(image=large.name, config=config))
    assert getattr(tuning.config, f"{stage}_updates") == 8


@pytest.mark.parametrize(("width", "is_made"), [(128, True), (512, True), (511, False), (256, False)])
async def test_a_picture_is_as_wide_as_one_of_the_stages_makes_it(world: World, width: int, is_made: bool) -> None:
    """Another width is refused with those that the base model has, before anything is tuned."""
    world.tuner.base_model = world.sampler.base_model = CASCADE
    await world.known()
    config = sampling_config(super_resolution=True, super_resolution_width=width)
    request = EditRequest(prompt="a dog", image_data=picture(), config=config, validate_only=True)
    call = world.edits.Edit(request, timeout=20)

    if is_made:
        first, *_ = [event async for event in call]
        assert first.HasField("accepted")
        return
    error = await refused(call, INVALID, "INVALID_FIELD", "config.super_resolution.width")
    assert error.metadata["value"] == str(width) and error.metadata["remedy"].startswith("give 128 or 512")
    await lives(world)


def beside(**options: Any) -> SamplingConfig:
    """A config of Prompt-to-Prompt with a base prompt of two words."""
    return sampling_config(**{"method": "prompt_to_prompt", "base_prompt": "a cat", **options})


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (beside(base_prompt=""), "config.base_prompt", "unset"),
        (beside(base_prompt=" "), "config.base_prompt", "blank"),
        (beside(scheduler="euler"), "config.scheduler", "euler"),
        (beside(cross_replace=1.1), "config.prompt_to_prompt.cross_replace", "1.1"),
        (beside(self_replace=math.nan), "config.prompt_to_prompt.self_replace", "nan"),
        (beside(inversion=4), "config.prompt_to_prompt.inversion", "4"),
        (beside(alignment=3), "config.prompt_to_prompt.alignment", "3"),
        (beside(alignment="replace", base_prompt="a red cat"), "config.prompt_to_prompt.alignment", "replace"),
        (beside(word_weights={"dog": 11}), 'config.prompt_to_prompt.word_weights["dog"]', "11.0"),
        (beside(word_weights={"dog": 2, "cat": 2}), 'config.prompt_to_prompt.word_weights["cat"]', "cat"),
        (beside(word_weights={"": 2}), 'config.prompt_to_prompt.word_weights[""]', ""),
        (beside(word_weights={f"w{n}": 1 for n in range(17)}), "config.prompt_to_prompt.word_weights", "17 weights"),
        (beside(blend_words=["cow"]), "config.prompt_to_prompt.blend_words[0]", "cow"),
        (beside(blend_words=["cat", " "]), "config.prompt_to_prompt.blend_words[1]", " "),
        (beside(blend_words=["x" * 65]), "config.prompt_to_prompt.blend_words[0]", "65 characters"),
        (beside(prompt_guidance_scale=2), "config.prompt_guidance_scale", "2.0"),
        (beside(clip_filter=True, resamples=2), "config.clip_filter.resamples", "2"),
        (beside(guidance_sigma_low=0.5), "config.guidance_interval.low", "0.5"),
        (beside(guidance_sigma_high=5), "config.guidance_interval.high", "5.0"),
        (beside(inverted=True, mask_text="cat"), "config.inverted", "true"),
        (beside(repeats=2), "config.repeats", "2"),
        (beside(eta=0.5), "config.eta", "0.5"),
        (sampling_config(cross_replace=0.5), "config.prompt_to_prompt.cross_replace", "0.5"),
        (sampling_config(method="sdedit", self_replace=0.0), "config.prompt_to_prompt.self_replace", "0.0"),
        (sampling_config(method="imagic", inversion="ddim"), "config.prompt_to_prompt.inversion", "ddim"),
        (sampling_config(alignment="refine"), "config.prompt_to_prompt.alignment", "refine"),
        (sampling_config(word_weights={"dog": 2}), "config.prompt_to_prompt.word_weights", "1 weight"),
        (sampling_config(blend_words=["dog", "cat"]), "config.prompt_to_prompt.blend_words", "2 words"),
        (SamplingConfig.FromString(b"\xf8\x3f\x01"), "config", "field number 1023"),
        (SamplingConfig.FromString(b"\x62\x03\xf8\x3f\x01"), "config.mask", "field number 1023"),
    ],
)
async def test_bad_prompt_to_prompt_is_refused(world: World, config: SamplingConfig, field: str, value: str) -> None:
    """Options out of range, of other methods, with the wrong words or unknown name field, value and remedy (P8)."""
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=config))
    error = await refused(call, INVALID, "INVALID_FIELD", field)
    assert error.metadata["value"] == value and error.metadata["remedy"]
    assert not world.sampler.requests


@pytest.mark.parametrize(
    ("change", "begin"),
    [
        ({"prompt": "x" * 2001}, "prompt has 2001 characters: describe"),
        ({"config": sampling_config(base_prompt="a cat")}, "config.base_prompt has 5 characters: set"),
        ({"config": sampling_config(negative_prompt="x" * 2001)}, "config.negative_prompt has 2001 characters: use"),
        ({"config": sampling_config(mask_text="cat"), "mask": WHITE}, "config.mask.text is 'cat': leave it unset"),
        (
            {"config": sampling_config(mask_text="cat " * 99), "mask": WHITE},
            "config.mask.text has 396 characters: leave",
        ),
        (
            {"config": sampling_config(inverted=True, mask_text="cat"), "seeds": [1, 2]},
            "seeds has 2 seeds: give one",
        ),
        ({"mask": bytes((768 << 10) + 1)}, "mask has 786433 bytes: send"),
        ({"config": sampling_config(blend_words=["dog"])}, "config.prompt_to_prompt.blend_words has 1 word: leave"),
        ({"tuning_config": tuning_config(class_noun="x" * 65)}, "tuning_config.class_noun has 65 characters: leave"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
async def test_a_length_in_place_of_a_value_has_no_quotes(world: World, change: dict[str, Any], begin: str) -> None:
    """A refusal repeats a value that is short and no prompt; of another it tells the length, not as if that were it."""
    call = world.edits.Edit(EditRequest(**{"prompt": "a dog", "image_data": picture(), **change}))
    error = await refused(call, INVALID, "UPLOAD_TOO_LARGE" if begin.startswith("mask has") else "INVALID_FIELD")
    assert error.message.startswith(begin)


NUL = "a\0dog"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": NUL}, "prompt"),
        ({"parent": "tenants/\0"}, "parent"),
        ({"config": sampling_config(negative_prompt=NUL)}, "config.negative_prompt"),
        ({"config": sampling_config(base_prompt=NUL, prompt_guidance_scale=1)}, "config.base_prompt"),
        ({"config": sampling_config(mask_text=NUL)}, "config.mask.text"),
        ({"config": beside(word_weights={NUL: 2})}, 'config.prompt_to_prompt.word_weights["a\\u0000dog"]'),
        ({"config": beside(blend_words=["dog", NUL])}, "config.prompt_to_prompt.blend_words[1]"),
        ({"config": sampling_config(method="imagic"), "prompt": NUL}, "prompt"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
async def test_a_control_character_is_refused(world: World, change: dict[str, Any], field: str) -> None:
    """No text of an edit may have one: it is named with its place, and what may be a prompt is not repeated."""
    call = world.edits.Edit(EditRequest(**{"prompt": "a dog", "image_data": picture(), **change}))
    error = await refused(call, INVALID, "INVALID_FIELD", field)
    place = 9 if field == "parent" else 2
    assert error.message == f"{field} has U+0000 as character {place}: leave it out: it is a control character"
    await lives(world)


async def test_a_control_character_is_refused_beside_edits(world: World) -> None:
    """Neither a tuning nor a comparison nor a label takes one; lines and tabs may be in a prompt."""
    image = (await world.upload(picture())).name
    dreambooth = tuning_config(method="dreambooth", class_noun="a\x1bdog")
    imagic = tuning_config(method="imagic", prompt="a\x7fdog")
    for call, field in (
        (world.tunings.CreateTuning(CreateTuningRequest(image=image, config=imagic)), "config.prompt"),
        (world.tunings.CreateTuning(CreateTuningRequest(image=image, config=dreambooth)), "config.class_noun"),
        (world.tunings.CreateTuning(CreateTuningRequest(image=image, labels={"k": "\x85"})), 'labels["k"]'),
        (world.tunings.CreateTuning(CreateTuningRequest(image=image, labels={"\0": ""})), 'labels["\\u0000"]'),
        (world.edits.Compare(CompareRequest(image=image, prompt=NUL)), "prompt"),
        (world.edits.Compare(CompareRequest(image=image, prompt="a dog", base_prompt=NUL)), "base_prompt"),
    ):
        await refused(call, INVALID, "INVALID_FIELD", field)
    assert not world.tuner.requests
    lines = EditRequest(image=image, prompt="a dog\r\n\ton a beach", config=sampling_config(method="sdedit"))
    assert [event async for event in world.edits.Edit(lines)][-1].HasField("done")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (
            {"config": sampling_config(guidance_sigma_low=3, guidance_sigma_high=2)},
            "it must be above config.guidance_interval.low, 3.0; for no guidance at all set config.guidance_scale to 1",
        ),
        (
            {"config": sampling_config(mask_source="given")},
            "config.mask.source given needs the PNG of a mask; send one, or choose another source",
        ),
        (
            {"config": sampling_config(mask_padding=4), "mask": WHITE},
            "leave it unset, or set config.mask.only_masked, too",
        ),
        (
            {"config": sampling_config(base_prompt="a cat")},
            "set config.prompt_guidance_scale or config.mask.source diffedit, which read it, or leave it unset",
        ),
        (
            {"config": beside(inversion="null_text", negative_prompt="snow")},
            "leave it unset with config.prompt_to_prompt.inversion null_text: its embeddings stand in that one's place",
        ),
        (
            {"config": sampling_config(fast=True)},
            "leave it unset and give config.num_inference_steps: this base model's preset has no fast_steps",
        ),
        (
            {"config": sampling_config(fast_lora=True)},
            "leave it unset: this base model has no fast LoRA (`unitune import --fast-lora`)",
        ),
        (
            {"config": sampling_config(scheduler="tcd", timestep_spacing="leading")},
            "leave it unset: tcd has timesteps of its own",
        ),
        (
            {"config": sampling_config(super_resolution=True)},
            "leave it unset: this base model has no super-resolution (a super_resolution folder)",
        ),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
async def test_a_remedy_names_options_by_their_paths(world: World, change: dict[str, Any], remedy: str) -> None:
    """As the refused field is named, so is every other one: by its place in the request."""
    call = world.edits.Edit(EditRequest(**{"prompt": "a dog", "image_data": picture(), **change}))
    error = await refused(call, INVALID, "INVALID_FIELD")
    assert remedy == error.metadata["remedy"]


async def test_a_remedy_of_a_comparison_names_the_entry(world: World) -> None:
    """The path of an option of one method has the method's place."""
    config = sampling_config(guidance_sigma_low=3, guidance_sigma_high=2)
    entry = CompareRequest.Entry(method=SamplingConfig.METHOD_SDEDIT, config=config)
    call = world.edits.Compare(CompareRequest(image_data=picture(), prompt="a dog", methods=[entry]))
    error = await refused(call, INVALID, "INVALID_FIELD", "methods[0].config.guidance_interval.high")
    assert error.metadata["remedy"].startswith("it must be above methods[0].config.guidance_interval.low, 3.0; ")
    long = CompareRequest(image_data=picture(), prompt="a dog", base_prompt="x" * 2001)
    assert (await refused(world.edits.Compare(long), INVALID, "INVALID_FIELD", "base_prompt")).message.startswith(
        "base_prompt has 2001 characters: "
    )


async def test_prompt_to_prompt_makes_no_tuning(world: World) -> None:
    """It edits a picture at once, and takes no settings of a tuning."""
    call = world.edits.Edit(
        EditRequest(image_data=picture(), prompt="a dog", config=beside(), tuning_config=tuning_config(seed=1))
    )
    error = await refused(call, INVALID, "INVALID_FIELD", "tuning_config")
    assert "prompt_to_prompt makes no tuning" in error.metadata["remedy"]
    events = [
        event async for event in world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=beside()))
    ]
    assert events[-1].HasField("done") and not world.tuner.requests
    assert world.sampler.requests[0].config.base_prompt == "a cat"


async def test_edit_needs_a_target(world: World) -> None:
    """An edit of nothing is refused, and so are two configs for one tuning."""
    await refused(world.edits.Edit(EditRequest(prompt="a dog")), INVALID, "INVALID_FIELD", "target")
    name = "tenants/default/tunings/t-1234"
    call = world.edits.Edit(EditRequest(prompt="a dog", tuning=name, tuning_config=tuning_config(seed=1)))
    await refused(call, INVALID, "INVALID_FIELD", "tuning_config")
    await lives(world)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (tuning_config(method=6), "config.method"),
        (tuning_config(mode=4), "config.mode"),
        (tuning_config(updates=-1), "config.updates"),
        (tuning_config(updates=5001), "config.updates"),
        (tuning_config(batch=0), "config.batch"),
        (tuning_config(batch=65), "config.batch"),
        (tuning_config(learning_rate=0), "config.learning_rate"),
        (tuning_config(learning_rate=0.11), "config.learning_rate"),
        (tuning_config(learning_rate=math.nan), "config.learning_rate"),
        (tuning_config(rare_tokens="x" * 33), "config.rare_tokens"),
        (tuning_config(rare_tokens="a\nb"), "config.rare_tokens"),
        (tuning_config(rare_tokens=" "), "config.rare_tokens"),
        (tuning_config(seed=-1), "config.seed"),
        (tuning_config(stop_loss_ratio=1.1), "config.stop_loss_ratio"),
        (tuning_config(stop_loss_ratio=math.nan), "config.stop_loss_ratio"),
        (tuning_config(method="dreambooth", class_noun="cat", stop_loss_ratio=0.5), "config.stop_loss_ratio"),
    ],
)
async def test_bad_tuning_config_is_refused(world: World, config: TuningConfig, field: str) -> None:
    """Every field of a TuningConfig has its range."""
    request = CreateTuningRequest(image="tenants/default/images/" + "a" * 64, config=config)
    await refused(world.tunings.CreateTuning(request), INVALID, "INVALID_FIELD", field)
    await lives(world)


async def test_bad_tuning_request_is_refused(world: World) -> None:
    """Names, labels, request ids, page sizes, states and times that are out of form."""
    image = "tenants/default/images/" + "a" * 64
    tuning = "tenants/default/tunings/t-1234"
    past = Timestamp(seconds=int(time.time()) - 1)
    many = {str(number): "" for number in range(17)}
    create, update = world.tunings.CreateTuning, world.tunings.UpdateTuning
    for call, field in (
        (create(CreateTuningRequest()), "image"),
        (create(CreateTuningRequest(image=image, request_id="again")), "request_id"),
        (create(CreateTuningRequest(image=image, labels=many)), "labels"),
        (create(CreateTuningRequest(image=image, labels={"k": "v" * 64})), 'labels["k"]'),
        (create(CreateTuningRequest(image=image, labels={"": "v"})), "labels"),
        (create(CreateTuningRequest(image=image, parent="tenants/")), "parent"),
        (world.tunings.GetTuning(GetTuningRequest()), "name"),
        (world.tunings.GetTuning(GetTuningRequest(name=tuning + "/x")), "name"),
        (world.tunings.GetTuning(GetTuningRequest(name="tenants/default/tunings/../../etc/passwd")), "name"),
        (world.tunings.WatchTuning(WatchTuningRequest(name="x")), "name"),
        (world.tunings.DeleteTuning(DeleteTuningRequest(name="x", allow_missing=True)), "name"),
        (world.tunings.ListTunings(ListTuningsRequest(page_size=-1)), "page_size"),
        (world.tunings.ListTunings(ListTuningsRequest(state=77)), "state"),
        (world.tunings.ListTunings(ListTuningsRequest(parent="tenants/a b")), "parent"),
        (update(UpdateTuningRequest()), "tuning.name"),
        (update(UpdateTuningRequest(tuning=Tuning(name=tuning, expire_time=past))), "tuning.expire_time"),
        (world.edits.GetEdit(GetEditRequest(name="x")), "name"),
        (world.edits.CancelEdit(CancelEditRequest(name=tuning)), "name"),
    ):
        await refused(call, INVALID, "INVALID_FIELD", field)
    await lives(world)


async def test_what_does_not_exist_is_not_found(world: World) -> None:
    """Well-formed names of nothing answer NOT_FOUND with their own reason."""
    image, tuning = "tenants/default/images/" + "a" * 64, "tenants/default/tunings/t-1234"
    edit = "tenants/default/edits/e-1234"
    for call, reason in (
        (world.tunings.CreateTuning(CreateTuningRequest(image=image)), "IMAGE_NOT_FOUND"),
        (world.edits.Edit(EditRequest(image=image, prompt="a dog")), "IMAGE_NOT_FOUND"),
        (world.edits.Edit(EditRequest(tuning=tuning, prompt="a dog")), "TUNING_NOT_FOUND"),
        (world.tunings.GetTuning(GetTuningRequest(name=tuning)), "TUNING_NOT_FOUND"),
        (world.tunings.WatchTuning(WatchTuningRequest(name=tuning)), "TUNING_NOT_FOUND"),
        (world.tunings.UpdateTuning(UpdateTuningRequest(tuning=Tuning(name=tuning))), "TUNING_NOT_FOUND"),
        (world.edits.GetEdit(GetEditRequest(name=edit)), "EDIT_NOT_FOUND"),
        (world.edits.CancelEdit(CancelEditRequest(name=edit)), "EDIT_NOT_FOUND"),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND, reason)
    await lives(world)


async def test_refused_prompt_is_not_repeated(world: World) -> None:
    """Not even a refused prompt appears in an error."""
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="secret " * 1000))
    error = await refused(call, INVALID, "INVALID_FIELD", "prompt")
    assert "secret" not in str(error) + str(error.metadata)


async def test_bad_input_is_refused_without_tuner_and_sampler(world: World) -> None:
    """What is wrong with a request is said even while nothing behind the gateway answers."""
    await world.tuner_server.stop()
    await world.sampler_server.stop()
    call = world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=sampling_config(strength=2)))
    await refused(call, INVALID, "INVALID_FIELD", "config.strength")


async def test_server_info_needs_nobody(world: World) -> None:
    """A gateway that has seen neither tuner nor sampler tells at once what it knows itself."""
    await world.close()
    await world.tuner_server.stop()
    await world.sampler_server.stop()
    world.config = replace(world.config, state=world.folder / "empty.sqlite")
    await world.open()
    info = await world.info.GetServerInfo(GetServerInfoRequest(), timeout=2)
    assert info.limits.seeds == 8 and not info.HasField("base_model")


async def test_server_info_never_waits(world: World) -> None:
    """Version, limits and methods are told at once; the base model as soon as somebody has told it."""
    info = await world.info.GetServerInfo(GetServerInfoRequest(), timeout=2)
    assert info.limits.upload_bytes == 16 << 20 and info.limits.upload_pixels == 64_000_000
    assert info.limits.chunk_bytes == 256 << 10 and info.limits.prompt_characters == 2000 and info.limits.seeds == 8
    assert list(info.methods) == SamplingConfig.Method.values()[1:]
    assert list(info.schedulers) == SamplingConfig.Scheduler.values()[1:]
    assert info.version
    await world.tune()
    info = await world.info.GetServerInfo(GetServerInfoRequest(), timeout=2)
    assert info.base_model.name == "tiny" and info.tuning_defaults.updates == 5
