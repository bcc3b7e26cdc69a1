"""A picture through gateway, tuner and sampler: real processes, a real base model of another shape than stickerbook."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.picture_files import png_header
from tests.tiny_model import IMAGE_SIDE
from unitune_client import (
    Client,
    EditAccepted,
    EditDone,
    EditedImage,
    EditLoading,
    EditStep,
    FailedPrecondition,
    InvalidArgument,
    InvalidField,
    NotFound,
    TuningReady,
)
from unitune_client.local.services import LocalServices

SIZE = (60, 44)  # width and height of the test picture; the model works at 48x48


@pytest.fixture(scope="module")
def picture() -> bytes:
    """A PNG of smooth random colours."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(SIZE, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def pixels(image: EditedImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.png)))


def test_one_call_tunes_and_edits_in_the_stated_order(client: Client, picture: bytes) -> None:
    """An edit of a new picture streams accepted, the tuning, loading, the steps, the images and done, in this order."""
    events = list(
        client.edit(picture, "a dog on the beach", updates=3, strength=0.5, num_inference_steps=8, seeds=[4, 5])
    )

    kinds = [type(event) for event in events]
    assert kinds[0] is EditAccepted
    assert kinds.index(TuningReady) < kinds.index(EditLoading) < kinds.index(EditStep) < kinds.index(EditedImage)
    assert kinds[-1] is EditDone and kinds.count(EditDone) == 1
    images = [event for event in events if isinstance(event, EditedImage)]
    assert [image.seed for image in images] == [4, 5]
    assert [Image.open(io.BytesIO(image.png)).size for image in images] == [SIZE, SIZE]
    assert not np.array_equal(pixels(images[0]), pixels(images[1]))
    loading = next(event for event in events if isinstance(event, EditLoading))
    assert not loading.warm and loading.refit_s > 0
    last_step = [event for event in events if isinstance(event, EditStep)][-1]
    assert (last_step.index, last_step.total) == (3, 4)


@pytest.mark.parametrize(
    ("size", "sampled_at"), [((44, 66), (40, 56)), ((75, 50), (56, 40)), ((160, 40), (72, 32)), ((50, 50), (48, 48))]
)
def test_photographs_keep_their_shape(client: Client, size: tuple[int, int], sampled_at: tuple[int, int]) -> None:
    """A portrait, a landscape, a panorama and a square are tuned on and sampled at a size of their own aspect, and come
    back in their own size; only the panorama is too long, which is said (M24)."""
    rng = np.random.default_rng(size[0])
    file = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    result = client.edit_to_end(file.getvalue(), "a dog on the beach", updates=1, strength=0.5, num_inference_steps=4)

    (image,) = result.images
    assert size == Image.open(io.BytesIO(image.png)).size
    assert sampled_at == (image.working_width, image.working_height)
    assert [size == (160, 40)] == list({any("4.0 times as long" in warning for warning in result.warnings)})


def test_one_tuning_serves_many_prompts(client: Client, picture: bytes) -> None:
    """U10: two prompts never touch the tuner again, leave the weights' digest as it is, and find the engine warm."""
    tuning = client.tune(picture, updates=3)
    first = client.edit_to_end(tuning, "a cat in the snow", num_inference_steps=4)
    events = list(client.edit(tuning, "a cow at night", num_inference_steps=4))
    again = client.tune(picture, updates=3)

    assert (again.name, again.weights, again.end_time) == (tuning.name, tuning.weights, tuning.end_time)
    assert first.timings.tune_s == 0
    assert next(event for event in events if isinstance(event, EditLoading)).warm


def test_a_fast_edit_runs_the_base_models_fast_steps(client: Client, picture: bytes) -> None:
    """So many steps run, of any tuning, with the base model's fast LoRA as that is sampled; the same number asked for
    gives the same picture; both at once are refused."""
    tuning = client.tune(picture, updates=3)
    events = list(client.edit(tuning, "a cat", fast=True, strength=1.0))
    asked = client.edit_to_end(tuning, "a cat", fast_lora=True, num_inference_steps=3, strength=1.0)
    plain = client.edit_to_end(
        tuning, "a cat", num_inference_steps=3, strength=1.0, scheduler="lcm", guidance_scale=1.0
    )

    config = events[0].config
    assert (True, "lcm", 1.0) == (config.fast_lora, config.scheduler, config.guidance_scale)
    assert "lcm" == client.server_info().base_model.fast_lora
    assert not np.array_equal(pixels(plain.images[0]), pixels(asked.images[0]))
    assert (50, 3) == (client.server_info().sampling_defaults.num_inference_steps, events[0].config.num_inference_steps)
    last_step = [event for event in events if isinstance(event, EditStep)][-1]
    assert (last_step.index, last_step.total) == (2, 3)
    assert [event.png for event in events if isinstance(event, EditedImage)] == [asked.images[0].png]
    assert next(event for event in events if isinstance(event, EditLoading)).probe_ratio >= 0
    with pytest.raises(InvalidField) as refused:
        client.edit_to_end(tuning, "a cat", fast=True, num_inference_steps=3)
    assert refused.value.field == "config.num_inference_steps"


def test_a_tuning_of_no_updates_is_the_base_model(client: Client, picture: bytes) -> None:
    """UniTune after zero updates gives bit for bit the picture of SDEdit with the same words; so with the fast LoRA."""
    settings = {"strength": 0.7, "num_inference_steps": 10, "guidance_scale": 3.0, "seeds": [9], "omit_metadata": True}
    tuning = client.tune(picture, updates=0, rare_tokens="zqx")

    tuned = client.edit_to_end(tuning, "a dog", **settings)
    untuned = client.edit_to_end(picture, "zqx a dog", method="sdedit", **settings)
    few = {"fast_lora": True, "strength": 0.75, "seeds": [9], "omit_metadata": True}
    fast = [
        client.edit_to_end(tuning, "a dog", **few),
        client.edit_to_end(picture, "zqx a dog", method="sdedit", **few),
    ]

    assert tuned.images[0].png == untuned.images[0].png
    assert untuned.tuning == ""
    assert fast[0].images[0].png == fast[1].images[0].png != tuned.images[0].png


def test_tuning_changes_the_picture_and_going_back_changes_it_back(client: Client, picture: bytes) -> None:
    """Refits A, B, A: the same seed gives picture A again, bit for bit, and B is another picture."""
    settings = {"strength": 0.8, "num_inference_steps": 6, "seeds": [1]}
    a = client.tune(picture, updates=6, learning_rate=1e-3)
    b = client.tune(picture, updates=6, learning_rate=1e-3, tuning_seed=1)

    first, other, back = (client.edit_to_end(tuning, "a cat", **settings).images[0].png for tuning in (a, b, a))

    assert first == back
    assert first != other


def test_strength_that_leaves_no_step_gives_the_autoencoders_picture(client: Client, picture: bytes) -> None:
    """Strength 0 answers with a picture, the same for every seed and prompt, and says that nothing ran."""
    settings = {"method": "sdedit", "strength": 0.0, "omit_metadata": True}
    one = client.edit_to_end(picture, "a cat", seeds=[1], **settings)
    two = client.edit_to_end(picture, "a dog", seeds=[2], **settings)

    assert one.effective_strength == 0
    assert one.images[0].png == two.images[0].png


def test_a_mask_keeps_its_pixels_through_all_services(client: Client, picture: bytes) -> None:
    """Black pixels of a mask are the picture's own, tuned or not, mixed with the base model or not, cropped or not."""
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[10:30, 20:40] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    kept, whole = mask == 0, np.asarray(Image.open(io.BytesIO(picture)))
    settings = {"strength": 0.8, "num_inference_steps": 6, "mask": file.getvalue()}
    tuning = client.tune(picture, updates=3)

    for target, options in (
        (tuning, {}),
        (tuning, {"unconditional_model": "base", "base_mixture": 0.4}),
        (tuning, {"prompt_guidance_scale": 2.0, "base_prompt": "a cow", "negative_prompt": "snow"}),
        (tuning, {"only_masked": True, "mask_padding": 4}),
        (picture, {"method": "sdedit", "repeats": 2}),
    ):
        result = client.edit_to_end(target, "a cat", **settings, **options)
        edited = pixels(result.images[0])
        np.testing.assert_array_equal(edited[kept], whole[kept])
        assert (edited[~kept] != whole[~kept]).any()
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.images[0].mask))), mask)
    estimated = client.edit_to_end(tuning, "a cat in the snow", mask_source="diffedit", base_prompt="a dog")
    outside = np.asarray(Image.open(io.BytesIO(estimated.images[0].mask))) == 0
    np.testing.assert_array_equal(pixels(estimated.images[0])[outside], whole[outside])
    assert 0 < outside.mean() < 1


def test_a_cascade_enlarges_through_all_services(client: Client, picture: bytes) -> None:
    """All steps are told, kept pixels of a large picture are exact, tuned super-resolution makes another picture
    and zero updates of it the same (K3)."""
    file, mask = io.BytesIO(), io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((120, 88), Image.Resampling.BICUBIC).save(file, "PNG")
    Image.fromarray(np.pad(np.full((40, 40), 255, np.uint8), ((20, 28), (40, 40)))).save(mask, "PNG")
    large, kept = file.getvalue(), np.asarray(Image.open(mask)) == 0
    settings = {"num_inference_steps": 4, "strength": 0.5, "super_resolution": True, "super_resolution_steps": 3}

    small = client.edit_to_end(picture, "a cat", method="sdedit", **settings)
    assert pixels(small.images[0]).shape == (80, 109, 3) and small.timings.super_resolution_s > 0
    tunings = [client.tune(large, updates=2, super_resolution_updates=updates) for updates in (0, 4)]
    events = list(client.edit(tunings[1], "a cat", mask=mask.getvalue(), **settings))
    steps = [event for event in events if isinstance(event, EditStep)]
    assert (steps[-1].index, steps[-1].total) == (4, 5)
    tuned = pixels(next(event for event in events if isinstance(event, EditedImage)))
    base, again = (
        pixels(client.edit_to_end(tunings[0], "a cat", mask=mask.getvalue(), **settings).images[0]) for _ in range(2)
    )

    np.testing.assert_array_equal(tuned[kept], np.asarray(Image.open(file))[kept])
    assert np.array_equal(base, again) and (base[~kept] != tuned[~kept]).any()


def test_the_second_stage_enlarges_further_through_all_services(client: Client, picture: bytes) -> None:
    """`super_resolution_width` of the second stage makes a picture of its size, by its tuning where it has one."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((220, 160), Image.Resampling.BICUBIC).save(file, "PNG")
    width = client.server_info().base_model.super_resolution_2_width
    settings = {"num_inference_steps": 4, "strength": 0.5, "super_resolution": True, "super_resolution_width": width}

    small = client.edit_to_end(picture, "a cat", method="sdedit", **settings)
    assert (width, pixels(small.images[0]).shape) == (192, (160, 218, 3))
    tunings = [client.tune(file.getvalue(), updates=2, super_resolution_2_updates=updates) for updates in (0, 4)]
    assert [tuning.config.total_updates for tuning in tunings] == [2, 6]
    plain, tuned = (pixels(client.edit_to_end(tuning, "a cat", **settings).images[0]) for tuning in tunings)

    assert plain.shape == tuned.shape == (160, 220, 3) and (plain != tuned).any()
    with pytest.raises(InvalidField, match="give 96 or 192"):
        client.edit_to_end(picture, "a cat", **settings | {"super_resolution_width": 1024})


def test_deleted_tunings_are_gone(client: Client, services: LocalServices, picture: bytes) -> None:
    """After a delete the weights are off the disk and an edit with the name is NOT_FOUND."""
    store = services._home.store
    tuning = client.tune(picture, updates=1, tuning_seed=77)
    before = len(list(store.rglob("*.safetensors")))
    client.delete_tuning(tuning.name)

    assert len(list(store.rglob("*.safetensors"))) == before - 1
    with pytest.raises(NotFound) as refused:
        client.edit_to_end(tuning, "a cat")
    assert refused.value.reason in {"TUNING_NOT_FOUND", "TUNING_EXPIRED"}


def test_refusals_name_the_field_and_the_services_go_on(client: Client, picture: bytes) -> None:
    """Strength 2, an unknown method and an empty prompt are each refused by name; a good edit still works."""
    for options, field in (
        ({"strength": 2.0}, "config.strength"),
        ({"method": "magic"}, "config.method"),
    ):
        with pytest.raises(InvalidField) as refused:
            client.edit_to_end(picture, "a cat", **options)
        assert refused.value.field == field
    with pytest.raises(InvalidField) as refused:
        client.edit_to_end(picture, "")
    assert refused.value.field == "prompt"

    assert client.edit_to_end(picture, "a cat", method="sdedit", num_inference_steps=2).images


def test_the_server_describes_its_base_model(client: Client) -> None:
    """Name, size and defaults are those of the folder that was given."""
    info = client.server_info()

    assert (info.base_model.width, info.base_model.height) == (IMAGE_SIDE, IMAGE_SIDE)
    assert info.tuning_defaults.updates == 128
    assert {"unitune", "sdedit"} <= set(info.methods)


def test_an_edit_before_ready_is_refused(client: Client, picture: bytes) -> None:
    """A tuning that is still at work cannot edit; cancelling it frees the tuner."""
    tuning = client.create_tuning(picture, updates=5000, tuning_seed=5)
    try:
        with pytest.raises(FailedPrecondition) as refused:
            client.edit_to_end(tuning.name, "a cat")
        assert refused.value.reason == "TUNING_NOT_READY"
    finally:
        client.cancel_tuning(tuning.name)


def test_bad_pictures_and_names_are_refused_and_leave_nothing(
    client: Client, services: LocalServices, picture: bytes
) -> None:
    """Not an image, a truncated PNG, 20,000 x 20,000 pixels, a prompt of 10,000 characters, a tuning that never was."""

    def stored() -> list[Path]:
        return sorted(path for path in services._home.store.rglob("*") if path.is_file())

    before = stored()
    for data, reason in (
        (b"not a picture", "IMAGE_UNDECODABLE"),
        (picture[: len(picture) // 2], "IMAGE_UNDECODABLE"),
        (png_header(20_000, 20_000), "IMAGE_TOO_LARGE"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            client.edit_to_end(data, "a cat")
        assert refused.value.reason == reason
        assert refused.value.metadata["value"] and refused.value.metadata["remedy"]
    with pytest.raises(InvalidField, match="10000 characters"):
        client.edit_to_end(picture, "x" * 10_000, method="sdedit")
    with pytest.raises(NotFound) as unknown:
        client.edit_to_end("tenants/default/tunings/t-never-was", "a cat")
    assert unknown.value.reason == "TUNING_NOT_FOUND"

    assert [path for path in stored() if path not in before and "images" not in path.parts] == []
    assert client.edit_to_end(picture, "a cat", method="sdedit", num_inference_steps=2).images
