"""What results say of their making, and requests that are to be validated only."""

import hashlib
import io
import json
import re
from typing import Any

import grpc
from PIL import Image

from tests.configs import entry, sampling_config, tuning_config
from tests.gateway.conftest import World, picture, refused, sha256
from unitune import __version__, png_text
from unitune.errors import InvalidField
from unitune.options import Flat
from unitune.v1.edit_pb2 import CompareRequest, EditEvent, EditRequest, GetEditRequest
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import CreateTuningRequest, ListTuningsRequest

PROMPT = "a dog, on a beach"


async def images_of(world: World, **request: Any) -> list[EditEvent.EditedImage]:
    """The images of an edit."""
    call = world.edits.Edit(EditRequest(**({"prompt": PROMPT} | request)), timeout=20)
    return [event.image async for event in call if event.HasField("image")]


def record_of(image: EditEvent.EditedImage) -> dict[str, Any]:
    """What a result says in our own form."""
    return json.loads(png_text.texts_of(image.png)["unitune"])


async def test_a_result_says_all_that_made_it(world: World) -> None:
    """Prompt, seed, the settings in force, the tuning's config and key, model, and the digest of the picture."""
    tuning = await world.tuned(picture("red"))
    (image,) = await images_of(world, tuning=tuning.name, seeds=[7], config=sampling_config(guidance_scale=9))

    assert record_of(image) == {
        "version": 1,
        "software": f"UniTune {__version__}",
        "prompt": PROMPT,
        "seed": 7,
        "method": "unitune",
        "sampling": {
            "method": "unitune",
            "scheduler": "ddim",
            "num_inference_steps": 20,
            "guidance_scale": 9,
            "strength": 0.75,
            "interpolation": 0.25,
            "prompt_guidance_scale": 0,
            "unconditional_model": "tuned",
            "base_mixture": 0,
            "mask_source": "difference",
        },
        "tuning": {
            "key": tuning.key,
            "config": {
                "method": "unitune",
                "mode": "attn_out",
                "updates": 5,
                "batch": 4,
                "learning_rate": 2e-4,
                "rare_tokens": "beikkpic",
            },
        },
        "base_model": {"name": "tiny", "digest": world.sampler.base_model.digest},
        "picture": {"sha256": sha256(picture("red"))},
    }
    text = png_text.texts_of(image.png)["unitune"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert Image.open(io.BytesIO(image.png)).getpixel((0, 0)) == (7, 7, 7)


async def test_other_programs_read_the_usual_form(world: World) -> None:
    """`parameters` is prompt, negative prompt, and a line of names and values; values with separators are quoted."""
    world.sampler.base_model = BaseModel(name="tiny, small", digest=world.tuner.base_model.digest)
    (image,) = await images_of(
        world, image_data=picture(), config=sampling_config(scheduler="dpmpp_2m", negative_prompt="fog")
    )

    digest = world.sampler.base_model.digest
    assert png_text.texts_of(image.png)["parameters"] == (
        f"{PROMPT}\nNegative prompt: fog\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 0, Size: 6x4, "
        f'Model hash: {digest[:10]}, Model: "tiny, small", Denoising strength: 0.75, Edit method: unitune, '
        f"Version: UniTune {__version__}"
    )


def parsed(parameters: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and values of a `parameters` text, read as other programs do: the last line has names and
    values, quoted like JSON where they have a separator; a line above it may begin the negative prompt."""
    *texts, last = parameters.split("\n")
    prompt, _, negative = "\n".join(texts).partition("\nNegative prompt: ")
    pairs = re.findall(r'\s*(\w[\w /-]*): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)', last)
    return prompt, negative, {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


async def test_the_usual_form_reads_back_to_the_request(world: World) -> None:
    """Prompts of several lines, with commas and colons, all values, and a name with separators and quotes (M42)."""
    name = 'tiny, "small": 1\\2'
    world.sampler.base_model = BaseModel(name=name, digest=world.tuner.base_model.digest)
    prompt, negative = "a dog, 1 year: old\nSteps: none, on a beach", "fog, rain: much\nblur"
    settings = {"scheduler": "euler", "num_inference_steps": 17, "guidance_scale": 6.25, "strength": 0.55}
    config = sampling_config(negative_prompt=negative, **settings)
    (image,) = await images_of(world, prompt=prompt, image_data=picture(), seeds=[2**40 + 1], config=config)

    assert parsed(png_text.texts_of(image.png)["parameters"]) == (
        prompt,
        negative,
        {
            "Steps": "17",
            "Sampler": "Euler",
            "CFG scale": "6.25",
            "Seed": str(2**40 + 1),
            "Size": "6x4",
            "Model hash": world.sampler.base_model.digest[:10],
            "Model": name,
            "Denoising strength": "0.55",
            "Edit method": "unitune",
            "Version": f"UniTune {__version__}",
        },
    )


async def test_a_prompt_of_any_script_is_readable(world: World) -> None:
    """Chinese comes as iTXt, which Pillow reads as it was written."""
    (image,) = await images_of(world, image_data=picture(), prompt="一只猫\n在沙滩上")

    read = Image.open(io.BytesIO(image.png))
    read.load()
    assert read.text["parameters"].startswith("一只猫\n在沙滩上\nSteps: 20, ")
    assert record_of(image)["prompt"] == "一只猫\n在沙滩上"


async def test_the_same_request_gives_the_same_bytes(world: World) -> None:
    """Again, by tuning or image, beside other seeds, in another tenant's name, and kept for GetEdit: the same file
    (M42)."""
    tuning = await world.tuned(picture("red"))
    (first,) = await images_of(world, tuning=tuning.name, seeds=[7])
    again = await images_of(world, image_data=picture("red"), seeds=[3, 7])
    (of_other,) = await images_of(world, image_data=picture("red"), seeds=[7], parent="tenants/secretive")
    call = world.edits.Edit(EditRequest(prompt=PROMPT, tuning=tuning.name, seeds=[7]))
    (name,) = [event.accepted.edit async for event in call if event.HasField("accepted")]
    kept = (await world.edits.GetEdit(GetEditRequest(name=name))).images[0]

    assert first.png == again[1].png == of_other.png == kept.png
    assert record_of(again[0])["seed"] == 3


async def test_nothing_secret_is_in_a_result(world: World) -> None:
    """No path, no tenant, no resource's name, no time and no label."""
    image = await world.upload(picture("red"), parent="tenants/secretive")
    (made,) = await images_of(world, image=image.name, mask=picture("white"), config=sampling_config(mask_blur=2))

    text = "\n".join(png_text.texts_of(made.png).values())
    assert not any(word in text for word in ("tenants", "secretive", "/", "time", str(world.folder)))


async def test_the_mask_is_named_by_its_digest(world: World) -> None:
    """The file of a given mask, and nothing for an edit without one."""
    (masked,) = await images_of(world, image_data=picture(), mask=picture("white"))
    (plain,) = await images_of(world, image_data=picture())

    assert record_of(masked)["mask"] == {"sha256": hashlib.sha256(picture("white")).hexdigest()}
    assert record_of(masked)["sampling"]["mask_source"] == "given"
    assert "mask" not in record_of(plain)


async def test_what_was_chosen_is_told_beside_what_was_asked(world: World) -> None:
    """The gate's seed and the automatic settings' point are there, and so is what to ask for to have them again."""
    world.sampler.chosen = {"seed": 1_000_010, "strength": 0.5, "guidance_scale": 4.0}
    (image,) = await images_of(world, image_data=picture(), seeds=[7], config=sampling_config(automatic=True))

    record, texts = record_of(image), png_text.texts_of(image.png)
    assert (record["seed"], record["sampled_seed"]) == (7, 1_000_010)
    assert record["chosen"] == {"strength": 0.5, "guidance_scale": 4.0}
    assert record["sampling"]["automatic"] is True and "strength" not in record["sampling"]
    assert "CFG scale: 4, Seed: 1000010, " in texts["parameters"] and "Denoising strength: 0.5, " in texts["parameters"]


async def test_further_pictures_are_named_by_their_digests(world: World) -> None:
    """Those of DreamBooth, without whom the tuning cannot be made again."""
    names = [(await world.upload(picture(colour))).name for colour in ("red", "blue")]
    request = {"image": names[0], "images": names[1:]}
    config = tuning_config(method="dreambooth", class_noun="dog")
    tuning = await world.tunings.CreateTuning(CreateTuningRequest(config=config, **request))
    await world.watch(tuning.name)
    (image,) = await images_of(world, tuning=tuning.name, prompt="a beikkpic dog")

    assert record_of(image)["tuning"]["further_pictures"] == [sha256(picture("blue"))]
    assert record_of(image)["tuning"]["config"]["class_noun"] == "dog"


async def test_metadata_can_be_left_out(world: World) -> None:
    """The file is then the sampler's own, in edits and in comparisons; otherwise both have it (M42)."""
    (plain,) = await images_of(world, image_data=picture(), omit_metadata=True)
    (with_it,) = await images_of(world, image_data=picture())
    compared = {}
    for omits in (True, False):
        entries = [entry(method) for method in ("unitune", "sdedit")]
        request = CompareRequest(prompt=PROMPT, image_data=picture(), methods=entries, omit_metadata=omits)
        results = [event.result async for event in world.edits.Compare(request) if event.HasField("result")]
        compared[omits] = [result.images[0] for result in results]

    assert png_text.texts_of(plain.png) == {}
    assert png_text.texts_of(with_it.png).keys() == {"parameters", "unitune"}
    assert [png_text.texts_of(image.png) for image in compared[True]] == [{}, {}]
    assert [record_of(image)["method"] for image in compared[False]] == ["unitune", "sdedit"]
    assert "tuning" not in record_of(compared[False][1])


async def validated(world: World, **request: Any) -> list[EditEvent]:
    """The events of a request that is validated only."""
    return [event async for event in world.edits.Edit(EditRequest(validate_only=True, **request), timeout=20)]


async def test_a_validated_request_makes_and_stores_nothing(world: World) -> None:
    """Accepted with settings and warnings, then done: no tuning, no sampling, nothing kept."""
    world.sampler.base_model = BaseModel(vocabulary=["dog", "beach"], digest=world.tuner.base_model.digest)
    stored = world.stored()
    accepted, done = await validated(world, image_data=picture(), prompt="a dog on a zebra", seeds=[3])

    assert [event.WhichOneof("event") for event in (accepted, done)] == ["accepted", "done"]
    assert (accepted.sequence, done.sequence) == (1, 2)
    assert accepted.accepted.edit == "" and list(accepted.accepted.seeds) == [3]
    assert accepted.accepted.config.num_inference_steps == 20
    assert any("zebra" in warning for warning in accepted.accepted.warnings)
    assert not world.tuner.requests and not world.sampler.requests and world.stored() == stored
    assert not (await world.tunings.ListTunings(ListTuningsRequest())).tunings


async def test_what_an_edit_is_refused_for_a_validated_one_is(world: World) -> None:
    """Settings, words, the tuner's own look at a config, the picture, the mask, and a tuner that is away."""
    invalid, imagic = grpc.StatusCode.INVALID_ARGUMENT, tuning_config(method="imagic", prompt="another")

    async def refusal(reason: str, field: str | None, code: grpc.StatusCode = invalid, **request: Any) -> None:
        ask = EditRequest(validate_only=True, **({"prompt": PROMPT, "image_data": picture()} | request))
        await refused(world.edits.Edit(ask), code, reason, field)

    await refusal("INVALID_FIELD", "prompt", prompt=" ")
    await refusal("INVALID_FIELD", "config.strength", config=sampling_config(strength=2))
    await refusal("INVALID_FIELD", "tuning_config.prompt", tuning_config=imagic)
    await refusal("IMAGE_UNDECODABLE", "image_data", image_data=b"no picture")
    await refusal("INVALID_FIELD", "mask", mask=picture("black"))
    world.sampler.tuning_refusal = InvalidField("config.initial_word", "xyzzy", "it must be one token")
    words = tuning_config(method="textual_inversion", initial_word="xyzzy")
    await refusal("INVALID_FIELD", "tuning_config.initial_word", prompt="a beikkpic", tuning_config=words)
    world.sampler.tuning_refusal = None
    await world.tuner_server.stop()
    await refusal("BACKEND_DOWN", None, grpc.StatusCode.UNAVAILABLE)
    accepted, _ = await validated(world, prompt=PROMPT, image_data=picture(), config=sampling_config(method="sdedit"))
    assert accepted.HasField("accepted")
    assert not world.tuner.requests and not world.sampler.requests and not world.stored()


async def test_a_validated_request_finds_what_is_there(world: World) -> None:
    """With a tuning, or an image whose tuning is READY, no tuner is needed, as for an edit."""
    tuning = await world.tuned(picture("red"))
    await world.tuner_server.stop()

    for target in ({"tuning": tuning.name}, {"image": tuning.image}, {"image_data": picture("red")}):
        accepted, _ = await validated(world, prompt=PROMPT, **target)
        assert accepted.HasField("accepted")
    assert len(world.tuner.requests) == 1 and not world.sampler.requests


async def test_a_validated_comparison_makes_nothing(world: World) -> None:
    """Accepted with its methods and the warnings of all, then done; what a comparison is refused for, it is."""
    world.sampler.base_model = BaseModel(vocabulary=["dog"], digest=world.tuner.base_model.digest)
    request = CompareRequest(prompt="a zebra", image_data=picture(), validate_only=True)
    events = [event async for event in world.edits.Compare(request)]

    assert [event.WhichOneof("event") for event in events] == ["accepted", "done"]
    assert Flat(events[0].accepted).methods == ["unitune", "imagic", "sdedit"]
    assert len(events[0].accepted.warnings) == 1 and "zebra" in events[0].accepted.warnings[0]
    assert not world.tuner.requests and not world.sampler.requests and not world.stored()
    request.methods.add(method=99)
    await refused(world.edits.Compare(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "methods[0].method")
