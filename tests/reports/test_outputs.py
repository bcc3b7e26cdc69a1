"""What a user finds in the output folder: no lost results, what made each of them, and errors before the work."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from tests.configs import tuning_config
from tests.full_disk import fill, mounted
from tests.reports.conftest import PATIENCE_S, Done, Unitune
from tests.unitune_client import scripted_server
from unitune import png_text
from unitune.errors import InvalidField
from unitune_client import Client
from unitune_client.cli.main import main
from unitune_client.local.services import LocalServices

FAST = ("--steps=3", "--strength=0.7")
TUNED = (*FAST, "--updates=2")
SDEDIT = ("--method=sdedit", *FAST)


@pytest.fixture
def unitune(unitune_in_process: Unitune) -> Unitune:
    """Commands here run in this process."""
    return unitune_in_process


@pytest.fixture
def unitune_process(command_environment: dict[str, str], tmp_path: Path) -> Unitune:
    """The command line as a process, with an environment of its own."""

    def run(*arguments: object, env: dict[str, str]) -> Done:
        command = [sys.executable, "-m", "unitune_client", *map(str, arguments)]
        env = command_environment | {"PYTHONUTF8": "1"} | env
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)

    return run


def pictures_in(folder: Path) -> dict[str, bytes]:
    """Name and content of all files of a folder but the sheets; nothing unfinished is there."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not any("unfinished" in name for name in files)
    return {name: data for name, data in files.items() if "--sheet" not in name}


def record_of(path: str | Path) -> dict[str, object]:
    """What a picture says of its making."""
    return json.loads(png_text.texts_of(Path(path).read_bytes())["unitune"])


def printed(unitune: Unitune, *arguments: object) -> list[str]:
    """The lines of standard output of a command that succeeds."""
    done = unitune(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_result_never_takes_an_earlier_ones_place(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """Other settings, or a file of the same stem, get another name, the sheet too; a repeat keeps it (N4)."""
    first = printed(unitune, "edit", photo, "a cat", *SDEDIT)
    kept = {path: (tmp_path / path).read_bytes() for path in first}
    other = printed(unitune, "edit", photo, "a cat", *SDEDIT, "--guidance=2")
    again = printed(unitune, "edit", photo, "a cat", *SDEDIT)
    Image.open(photo).save(tmp_path / "photo.jpg")
    of_jpeg = printed(unitune, "edit", "photo.jpg", "a cat", *SDEDIT)

    assert first == again == ["out/photo--a-cat--seed0.png", "out/photo--sheet.png"]
    assert other == ["out/photo--a-cat--seed0--2.png", "out/photo--sheet--2.png"]
    assert of_jpeg == ["out/photo--a-cat--seed0--3.png", "out/photo--sheet--3.png"]
    assert kept == {path: (tmp_path / path).read_bytes() for path in first}
    assert len(set(pictures_in(tmp_path / "out").values())) == 3
    assert record_of(tmp_path / other[0])["sampling"]["guidance_scale"] == 2


def test_overwriting_is_done_when_asked_for(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """--overwrite replaces the file of the same name, and no other (N4)."""
    printed(unitune, "edit", photo, "a cat", *SDEDIT)
    path, _ = printed(unitune, "edit", photo, "a cat", *SDEDIT, "--guidance=2", "--overwrite")

    assert list(pictures_in(tmp_path / "out")) == ["photo--a-cat--seed0.png"]
    assert record_of(tmp_path / path)["sampling"]["guidance_scale"] == 2


def test_two_comparisons_keep_both_results(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """A comparison with other words or seeds leaves an earlier one's pictures and sheet as they are (N4)."""
    lines = printed(unitune, "compare", photo, "a cat", "--methods=sdedit")
    first = {path: (tmp_path / path).read_bytes() for path in lines[:2]}
    again = printed(unitune, "compare", photo, "a cat", "--methods=sdedit", "--no-metadata")[:2]

    assert list(first) == ["out/photo--a-cat--sdedit--seed0.png", "out/photo--a-cat--methods.png"]
    assert again[0] == "out/photo--a-cat--sdedit--seed0--2.png"
    assert first == {path: (tmp_path / path).read_bytes() for path in first}
    assert record_of(tmp_path / lines[0])["method"] == "sdedit"
    assert png_text.texts_of((tmp_path / again[0]).read_bytes()) == {}


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Forty writers of one name, eight at a time, leave forty whole files; those of the same content share one (N4)."""
    program = """
import sys
from pathlib import Path
from unitune_client.cli.outputs import Outputs
start, folder = int(sys.argv[1]), Path(sys.argv[2])
for number in range(start, start + 5):
    print(Outputs(folder, "photo.png").save(b"%05d" % number * 20_000, "a-cat", "seed0"))
print(Outputs(folder, "photo.png").save(b"all alike" * 20_000, "a-cat", "seed1"))
"""
    command = [sys.executable, "-c", program]
    writers = [
        subprocess.Popen([*command, str(start), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for start in range(0, 40, 5)
    ]
    told = [line for writer in writers for line in writer.communicate(timeout=240)[0].splitlines()]

    assert [writer.returncode for writer in writers] == [0] * 8
    made = pictures_in(tmp_path)
    assert {data[:5] for name, data in made.items() if "seed0" in name} == {b"%05d" % number for number in range(40)}
    assert {len(data) for name, data in made.items() if "seed0" in name} == {100_000}
    assert [name for name in made if "seed1" in name] == ["photo--a-cat--seed1.png"]
    assert len(told) == 48 and {Path(path).name for path in told} == set(made)


def test_an_export_replaces_nothing(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """A LoRA or a UNet that is there is refused before the work, and left as it is; --overwrite is the way (N4)."""
    name = "tenants/default/tunings/t-0123456789"
    (tmp_path / "mine" / "unet").mkdir(parents=True)
    (tmp_path / "mine" / "lora.safetensors").write_bytes(b"mine")
    for kind, there in (("diffusers", "unet"), ("kohya", "lora.safetensors")):
        done = unitune("tunings", "export", name, "--format", kind, "-o", "mine")

        assert done.returncode == 2
        assert f"mine/{there} is there" in done.stderr and "--overwrite" in done.stderr
    assert (tmp_path / "mine" / "lora.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "options",
    [
        (*TUNED, "--seed=3", "--negative-prompt=fog", "--scheduler=euler"),
        (*TUNED, "--super-resolution", "--guidance-interval", "0.1", "9"),
        (*TUNED, "--super-resolution", "192", "--seed=2"),
        ("--fast", "--strength=1", "--updates=2"),
        (*SDEDIT, "--repeats=2", "--mask-text=cat"),
        (*TUNED, "--mask=mask.png", "--only-masked", "--mask-blur=1"),
        ("--method=prompt_to_prompt", "--base-prompt=a dog", "--weight", "cat", "2", "--blend=cat", "--steps=3"),
        ("--method=prompt_to_prompt", "--base-prompt=a dog", "--inversion=null_text", "--steps=3", "--updates=1"),
        ("--method=imagic", "--embedding-updates=1", "--eta=0.8", *TUNED[:1], "--updates=2"),
        ("--method=dreambooth", "--class-noun=cat", "--class-images=1", "--photo=mask.png", *TUNED),
        ("--method=textual_inversion", "--initial-word=cat", "--vectors=2", *TUNED),
    ],
    ids=lambda options: "-".join(option.strip("-") for option in options if option.startswith("--m") or "=" in option)[
        :60
    ],
)
def test_a_picture_makes_itself_again(unitune: Unitune, photo: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """`edit PHOTO --like PICTURE` gives the same bytes, of every method, with masks and super-resolution."""
    mask = Image.new("L", (60, 44))
    mask.paste(255, (10, 10, 40, 30))
    mask.save(tmp_path / "mask.png")
    files = [option for option in options if option.endswith("=mask.png")]
    prompt = "a beikkpic cat" if options[0].endswith(("dreambooth", "inversion")) else "a cat on a beach"

    path, sheet = printed(unitune, "edit", photo, prompt, *options)
    again = unitune("edit", photo, "--like", path, *files)

    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == [path, sheet]  # of the same content, so by the same names
    assert len(pictures_in(tmp_path / "out")) == 1
    assert "will be another" not in again.stderr


def test_like_takes_all_but_what_is_given(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """Another prompt, seed or guidance on the command line wins; all else is the picture's, its tuning included."""
    path, _ = printed(unitune, "edit", photo, "a cat", *TUNED, "--seed=5", "--rare-tokens=xyz")
    other, _ = printed(unitune, "edit", photo, "a dog", "--like", path, "--guidance=2", "--updates=3")
    bare, _ = printed(unitune, "edit", photo, "--like", path, "--method=sdedit")

    was, now, sdedit = (record_of(tmp_path / one) for one in (path, other, bare))
    assert (now["prompt"], now["seed"]) == ("a dog", 5)
    assert now["sampling"] == was["sampling"] | {"guidance_scale": 2}
    assert now["tuning"]["config"] == was["tuning"]["config"] | {"updates": 3}
    assert (sdedit["prompt"], sdedit["seed"], sdedit["method"]) == ("a cat", 5, "sdedit")
    assert sdedit["sampling"]["num_inference_steps"] == 50 and "tuning" not in sdedit


def test_like_warns_of_what_makes_another_picture(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """Another photo or base model is told; a mask that is missing, or a file that says nothing, is refused."""
    Image.new("L", (60, 44), 255).save(tmp_path / "mask.png")
    path, _ = printed(unitune, "edit", photo, "a cat", *SDEDIT, "--mask=mask.png", "-o", "o")
    record = record_of(tmp_path / path)
    record["base_model"]["digest"] = "0" * 64
    plain = photo.read_bytes()
    (tmp_path / "other.png").write_bytes(png_text.with_texts(plain, {"unitune": json.dumps(record)}))
    newer = {"unitune": json.dumps(record | {"version": 2})}
    (tmp_path / "newer.png").write_bytes(png_text.with_texts(plain, newer))
    Image.new("RGB", (60, 44), "red").save(tmp_path / "red.png")

    warned = unitune("edit", "red.png", "--like", "other.png", "--mask", "red.png")
    assert warned.returncode == 0, warned.stderr
    for words in ("PHOTO is not the file", "was made with the base model", "--mask is not the file"):
        assert words in warned.stderr
    for arguments, words in (
        (("--like", path), "--mask is missing"),
        (("--like", photo), "does not say how it was made"),
        (("--like", "newer.png"), "another version"),
        (("--like", "nothing.png"), "No such file"),
        ((), "PROMPT is missing"),
    ):
        refused = unitune("edit", photo, *arguments)
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr


def test_show_tells_how_a_picture_was_made(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """Readably, and as JSON; others' pictures in one line; what a terminal would obey is not printed."""
    path, _ = printed(unitune, "edit", photo, "一只猫", *TUNED, "--seed=3")
    shown = printed(unitune, "show", path)
    plain, theirs = photo.read_bytes(), {"parameters": "a \x1b[31mcat\nSteps: 3"}
    (tmp_path / "theirs.png").write_bytes(png_text.with_texts(plain, theirs))
    (tmp_path / "damaged.png").write_bytes(png_text.with_texts(plain, {"unitune": '{"version": 1, "prompt": 3}'}))
    (tmp_path / "text.png").write_text("no picture")

    assert any(line.split() == ["prompt", "一只猫"] for line in shown)
    assert any(line.split() == ["seed", "3"] for line in shown)
    assert any("num_inference_steps 3" in line for line in shown) and any("updates 2" in line for line in shown)
    assert json.loads(printed(unitune, "show", path, "--json")[0]) == record_of(tmp_path / path)
    assert "a \\x1b[31mcat" in "\n".join(printed(unitune, "show", "theirs.png"))
    for name, words in (("photo.png", "does not say how it was made"), ("damaged.png", "damaged"), ("text.png", "PNG")):
        refused = unitune("show", name)
        assert refused.returncode == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_metadata_is_left_out_on_request(unitune: Unitune, photo: Path, tmp_path: Path) -> None:
    """--no-metadata gives the same pixels in a file that says nothing (M42)."""
    path, _ = printed(unitune, "edit", photo, "a cat", *SDEDIT)
    bare, _ = printed(unitune, "edit", photo, "a cat", *SDEDIT, "--no-metadata", "-o", "bare")

    assert png_text.texts_of((tmp_path / bare).read_bytes()) == {}
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / one)) for one in (path, bare)))


def tunings_of(services: LocalServices) -> int:
    """How many tunings there are."""
    with Client(services.address) as client:
        return len(list(client.list_tunings()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a cat", "b" * 2001), "2001 characters"),
        (("a cat", "--method=imagic", "--eta=0.5", "--mask-source=given"), "--mask"),
        (("a beikkpic cat", "a cat", "--method=dreambooth", "--class-noun=cat"), "PROMPT"),
        (("a xyz", "--method=textual_inversion", "--rare-tokens=xyz", "--initial-word=two words"), "two words"),
        (
            ("a cat", "--method=prompt_to_prompt", "--inversion=null_text", "--base-prompt=a dog", "--guidance=1"),
            "guidance",
        ),
        (("a cat", "--inverted", "--mask-text=cat", "--scheduler=euler"), "inverted"),
        (("a cat", "--super-resolution-updates=3"), "--super-resolution-updates"),
        (("a cat", "--super-resolution-2-updates=3"), "--super-resolution-2-updates"),
        (("a cat", "--super-resolution", "1024"), "--super-resolution"),
        (("a cat", "-o", "photo.png/out"), "--out"),
        (("a cat", "-o", "/proc/1/nowhere"), "--out"),
    ],
)
def test_what_an_edit_is_refused_for_costs_no_tuning(
    unitune: Unitune, photo: Path, services: LocalServices, arguments: tuple[str, ...], words: str
) -> None:
    """Wrong settings, words and folders are told before a tuning is begun, whichever prompt they are of (N10)."""
    if "super" in arguments[-1]:
        Image.open(photo).resize((20, 20)).save(photo)
    before = tunings_of(services)
    refused = unitune("edit", photo, *arguments)

    assert refused.returncode == 2 and words in refused.stderr, refused.stderr
    assert "tuning:" not in refused.stderr and tunings_of(services) == before


def test_a_folder_that_nothing_can_be_written_into_is_told_first(
    unitune: Unitune, photo: Path, tmp_path: Path, services: LocalServices
) -> None:
    """A full disk is noticed before the tuning, not by the first picture; edit and compare alike (N10)."""
    before = tunings_of(services)
    with mounted(tmp_path / "full", "4k") as full:
        fill(full)
        for command in ("edit", "compare"):
            done = unitune(command, photo, "a cat", "-o", "full")

            assert done.returncode == 2 and "--out is 'full'" in done.stderr, done.stderr
            assert "No space left" in done.stderr
            assert [path.name for path in full.iterdir()] == ["ballast"]
    assert tunings_of(services) == before


@pytest.mark.parametrize("stem", ["x" * 240, "一只猫在沙滩上" * 10, "🐱" * 60])
def test_a_long_name_is_shortened(unitune: Unitune, photo: Path, tmp_path: Path, stem: str) -> None:
    """A photo whose name leaves no room is edited all the same; names stay apart by a digest (N10)."""
    for last in "ab":
        (tmp_path / f"{stem}{last}.png").write_bytes(photo.read_bytes())
    seed = 2**63 - 1
    names = [
        Path(printed(unitune, "edit", f"{stem}{last}.png", "b" * 200, *SDEDIT, f"--seed={seed}")[0]).name
        for last in "ab"
    ]

    made = pictures_in(tmp_path / "out")
    assert set(names) == set(made) and len(made) == 2
    assert all(name.startswith(stem[:10]) and name.endswith(f"--seed{seed}.png") for name in made)


def test_warnings_and_refusals_of_every_prompt_come_first(photo: Path, tmp_path: Path) -> None:
    """What the server says of any prompt is told before the tuning, once; a refused prompt begins none (N10)."""
    with scripted_server.running() as server:
        ran = ("edit", photo, "a cat", "a zebra", "--updates=64", "-o", tmp_path, "--address", server.address)
        arguments = [str(argument) for argument in ran]
        needed = tuning_config(updates=64)
        plain = scripted_server.edit_events([], tuning=needed)[::4]
        accepted = scripted_server.edit_events([], warnings=["unknown: zebra"], tuning=needed)[::4]
        for _ in range(2):
            server.script("GetServerInfo", scripted_server.server_info())
            server.script("UploadImage", scripted_server.uploaded)
        server.script("CheckEdit", plain, accepted)
        server.script("CreateTuning", scripted_server.tuning("QUEUED"))
        server.script("WatchTuning", scripted_server.tuning_events("queued", "started", "progress", "ready"))
        server.script("Edit", scripted_server.edit_events([photo.read_bytes()]))
        server.script("Edit", scripted_server.edit_events([photo.read_bytes()], warnings=["unknown: zebra"]))
        done = CliRunner().invoke(main, arguments)
        server.script("CheckEdit", plain, InvalidField("prompt", "a zebra", "no"))
        refused = CliRunner().invoke(main, arguments)
        checks = server.requests["CheckEdit"]

    assert done.exit_code == 0, done.output
    assert done.stderr.index("warning: unknown: zebra") < done.stderr.index("tuning: ")
    assert done.stderr.count("unknown: zebra") == 1
    assert [(check.prompt, check.tuning_config.updates, check.WhichOneof("target")) for check in checks[:2]] == [
        ("a cat", 64, "image"),
        ("a zebra", 64, "image"),
    ]
    assert refused.exit_code == 2 and "PROMPT is 'a zebra'" in refused.stderr  # CreateTuning had one answer


def font_of(signs: str, folder: Path) -> None:
    """A font that has these signs as bars of different widths, and a box for all others."""
    glyphs = {".notdef": 700, **{f"g{ord(sign)}": 300 + 40 * index for index, sign in enumerate(signs)}}
    drawn = {}
    for name, width in glyphs.items():
        pen = TTGlyphPen(None)
        pen.moveTo((50, 0))
        for corner in ((50, 700), (width, 700), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
        drawn[name] = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(sign): f"g{ord(sign)}" for sign in signs})
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics({name: (width + 100, 50) for name, width in glyphs.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    folder.mkdir(parents=True, exist_ok=True)
    builder.save(folder / "bars.ttf")


def sheet_of(path: Path) -> Image.Image:
    """A sheet's caption of its first edit: the pixels below the second panel."""
    sheet = Image.open(io.BytesIO(path.read_bytes())).convert("L")
    height = 44 * 4
    return sheet.crop((12 + 240 + 12, 12 + height + 2, 12 + 240 + 12 + 240, sheet.height))


def test_a_caption_without_a_font_is_a_number_that_is_told(
    unitune_process: Unitune, photo: Path, tmp_path: Path
) -> None:
    """Where no font has its letters the sheet says `prompt 1`, and the terminal which that is (N21)."""
    nowhere = {"XDG_DATA_DIRS": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "PATH": str(tmp_path)}
    chinese = unitune_process("edit", photo, "一只猫", *SDEDIT, env=nowhere)
    latin = unitune_process("edit", photo, "prompt 1", *SDEDIT, "-o", "latin", env=nowhere)

    assert chinese.returncode == latin.returncode == 0, chinese.stderr
    assert "prompt 1" in chinese.stderr and "一只猫" in chinese.stderr
    captions = [sheet_of(tmp_path / folder / "photo--sheet.png") for folder in ("out", "latin")]
    assert captions[0].tobytes() == captions[1].tobytes()


def test_a_caption_uses_a_font_that_has_its_letters(unitune_process: Unitune, photo: Path, tmp_path: Path) -> None:
    """A font of the user's own with Chinese letters is found, and the caption drawn with it (N21)."""
    font_of("一只猫 abcdefghijklmnopqrstuvwxyz", tmp_path / "data" / "fonts")
    own = {"XDG_DATA_DIRS": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "PATH": str(tmp_path)}
    done = unitune_process("edit", photo, "一只猫", *SDEDIT, env=own)

    assert done.returncode == 0 and "no font" not in done.stderr, done.stderr
    caption = np.asarray(sheet_of(tmp_path / "out" / "photo--sheet.png"))
    columns = (caption < 128).any(axis=0)
    edges = np.flatnonzero(np.diff(columns.astype(int)))
    widths = (edges[1::2] - edges[::2])[:3]  # of the prompt; the working size comes after it
    assert len(widths) == 3 and (np.diff(widths) >= 0).all() and widths[0] < 700 * 15 / 1000  # bars, not boxes
