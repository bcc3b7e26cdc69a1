"""The command line against a scripted server: what it asks, shows, writes and returns."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image

import unitune_client
from tests.configs import sampling_config, tuning_config
from tests.unitune_client import scripted_server
from tests.unitune_client.scripted_server import EDIT, TUNING, Hold, ScriptedServer
from unitune.errors import Internal, InvalidArgument, InvalidField, NotFound, Unavailable, to_status
from unitune.options import Flat
from unitune.v1 import edit_pb2, tuning_pb2
from unitune_client.channel import INLINE_MASK_BYTES
from unitune_client.cli.main import main

WHITE = scripted_server.png((255, 255, 255))
DOG, CAT = scripted_server.png((0, 200, 0)), scripted_server.png((0, 0, 200))


pytestmark = pytest.mark.usefixtures("own_surroundings")


def unitune(*arguments: object) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def expect_tuning(server: ScriptedServer, *events: str) -> None:
    """Script all that comes before the first edit of a picture."""
    server.script("GetServerInfo", scripted_server.server_info(vocabulary=["cat", "dog"]))
    server.script("UploadImage", scripted_server.uploaded)
    server.script("CreateTuning", lambda request: scripted_server.tuning("QUEUED", labels=request.labels))
    server.script("WatchTuning", scripted_server.tuning_events(*(events or ("queued", "started", "progress", "ready"))))


def test_edit_tunes_once_and_edits_by_every_prompt(server: ScriptedServer, photo: Path, tmp_path: Path) -> None:
    """One tuning serves all prompts; options reach their fields; pictures and the sheet are where stdout says."""
    expect_tuning(server)
    server.script("Edit", scripted_server.edit_events([DOG, CAT], seeds=[3, 4], warnings=["unknown word: zebra"]))
    server.script("Edit", scripted_server.edit_events([CAT, DOG], seeds=[3, 4]))
    sampling = ["--strength=0.8", "--guidance=9", "--steps=30", "--scheduler=euler", "--seed=3", "--seed=4", "--seed=3"]
    sampling += ["--guidance-interval", "0.5", "9"]
    tuning = ["--updates=64", "--mode=lora", "--rare-tokens=xyz", "--stop-loss-ratio=0.25"]
    tuning += ["--super-resolution-updates=32", "--address", server.address]

    done = unitune("edit", photo, "A dog, at night!", "a cat", "a cat", "-o", tmp_path / "o", *sampling, *tuning)

    assert 0 == done.exit_code, done.output
    names = [f"my cat--{slug}--seed{seed}.png" for slug in ("a-dog-at-night", "a-cat") for seed in (3, 4)]
    assert [str(tmp_path / "o" / name) for name in [*names, "my cat--sheet.png"]] == done.stdout.split("\n")[:-1]
    assert [DOG, CAT, CAT, DOG] == [(tmp_path / "o" / name).read_bytes() for name in names]
    assert sorted([*names, "my cat--sheet.png"]) == sorted(path.name for path in (tmp_path / "o").iterdir())
    config = server.requests["CreateTuning"][0].config
    assert config == tuning_config(
        updates=64, mode="lora", rare_tokens="xyz", stop_loss_ratio=0.25, super_resolution_updates=32
    )
    first, second = server.requests["Edit"]
    assert ("A dog, at night!", "a cat") == (first.prompt, second.prompt)
    checks = server.requests["CheckEdit"]
    for request, check in zip((first, second), checks, strict=True):  # what was validated is what is edited by
        assert ("image", [3, 4], config) == (
            request.WhichOneof("target"),
            list(request.seeds),
            request.tuning_config,
        )
        check.validate_only = False
        assert not check.request_id and request.request_id
        check.request_id = request.request_id
        assert check == request
    assert (
        sampling_config(
            method="unitune",
            strength=0.8,
            guidance_scale=9,
            num_inference_steps=30,
            scheduler="euler",
            guidance_sigma_low=0.5,
            guidance_sigma_high=9,
        )
        == first.config
    )
    assert "knows only its own world of stickers" in done.stderr
    assert "its operator has to give it another base model" in done.stderr and "--base-model" not in done.stderr
    assert "warning: unknown word: zebra" in done.stderr
    assert "edited in 2.00 s (refit 0.25 s, encode 0.05 s, denoise 1.50 s, decode 0.10 s)" in done.stderr
    assert 1 == len(re.findall(r"tuning: 3/128, loss 0.5000, 9 s left", done.stderr))


def test_a_picture_that_the_server_blocks_is_told_and_not_written(
    server: ScriptedServer, photo: Path, tmp_path: Path
) -> None:
    """The others are written; a command that got none ends with an error and leaves no file."""
    expect_tuning(server)
    server.script("Edit", scripted_server.edit_events([DOG, b""], seeds=[0, 1]))
    some = unitune("edit", photo, "a dog", "--seed", "0", "--seed", "1", "--address", server.address)

    assert 0 == some.exit_code and "seed 1): the server's content filter refused the picture" in some.stderr
    assert ["my cat--a-dog--seed0.png", "my cat--sheet.png"] == sorted(path.name for path in Path("out").iterdir())
    expect_tuning(server)
    server.script("Edit", scripted_server.edit_events([b""]))
    none = unitune("edit", photo, "a dog", "--out", "none", "--address", server.address)
    assert 1 == none.exit_code and "error: the content filter refused every picture" in none.stderr
    assert [] == list(Path("none").iterdir())


def test_the_sheet_shows_the_picture_the_edits_and_their_differences(
    server: ScriptedServer, photo: Path, tmp_path: Path
) -> None:
    """The contact sheet on the disk holds the enlarged pixels of the photo and of every edit."""
    expect_tuning(server)
    server.script("Edit", scripted_server.edit_events([DOG]), scripted_server.edit_events([CAT]))

    unitune("edit", photo, "a dog", "a cat", "--address", server.address)

    colours = {colour: count for count, colour in Image.open("out/my cat--sheet.png").getcolors(1 << 20)}
    enlarged = 64 * 48 * 4 * 4
    assert [enlarged] * 3 == [colours[colour] for colour in [(200, 40, 40), (0, 200, 0), (0, 0, 200)]]


def test_sdedit_needs_no_tuning(server: ScriptedServer, photo: Path) -> None:
    """With the base model's own weights no tuning is asked for."""
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded)
    server.script("Edit", scripted_server.edit_events([DOG]))

    done = unitune("edit", photo, "a dog", "--method", "sdedit", "--address", server.address)

    assert 0 == done.exit_code, done.output
    assert "image" == server.requests["Edit"][0].WhichOneof("target")
    assert "stickers" not in done.stderr


def test_prompt_to_prompt_edits_the_picture_itself(server: ScriptedServer, photo: Path) -> None:
    """No tuning is asked for, and every option reaches its field."""
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded)
    server.script("Edit", scripted_server.edit_events([DOG]))
    options = ["--method=prompt_to_prompt", "--base-prompt=a cat", "--cross-replace=0.5", "--self-replace=0.25"]
    options += ["--inversion=ddim", "--alignment=refine", "--blend=cat", "--blend=dog", "--weight", "dog", "2"]

    done = unitune("edit", photo, "a dog", *options, "--address", server.address)

    assert 0 == done.exit_code, done.output
    (request,) = server.requests["Edit"]
    assert "image" == request.WhichOneof("target")
    wanted = sampling_config(
        method="prompt_to_prompt",
        base_prompt="a cat",
        cross_replace=0.5,
        self_replace=0.25,
        inversion="ddim",
        alignment="refine",
        word_weights={"dog": 2.0},
        blend_words=["cat", "dog"],
    )
    assert wanted == request.config


def test_null_text_is_tuned_for_the_edits_own_settings(server: ScriptedServer, photo: Path) -> None:
    """The command asks for the tuning that the server says the edit needs: the one that `tune` asks for."""
    server.script("GetServerInfo", scripted_server.server_info(), scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded, scripted_server.uploaded)
    log = scripted_server.edit_events([DOG])
    log.insert(-2, edit_pb2.EditEvent(warning=edit_pb2.EditEvent.Warning(text="local blend keeps nothing")))
    server.script("Edit", log)
    server.script("CreateTuning", scripted_server.tuning("READY"), scripted_server.tuning("READY"))
    bound = ["--base-prompt=a cat", "--steps=30", "--guidance=5", "--updates=20", "--address", server.address]
    beside = ["--method=prompt_to_prompt", "--inversion=null_text", "--blend=dog"]

    done = unitune("edit", photo, "a dog", *beside, *bound)
    tuned = unitune("tune", photo, "--method=null_text", *bound)

    assert 0 == done.exit_code, done.output
    assert "warning: local blend keeps nothing" in done.stderr
    (request,) = server.requests["Edit"]
    config = sampling_config(
        method="prompt_to_prompt",
        inversion="null_text",
        base_prompt="a cat",
        num_inference_steps=30,
        guidance_scale=5,
        blend_words=["dog"],
    )
    assert config == request.config and tuning_config(updates=20) == request.tuning_config
    assert 0 == tuned.exit_code, tuned.output
    wanted = tuning_config(
        method="null_text", updates=20, base_prompt="a cat", num_inference_steps=30, guidance_scale=5
    )
    assert [wanted, wanted] == [request.config for request in server.requests["CreateTuning"]]


def test_imagic_tunes_for_every_prompt(server: ScriptedServer, photo: Path) -> None:
    """Each prompt makes its own tuning and is edited with it; the options reach their fields (I6)."""
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded)
    server.script("CreateTuning", scripted_server.tuning("READY"), scripted_server.tuning("READY"))
    server.script("Edit", scripted_server.edit_events([DOG]), scripted_server.edit_events([CAT]))
    options = ["--method=imagic", "--embedding-updates=7", "--updates=9", "--eta=1.2", "--address", server.address]

    done = unitune("edit", photo, "a dog", "a cat", *options)

    assert 0 == done.exit_code, done.output
    assert [
        tuning_config(method="imagic", updates=9, embedding_updates=7, prompt=prompt) for prompt in ("a dog", "a cat")
    ] == [request.config for request in server.requests["CreateTuning"]]
    assert [("imagic", 1.2, "a dog"), ("imagic", 1.2, "a cat")] == [
        (Flat(request.config).method, request.config.eta, request.prompt) for request in server.requests["Edit"]
    ]


@pytest.mark.parametrize(
    ("method", "asked", "automatic"),
    [
        ("unitune", [], True),
        ("sdedit", [], True),
        ("imagic", [], False),
        ("imagic", ["--automatic"], True),
        ("unitune", ["--no-automatic"], False),
        ("unitune", ["--strength=0.5"], False),
        ("unitune", ["--fast"], False),
        ("unitune", ["--fast-lora"], False),
        ("sdedit", ["--fast-lora"], False),
    ],
)
def test_automatic_is_the_default_where_the_method_leaves_it_open(
    server: ScriptedServer, photo: Path, method: str, asked: list[str], automatic: bool
) -> None:
    """With a CLIP filter, for UniTune and SDEdit; the others keep their published settings unless it is asked for."""
    info = scripted_server.server_info()
    info.base_model.has_clip_filter, info.base_model.fast_steps = True, 4
    server.script("GetServerInfo", info)
    server.script("UploadImage", scripted_server.uploaded)
    if method != "sdedit":
        server.script("CreateTuning", scripted_server.tuning("READY"))
    server.script("Edit", scripted_server.edit_events([DOG]))

    done = unitune("edit", photo, "a dog", f"--method={method}", *asked, "--address", server.address)

    assert 0 == done.exit_code, done.output
    (request,) = server.requests["Edit"]
    assert (automatic, "--fast" in asked) == (request.config.automatic, request.config.fast)


def test_dreambooth_takes_further_photos(server: ScriptedServer, photo: Path, tmp_path: Path) -> None:
    """They are uploaded and named in the request, with noun, class images and weight; one tuning serves all prompts."""
    other = tmp_path / "other.png"
    other.write_bytes(CAT)
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded, scripted_server.uploaded)
    server.script("CreateTuning", scripted_server.tuning("READY"))
    server.script("Edit", scripted_server.edit_events([DOG]), scripted_server.edit_events([CAT]))
    options = ["--method=dreambooth", "--class-noun=cat", "--class-images=12", "--prior-weight=0.5", "--photo", other]

    done = unitune("edit", photo, "a beikkpic cat", "one Beikkpic cat", *options, "--address", server.address)

    assert 0 == done.exit_code, done.output
    (request,) = server.requests["CreateTuning"]
    expected = tuning_config(method="dreambooth", class_noun="cat", num_class_images=12, prior_weight=0.5)
    assert expected == request.config
    assert [TUNING, TUNING] == [edit.tuning for edit in server.requests["Edit"]]  # no edit can name further photos
    assert [f"tenants/default/images/{hashlib.sha256(CAT).hexdigest()}"] == list(request.images)
    assert 2 == len(server.requests["Edit"])


def test_tune_makes_one_tuning_per_prompt(server: ScriptedServer, photo: Path) -> None:
    """`unitune tune` takes the prompts of imagic, and prints the name of each tuning."""
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded)
    server.script("CreateTuning", scripted_server.tuning("READY"), scripted_server.tuning("READY"))
    options = ["--method=imagic", "--prompt", "a dog", "--prompt", "a cat", "--address", server.address]

    done = unitune("tune", photo, *options)

    assert 0 == done.exit_code, done.output
    assert ["a dog", "a cat"] == [request.config.prompt for request in server.requests["CreateTuning"]]
    assert [TUNING, TUNING] == done.stdout.splitlines()
    assert ["a cat"] == [request.config.prompt for request in server.requests["CheckTuning"]]


def test_a_tuning_that_is_there_is_not_watched(server: ScriptedServer, photo: Path) -> None:
    """A picture that was tuned on before goes straight to its edit."""
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded)
    server.script("CreateTuning", scripted_server.tuning("READY"))
    server.script("Edit", scripted_server.edit_events([DOG]))

    done = unitune("edit", photo, "a dog", "--address", server.address)

    assert 0 == done.exit_code and "tuned on before" in done.stderr


def test_json_prints_one_object_per_event_and_nothing_else(server: ScriptedServer, photo: Path) -> None:
    """Every line of stdout is an object that names its event; pictures are paths."""
    expect_tuning(server)
    server.script("Edit", scripted_server.edit_events([DOG], warnings=["careful"]))

    done = unitune("edit", photo, "a dog", "--json", "--address", server.address)

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = "tuning_queued tuning_started tuning_progress tuning_ready edit_accepted edit_loading edit_step edit_step"
    assert [*names.split(), "edited_image", "edit_done", "result", "result"] == [line["event"] for line in lines]
    accepted, *_, done_event, picture, sheet = lines[4:]
    assert (EDIT, ["careful"], 0.8) == (accepted["edit"], accepted["warnings"], accepted["config"]["strength"])
    assert (1.5, TUNING) == (done_event["timings"]["denoise_s"], done_event["tuning"])
    assert ("picture", "a dog", 0) == (picture["kind"], picture["prompt"], picture["seed"])
    assert DOG == Path(picture["value"]).read_bytes()
    assert Path(sheet["value"]).is_file()
    progress = {"update": 3, "total": 128, "loss": 0.5, "left_s": 9.0, "learning_rate": 1e-4, "stopped_early": False}
    progress |= {"stage": "updating", "warning": "", "attempt": 0, "resumed_update": 0}
    assert progress == lines[2]["progress"]
    assert "d1" == lines[3]["tuning"]["weights"]["digest"]


def test_a_slower_tuning_is_warned_of_once(server: ScriptedServer, photo: Path) -> None:
    """However often its progress says so."""
    expect_tuning(server)
    server._answers["WatchTuning"].clear()
    log = scripted_server.tuning_events("queued", "started", "progress", "progress", "ready")
    for event in log:
        if event.HasField("progress"):
            event.progress.warning = "the tuning is slower than it could be"
    server.script("WatchTuning", log)
    server.script("Edit", scripted_server.edit_events([DOG]))

    done = unitune("edit", photo, "a dog", "--address", server.address)

    assert 0 == done.exit_code, done.stderr
    assert 1 == done.stderr.count("warning: the tuning is slower than it could be")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--strength", "3"], "error: --strength is '3': give a number from 0 to 1"),
        (["--strength", "nan"], "error: --strength is 'nan': give a number from 0 to 1"),
        (["--steps", "2.5"], "error: --steps is '2.5': give a whole number from 1 to 1000"),
        (["--seed", "-1"], f"error: --seed is '-1': give a whole number from 0 to {2**63 - 1}"),
        (["-o", "file"], "error: --out is 'file': it is a file; give a folder"),
        (["--base-model", "m"], "error: --base-model is 'm': leave it out: the server at 127.0.0.1:1 has its own"),
        (["--eta", "3"], "error: --eta is '3': give a number from 0 to 2"),
        (["--vectors", "0"], "error: --vectors is '0': give a whole number from 1 to 16"),
        (["--zzzz"], "error: No such option '--zzzz'."),
        (["--update", "3"], "error: No such option '--update'. Did you mean --updates?"),
        (["--embed", "3"], "error: No such option '--embed'. Did you mean --embedding-updates?"),
        (["--prompt", "a cat"], "error: No such option '--prompt'. Did you mean PROMPT, which has no flag?"),
        (["--guidence", "3"], "error: No such option '--guidence'. Did you mean --guidance?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_code_2(photo: Path, options: list[str], line: str) -> None:
    """What is wrong is told before anything is asked of a server."""
    Path("file").touch()

    done = unitune("edit", photo, "a dog", "--address", "127.0.0.1:1", *options)

    assert (2, line, "") == (done.exit_code, done.stderr.strip(), done.stdout)


@pytest.mark.parametrize(
    ("argument", "name", "data", "line"),
    [
        ("--mask", "mask.png", b"no picture", "--mask is 'mask.png': it is text; give a PNG picture"),
        ("--mask", "mask.jpg", b"\xff\xd8\xff", "--mask is 'mask.jpg': it is a JPEG; give a PNG picture"),
        ("PHOTO", "a.gif", b"GIF89a", "PHOTO is 'a.gif': it is a GIF; give a PNG, JPEG, WebP or AVIF picture"),
        ("--photo", "b.pdf", b"%PDF", "--photo is 'b.pdf': it is a PDF; give a PNG, JPEG, WebP or AVIF picture"),
    ],
)
def test_a_file_of_another_kind_is_refused_before_anything_starts(
    photo: Path, argument: str, name: str, data: bytes, line: str
) -> None:
    """Whatever it is given as, and without a server: no services start, and nothing is uploaded (N13)."""
    Path(name).write_bytes(data)
    arguments = [name, "a dog"] if argument == "PHOTO" else [photo, "a dog", argument, name]

    done = unitune("edit", *arguments, "--address", "127.0.0.1:1")

    assert (2, f"error: {line}") == (done.exit_code, done.stderr.strip())


def test_what_a_mask_is_of_reaches_its_field(server: ScriptedServer, photo: Path) -> None:
    """So does --inverted; a CLIPSeg takes words that the base model does not know."""
    info = scripted_server.server_info(vocabulary=["cat", "dog"])
    info.base_model.has_clipseg = True
    server.script("GetServerInfo", info)
    server.script("UploadImage", scripted_server.uploaded)
    server.script("Edit", scripted_server.edit_events([DOG]))
    options = ["--method=sdedit", "--mask-text=the zebra", "--inverted", "--strength=0.8"]

    done = unitune("edit", photo, "a dog", *options, "--address", server.address)

    assert 0 == done.exit_code, done.output
    (request,) = server.requests["Edit"]
    assert request.config == sampling_config(method="sdedit", mask_text="the zebra", inverted=True, strength=0.8)


def test_a_missing_mask_is_named(photo: Path) -> None:
    """As a missing photo is, before any server is asked."""
    done = unitune("edit", photo, "a dog", "--mask=nobody.png", "--address", "127.0.0.1:1")

    wanted = "error: --mask is 'nobody.png': No such file or directory; give the path of a PNG picture\n"
    assert (2, wanted) == (done.exit_code, done.stderr)


def test_options_of_guidance_and_mask_reach_their_fields(server: ScriptedServer, photo: Path) -> None:
    """Each has its own; the mask goes as its file, and comes back as one more column of the sheet."""
    expect_tuning(server)
    server.script("Edit", scripted_server.edit_events([DOG], mask=WHITE))
    Path("mask.png").write_bytes(WHITE)
    guidance = ["--negative-prompt=snow", "--base-prompt=a cat", "--prompt-guidance=3"]
    masks = ["--mask=mask.png", "--mask-source=given", "--mask-blur=2", "--only-masked", "--interpolation=0.5"]

    done = unitune("edit", photo, "a dog", *guidance, *masks, "--address", server.address)

    assert 0 == done.exit_code, done.output
    (request,) = server.requests["Edit"]
    assert WHITE == request.mask
    assert request.config == sampling_config(
        method="unitune",
        negative_prompt="snow",
        base_prompt="a cat",
        prompt_guidance_scale=3,
        mask_source="given",
        mask_blur=2,
        only_masked=True,
        interpolation=0.5,
    )
    colours = {colour: count for count, colour in Image.open("out/my cat--sheet.png").getcolors(1 << 20)}
    assert colours[(255, 255, 255)] >= 256 * 192


def test_a_large_mask_is_uploaded_once_for_all_prompts(server: ScriptedServer, photo: Path) -> None:
    """Each request names what none may carry."""
    mask = WHITE + bytes(INLINE_MASK_BYTES)
    Path("mask.png").write_bytes(mask)
    expect_tuning(server)
    server.script("UploadImage", scripted_server.uploaded)
    for _ in range(2):
        server.script("Edit", scripted_server.edit_events([DOG]))

    done = unitune("edit", photo, "a dog", "a cat", "--mask=mask.png", "--address", server.address)

    assert 0 == done.exit_code, done.output
    assert 2 == len(server.requests["UploadImage"])
    name = f"tenants/default/images/{hashlib.sha256(mask).hexdigest()}"
    requests = [*server.requests["CheckEdit"], *server.requests["Edit"]]
    assert [(name, b"")] * 4 == [(request.mask_image, request.mask) for request in requests]


def test_a_large_mask_that_no_server_takes_is_named(server: ScriptedServer, photo: Path) -> None:
    """Its upload is refused as --mask, not as the photo."""
    Path("mask.png").write_bytes(WHITE + bytes(INLINE_MASK_BYTES))
    metadata = {"field": "image", "value": "64x48 pixels", "remedy": "send a smaller copy"}
    error = InvalidArgument("image is 64x48 pixels: send a smaller copy", reason="IMAGE_TOO_LARGE", metadata=metadata)
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded, error)

    done = unitune("edit", photo, "a dog", "--mask=mask.png", "--address", server.address)

    assert (2, "error: --mask is 64x48 pixels: send a smaller copy") == (done.exit_code, done.stderr.strip())


def test_options_of_sdedit_reach_their_fields(server: ScriptedServer, photo: Path) -> None:
    """Repeats and an estimated mask, with the base prompt that it reads."""
    server.script("GetServerInfo", scripted_server.server_info())
    server.script("UploadImage", scripted_server.uploaded)
    server.script("Edit", scripted_server.edit_events([DOG]))
    options = ["--method=sdedit", "--repeats=3", "--mask-source=diffedit", "--base-prompt=a cat"]

    done = unitune("edit", photo, "a dog", *options, "--address", server.address)

    assert 0 == done.exit_code, done.output
    config = server.requests["Edit"][0].config
    assert config == sampling_config(method="sdedit", repeats=3, mask_source="diffedit", base_prompt="a cat")


def test_a_missing_photo_is_named(tmp_path: Path) -> None:
    """The argument, its value and what to give instead, on one line."""
    done = unitune("edit", "nobody.png", "a dog", "--address", "127.0.0.1:1")

    wanted = (
        "error: PHOTO is 'nobody.png': No such file or directory; give the path of a PNG, JPEG, WebP or AVIF picture\n"
    )
    assert (2, wanted) == (done.exit_code, done.stderr)


def test_a_refusal_by_the_server_keeps_its_words_and_decides_the_code(server: ScriptedServer, photo: Path) -> None:
    """INVALID_ARGUMENT is code 2, a failure is code 1; no traceback either way."""
    wrong = InvalidField("config.rare_tokens", "most", "use other words")
    for answer in (wrong, Internal("the tuning diverged at update 12", reason="TUNING_DIVERGED")):
        server.script("GetServerInfo", scripted_server.server_info())
        server.script("UploadImage", scripted_server.uploaded)
        server.script("CreateTuning", answer)

    refused = unitune("edit", photo, "a dog", "--rare-tokens", "most", "--address", server.address)
    failed = unitune("tune", photo, "--json", "--address", server.address)

    wanted = "error: --rare-tokens is 'most': use other words"
    assert (2, wanted) == (refused.exit_code, refused.stderr.strip())
    assert (1, "error: the tuning diverged at update 12") == (failed.exit_code, failed.stderr.strip())
    assert "TUNING_DIVERGED" == json.loads(failed.stdout)["reason"]


def test_a_word_that_the_contract_does_not_have_is_refused_by_its_option(server: ScriptedServer, photo: Path) -> None:
    """No message can carry it, so the command refuses it, in a server's words and with code 2, and asks no server."""
    refused = unitune("edit", photo, "a dog", "--mode", "most", "--address", server.address)

    wanted = "error: --mode is 'most': it must be one of full, attn_out, lora"
    assert (2, wanted) == (refused.exit_code, refused.stderr.strip())
    assert not server.requests


def test_a_lost_edit_is_asked_for_again_and_told(server: ScriptedServer, photo: Path) -> None:
    """The command says why it tries again, and has the pictures."""
    expect_tuning(server)
    down = Unavailable("the sampler does not answer now", reason="BACKEND_DOWN")
    server.script("Edit", [*scripted_server.edit_events([])[:3], down], scripted_server.edit_events([DOG]))
    server.script("CancelEdit", NotFound("there is no such edit", reason="EDIT_NOT_FOUND"))

    done = unitune("edit", photo, "a dog", "--address", server.address)

    assert 0 == done.exit_code and "the sampler does not answer now: trying again\n" in done.stderr, done.stderr
    assert DOG == Path(done.stdout.splitlines()[0]).read_bytes()


def test_a_failed_tuning_is_told(server: ScriptedServer, photo: Path) -> None:
    """A failure in the middle of the stream ends the command with code 1."""
    expect_tuning(server)
    server._answers["WatchTuning"].clear()
    failed = to_status(Unavailable("the tuner was lost three times", reason="TUNER_LOST"))
    server.script("WatchTuning", [tuning_pb2.TuningEvent(sequence=1, failed=failed)])

    done = unitune("edit", photo, "a dog", "--address", server.address)

    assert (1, "error: the tuner was lost three times") == (done.exit_code, done.stderr.splitlines()[-1])


def test_nobody_at_the_address_is_told(photo: Path) -> None:
    """A wrong address is one line and code 1."""
    done = unitune("edit", photo, "a dog", "--address", "127.0.0.1:1")

    assert (1, "error: no UniTune server answers at 127.0.0.1:1\n") == (done.exit_code, done.stderr)


def test_tune_prints_the_name(server: ScriptedServer, photo: Path) -> None:
    """The tuning's name is all that goes to stdout."""
    expect_tuning(server)

    done = unitune("tune", photo, "--updates", "0", "--learning-rate", "1.5e-4", "--address", server.address)

    assert (0, f"{TUNING}\n") == (done.exit_code, done.stdout)
    assert server.requests["CreateTuning"][0].config.HasField("updates")
    assert 1.5e-4 == server.requests["CreateTuning"][0].config.learning_rate


def test_tunings_are_listed_watched_cancelled_and_deleted(server: ScriptedServer) -> None:
    """Each command asks for what it says and prints the state."""
    server.script("ListTunings", tuning_pb2.ListTuningsResponse(tunings=[scripted_server.tuning("READY")]))
    server.script("WatchTuning", scripted_server.tuning_events("queued", "ready"))
    server.script("CancelTuning", scripted_server.tuning("CANCELLED"))
    server.script("DeleteTuning", Empty(), NotFound("there is no such tuning", reason="TUNING_NOT_FOUND"))
    address = ("--address", server.address)

    listed = unitune("tunings", "list", "--state", "ready", *address)
    watched = unitune("tunings", "watch", TUNING, *address)
    cancelled = unitune("tunings", "cancel", TUNING, "--json", *address)
    deleted, missing = (unitune("tunings", "delete", TUNING, *address) for _ in range(2))

    assert f"{TUNING}  READY        128 updates  -\n" == listed.stdout
    assert tuning_pb2.Tuning.STATE_READY == server.requests["ListTunings"][0].state
    assert f"{TUNING}  READY\n" == watched.stdout and "1 ahead of it" in watched.stderr
    assert "CANCELLED" == json.loads(cancelled.stdout)["tuning"]["state"]
    assert f"{TUNING}  deleted\n" == deleted.stdout
    assert (1, "error: there is no such tuning\n") == (missing.exit_code, missing.stderr)


@pytest.mark.parametrize(
    ("config", "updates"),
    [
        (tuning_config(method="imagic", embedding_updates=500, updates=1000), 1500),
        (tuning_config(method="unitune", updates=128, super_resolution_updates=32), 160),
        (tuning_config(method="null_text", updates=10, num_inference_steps=50), 500),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_a_list_counts_every_phase_and_tells_local_time(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, config: tuning_pb2.TuningConfig, updates: int
) -> None:
    """Updates are those that progress counts; the time is this machine's, with its offset from UTC (N20)."""
    made = scripted_server.tuning("READY", create_time=Timestamp(seconds=1_790_000_000))
    made.config.CopyFrom(config)
    server.script("ListTunings", tuning_pb2.ListTuningsResponse(tunings=[made]))
    monkeypatch.setenv("TZ", "IST-5:30")
    time.tzset()
    try:
        told = unitune("tunings", "list", "--address", server.address).stdout
    finally:
        monkeypatch.undo()
        time.tzset()

    assert f"{TUNING}  READY      {updates:5} updates  2026-09-21 19:43 +0530\n" == told


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_bar_has_a_total_that_stays(server: ScriptedServer, photo: Path, tmp_path: Path, on_terminal: bool) -> None:
    """Attempts of which the CLIP filter chooses are a bar each, which says which one of how many it is (N25)."""
    expect_tuning(server)
    events = scripted_server.edit_events([DOG], steps=2)
    steps = [(index, total, attempt) for attempt, total in ((1, 9), (2, 5), (3, 2)) for index in range(total)]
    kinds = edit_pb2.EditEvent
    events[2:4] = [
        kinds(step=kinds.Step(index=index, total=total, attempt=attempt, attempts=3)) for index, total, attempt in steps
    ]
    server.script("Edit", events)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "unitune_client", "edit", str(photo), "a dog", "--address", server.address]
    environment = os.environ | {
        "PYTHONPATH": str(Path(unitune_client.__file__).parents[1]), "TERM": "xterm", "COLUMNS": "120"
    }  # fmt: skip
    errors = theirs if on_terminal else (tmp_path / "said").open("wb")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=tmp_path, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # how a terminal says that the other end is closed
            pass
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", (shown or (tmp_path / "said").read_bytes()).decode())

    assert 0 == process.returncode, text
    for attempt, total in ((1, 9), (2, 5), (3, 2)):
        counts = re.findall(rf"a dog \(attempt {attempt} of 3\)[^0-9]+(\d+)/(\d+)", text)
        assert {str(total)} == {of for _, of in counts} and str(total) == counts[-1][0], text


@pytest.mark.parametrize(
    ("attempts", "seeds", "chosen", "line"),
    [
        (
            3,
            [0],
            (0.8, 9.0),
            "seed 0: the picture at strength 0.8 and guidance 9 was taken, the best of 3 that were tried",
        ),
        (1, [7], (0.0, 0.0), "seed 7: the picture was taken, the only one that was tried"),
        (2, [0, 1], (0.0, 0.0), "seed 1: the picture was taken, the best of at most 2 that were tried"),
    ],
)
def test_what_the_filter_took_is_told_in_plain_words(
    server: ScriptedServer, photo: Path, attempts: int, seeds: list[int], chosen: tuple[float, float], line: str
) -> None:
    """Which picture, of how many, whether it passes, and its scores by what they compare."""
    expect_tuning(server)
    events = scripted_server.edit_events([DOG, CAT], seeds=seeds, steps=attempts)
    for number, event in enumerate((event for event in events if event.HasField("step")), start=1):
        event.step.attempt, event.step.attempts = number, 4
    for event in events:
        if event.HasField("image"):
            event.image.scores.CopyFrom(edit_pb2.Scores(prompt=0.31, base_prompt=0.2, kept=0.88, passed=attempts != 2))
            event.image.strength, event.image.guidance_scale = chosen
    server.script("Edit", events)

    done = unitune("edit", photo, "a dog", *[f"--seed={seed}" for seed in seeds], "--address", server.address)

    verdict = "It does not pass" if attempts == 2 else "It passes"
    scores = "likeness to PROMPT 0.31 (of PHOTO 0.20), likeness to PHOTO 0.88 (1 is the same)"
    assert f"{line}. {verdict} the CLIP filter: {scores}\n" in done.stderr, done.output


def test_help_names_examples_and_units() -> None:
    """The help of the main command shows how to begin and what the numbers mean."""
    shown = unitune("edit", "--help").stdout

    assert 'unitune edit cat.png "a dog on a beach"' in shown
    words = " ".join(shown.split())
    assert "[0 to 1; default: the base model's own]" in words
    assert "sdedit, also called img2img" in words and "white is edited, black keeps its pixels exactly" in words


def test_no_command_is_shown_the_help() -> None:
    """Alone, the program explains itself, with the code of wrong input."""
    done = unitune()

    assert 2 == done.exit_code and "Start here:" in done.output and "error:" not in done.output


def test_doctor_asks_the_server(server: ScriptedServer) -> None:
    """With an address it tells the defaults there, and the words of the model."""
    fast = scripted_server.server_info()
    fast.base_model.fast_steps, fast.base_model.fast_lora = 4, "lcm"
    server.script("GetServerInfo", *[scripted_server.server_info(vocabulary=["cat", "dog"])] * 2, fast)

    told = unitune("doctor", "--address", server.address).stdout
    words = unitune("doctor", "--vocabulary", "--address", server.address).stdout

    assert re.search(r"edit defaults: +unitune, strength 0.8, guidance 7.5, interpolation 0, 20 ddim steps\n", told)
    assert (
        "20 ddim steps, 4 with --fast and its fast LoRA (lcm)\n"
        in unitune("doctor", "--address", server.address).stdout
    )
    assert re.search(r"tuner: +torch \d", told) and re.search(r"python: +3\.", told)
    assert re.search(r"onnxruntime: +yes: version \d\S+ on cpu", told)
    assert re.search(r"onnxruntime-cuda: +(yes: version|no: )", told) and re.search(r"tensorrt: +(yes: |no: )", told)
    assert "words: cat, dog\n" == words


def test_doctor_reads_the_vocabulary_of_a_base_model(tmp_path: Path) -> None:
    """Without a server the words come from the model's folder, by kind; a model without a list knows any word."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    before = unitune("doctor", "--vocabulary", "--base-model", tmp_path / "model").stdout
    listed = {"objects": ["cat", "dog"], "places": ["beach"]}
    (tmp_path / "model" / "vocabulary.json").write_text(json.dumps(listed))

    after = unitune("doctor", "--vocabulary", "--base-model", tmp_path / "model").stdout

    assert "any word: the vocabulary is open\n" == before
    assert "objects: cat, dog\nplaces: beach\n" == after


@pytest.fixture
def program(server: ScriptedServer, photo: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`unitune edit` as a process of its own, which may be interrupted; what it says goes into the file `said`."""
    command = [sys.executable, "-m", "unitune_client", "edit", str(photo), "a dog", "--address", server.address]
    environment = os.environ | {"PYTHONPATH": str(Path(unitune_client.__file__).parents[1])}
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, cwd=tmp_path, env=environment
        ) as process,
    ):
        yield process
        process.kill()


def wait_for(text: str, file: Path) -> None:
    """Wait until a file holds a text."""
    gives_up_at = time.monotonic() + 60
    while text not in file.read_text():
        assert time.monotonic() < gives_up_at, file.read_text()
        time.sleep(0.02)


def test_an_interrupt_cancels_the_edit_on_the_server(
    server: ScriptedServer, program: subprocess.Popen[str], tmp_path: Path
) -> None:
    """SIGINT ends the stream, sends CancelEdit, says so and leaves with 130 and no half-made picture."""
    expect_tuning(server)
    hold = Hold()
    server.script("Edit", [*scripted_server.edit_events([DOG])[:3], hold])
    server.script("CancelEdit", edit_pb2.Edit(name=EDIT, state="STATE_CANCELLED"))
    assert hold.reached.wait(60)
    wait_for("a dog: 1/2", tmp_path / "said")

    program.send_signal(signal.SIGINT)
    stdout, _ = program.communicate(timeout=30)

    stderr = (tmp_path / "said").read_text()
    assert 130 == program.returncode
    assert hold.left.wait(10)
    assert [EDIT] == [request.name for request in server.requests["CancelEdit"]]
    assert stderr.endswith(f"cancelled edit {EDIT}\n\ninterrupted\n"), stderr
    assert "" == stdout and "Traceback" not in stderr
    assert [] == list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_cancels_the_tuning_on_the_server(
    server: ScriptedServer, program: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C or SIGTERM during the tuning sends CancelTuning and leaves with 130."""
    expect_tuning(server)
    hold = Hold()
    server._answers["WatchTuning"][0][2:] = [hold]
    server.script("CancelTuning", scripted_server.tuning("CANCELLED"))
    assert hold.reached.wait(60)

    program.send_signal(number)
    program.communicate(timeout=30)

    assert 130 == program.returncode
    assert [TUNING] == [request.name for request in server.requests["CancelTuning"]]
    assert f"cancelled tuning {TUNING}\n" in (tmp_path / "said").read_text()


def test_an_interrupt_leaves_the_tuning_of_another_command_alone(
    server: ScriptedServer, program: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Two commands share a photo's tuning: Ctrl-C in the one that found it does not cancel it for the other."""
    expect_tuning(server)
    hold = Hold()
    server._answers["WatchTuning"][0][2:] = [hold]
    server._answers["CreateTuning"][0] = scripted_server.tuning("RUNNING", labels={"command": "another"})
    assert hold.reached.wait(60)

    program.send_signal(signal.SIGINT)
    program.communicate(timeout=30)

    assert 130 == program.returncode
    assert [] == server.requests["CancelTuning"]
    assert f"{TUNING} goes on: another command made it\n" in (tmp_path / "said").read_text()


def test_a_terminal_gets_bars(server: ScriptedServer, photo: Path, tmp_path: Path) -> None:
    """On a terminal each stage is one bar that moves, with loss and time left."""
    expect_tuning(server, "queued", *["progress"] * 3, "ready")
    server.script("Edit", scripted_server.edit_events([DOG], steps=5))
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "unitune_client", "edit", str(photo), "a dog", "--address", server.address]
    environment = os.environ | {
        "PYTHONPATH": str(Path(unitune_client.__file__).parents[1]), "TERM": "xterm", "COLUMNS": "120"
    }  # fmt: skip

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=environment) as process:
        os.close(theirs)
        shown = io.BytesIO()
        try:
            while data := os.read(ours, 65536):
                shown.write(data)
        except OSError:  # how a terminal says that the other end is closed
            pass
        os.close(ours)

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue().decode())
    assert 0 == process.returncode, text
    assert re.search(r"tuning\s+[━╸╺ ]+\s+4/128 loss 0.5000, 9 s left", text), text
    assert re.search(r"a dog\s+[━╸╺ ]+\s+5/5", text), text
