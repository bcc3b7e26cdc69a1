"""Pictures that users gave and what they saw: through the command line and the SDK, against the real services."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, PngImagePlugin

from tests.colour_profiles import rgb_profile
from tests.picture_files import file_of
from unitune_client import Client, EditAccepted, EditedImage, InvalidArgument, InvalidField, ResourceExhausted
from unitune_client.cli.main import main
from unitune_client.cli.sheet import contact_sheet
from unitune_client.local.services import LocalServices

FAST = {"method": "sdedit", "num_inference_steps": 2, "strength": 1.0}  # an edit without a tuning


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Random colours, the same every time."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels(image: EditedImage) -> np.ndarray:
    """Of an edited picture."""
    return np.asarray(Image.open(io.BytesIO(image.png)))


def warnings_of(client: Client, picture: bytes) -> Sequence[str]:
    """What an edit of a picture is accepted with."""
    with_close = client.edit(picture, "a dog", **FAST)
    accepted = next(event for event in with_close if isinstance(event, EditAccepted))
    with_close.close()
    return accepted.warnings


def unitune(services: LocalServices, *arguments: object) -> Result:
    """`unitune ARGUMENTS --address ADDRESS`."""
    return CliRunner().invoke(main, [*map(str, arguments), "--address", services.address])


def edit_command(services: LocalServices, photo: Path, out: Path, *more: object) -> Result:
    """An edit by the command line that tunes nothing."""
    fast = ("--method", "sdedit", "--steps", 2, "--strength", 1)
    return unitune(services, "edit", photo, "a dog", "-o", out, *fast, *more)


def test_a_jpeg_of_many_phones_is_edited(services: LocalServices, tmp_path: Path) -> None:
    """A JPEG that is an MPO is taken as its first picture (N1)."""
    photo = tmp_path / "phone.jpg"
    photo.write_bytes(file_of(noise((60, 44)), "MPO", save_all=True, append_images=[noise((60, 44), 1)]))

    done = edit_command(services, photo, tmp_path / "out")

    assert done.exit_code == 0, done.output
    assert "mistake" not in done.output


def test_a_large_noisy_photo_comes_back(services: LocalServices, tmp_path: Path) -> None:
    """12 megapixels with a mask and --only-masked: the result of over 16 MiB is whole, and kept outside (N3, M44)."""
    large_photo = file_of(noise((4000, 3000)), "JPEG", quality=85)
    assert 7 << 20 < len(large_photo) < 16 << 20
    photo, mask, out = tmp_path / "photo.jpg", tmp_path / "mask.png", tmp_path / "out"
    photo.write_bytes(large_photo)
    drawn = Image.new("L", (4000, 3000))
    drawn.paste(255, (1000, 1000, 1500, 1400))
    drawn.save(mask)

    done = edit_command(services, photo, out, "--mask", mask, "--only-masked")

    assert done.exit_code == 0, done.output
    edited = next(path for path in out.glob("*.png") if "sheet" not in path.name)
    assert edited.stat().st_size > 16 << 20
    found, given = np.array(Image.open(edited)), np.asarray(Image.open(io.BytesIO(large_photo)).convert("RGB"))
    inside = found[1000:1400, 1000:1500].copy()
    found[1000:1400, 1000:1500] = given[1000:1400, 1000:1500]
    np.testing.assert_array_equal(found, given)
    assert not np.array_equal(inside, given[1000:1400, 1000:1500])
    assert any("sheet" in path.name for path in out.glob("*.png"))


def test_the_sheet_shows_what_was_edited() -> None:
    """Deep grey is not white, and what is transparent does not show the colour under it (N7)."""
    deep = Image.fromarray(np.full((44, 60), 0x4040, np.uint16))
    clear = Image.new("RGBA", (60, 44), (200, 0, 0, 0))

    for image, colour in ((deep, (64, 64, 64)), (clear, (255, 255, 255))):
        sheet = contact_sheet([(file_of(image), [("the same", file_of(Image.new("RGB", (60, 44), colour)))])])
        counts = {colour: count for count, colour in sheet.getcolors(1 << 20)}
        panel = 240 * 176  # each pixel four times as wide and as high
        assert counts[colour] >= 2 * panel  # picture and edit
        assert counts[0, 0, 0] >= panel  # and no difference between them


@pytest.mark.parametrize("side", [600, 1400])
def test_a_mask_of_a_photograph_is_taken_however_large(client: Client, side: int, tmp_path: Path) -> None:
    """A luminosity mask above 768 KiB, and one above 4 MiB with colours, is uploaded by itself (N9)."""
    light = noise((side, side), 3)
    mask = tmp_path / "mask.png"
    mask.write_bytes(file_of(light if side == 1400 else light.resize((side, side)).convert("RGB"), compress_level=1))
    assert mask.stat().st_size > (4 << 20 if side == 1400 else 768 << 10)

    result = client.edit_to_end(file_of(Image.new("RGB", (side, side), "teal")), "a dog", mask=mask, **FAST)

    used = np.asarray(Image.open(io.BytesIO(result.images[0].mask or b"")))
    assert np.abs(used.astype(int) - np.asarray(light.convert("L"))).max() <= 1


def test_a_large_mask_of_the_wrong_size_or_kind_is_refused_by_name(client: Client, tmp_path: Path) -> None:
    """The error names the mask and what it is; nothing was edited (N9, N13)."""
    picture = file_of(Image.new("RGB", (60, 44), "teal"))

    with pytest.raises(InvalidArgument) as wrong_size:
        client.edit_to_end(picture, "a dog", mask=file_of(noise((600, 600)), compress_level=1), **FAST)
    with pytest.raises(InvalidField) as wrong_kind:
        client.edit_to_end(picture, "a dog", mask=file_of(noise((900, 900)), "BMP"), **FAST)

    assert (wrong_size.value.field, wrong_size.value.metadata["value"]) == ("mask_image", "600x600 pixels")
    assert (wrong_kind.value.field, wrong_kind.value.metadata["value"]) == ("mask", "a BMP")


def test_a_request_above_the_largest_message_is_told_as_that(client: Client) -> None:
    """gRPC's own refusal becomes an error in words with a remedy (N9)."""
    with pytest.raises(ResourceExhausted, match="upload pictures and masks, and shorten texts") as refusal:
        client.edit_to_end(file_of(Image.new("RGB", (60, 44))), "a dog " * 1_000_000, **FAST)

    assert refusal.value.reason == "MESSAGE_TOO_LARGE"


def test_a_png_with_a_workflow_in_it_is_edited(services: LocalServices, tmp_path: Path) -> None:
    """Over a megabyte of compressed text, as other tools write it, is in nobody's way (N12)."""
    photo, about = tmp_path / "workflow.png", PngImagePlugin.PngInfo()
    about.add_text("workflow", '{"nodes": 1}' * (1 << 18), zip=True)
    noise((60, 44)).save(photo, pnginfo=about)

    done = edit_command(services, photo, tmp_path / "out")

    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("cat.gif", file_of(noise((60, 44)), "GIF"), "a GIF"),
        ("cat.png", file_of(noise((60, 44)), "TIFF"), "a TIFF"),
        ("notes.txt", b"buy milk\n", "text"),
        ("paper.pdf", b"%PDF-1.7" + bytes(17 << 20), "a PDF"),
        ("empty.png", b"", "an empty file"),
    ],
)
def test_a_wrong_kind_of_file_is_named(
    services: LocalServices, client: Client, tmp_path: Path, name: str, data: bytes, kind: str
) -> None:
    """Command line and SDK say which file, what it is and what is taken (N13)."""
    photo = tmp_path / name
    photo.write_bytes(data)

    done = edit_command(services, photo, tmp_path / "out")
    assert done.exit_code != 0
    assert f"it is {kind}; give a PNG, JPEG, WebP or AVIF picture" in done.output and name in done.output
    if len(data) < 16 << 20:
        with pytest.raises(InvalidArgument, match=f"{kind}: send a PNG, JPEG, WebP or AVIF picture"):
            client.upload_image(photo)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (file_of(noise((60, 44))) + bytes(16 << 20), "UPLOAD_TOO_LARGE"),
        (b"%PDF-1.7" + bytes(17 << 20), "IMAGE_UNDECODABLE"),
    ],
    ids=["picture", "pdf"],
)
def test_a_file_that_is_too_large_is_refused_as_that(client: Client, data: bytes, reason: str) -> None:
    """The SDK says how many bytes may be sent, and never what grpc makes of a stream that was ended (N13)."""
    with pytest.raises(InvalidArgument, match="send a") as refusal:
        client.upload_image(data)

    assert refusal.value.reason == reason


def test_what_a_picture_loses_is_told(client: Client) -> None:
    """Further frames, transparency and missing colour are told, by an edit and at the upload (N22, N23)."""
    frames = [Image.new("RGB", (60, 44), colour) for colour in ("teal", "red")]
    animated = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=100)
    clear = file_of(Image.new("RGBA", (60, 44), (200, 0, 0, 40)))

    assert ["animated" in warning for warning in warnings_of(client, animated)] == [True]
    assert ["transparent" in warning for warning in warnings_of(client, clear)] == [True]
    grey = file_of(Image.new("L", (60, 44), 99))

    assert ["the picture is grey" in warning for warning in warnings_of(client, grey)] == [True]
    assert warnings_of(client, file_of(frames[0])) == ()
    assert client.upload_image(animated).warnings == tuple(warnings_of(client, animated))


def test_what_a_photograph_carries_comes_back_with_its_edit(services: LocalServices, tmp_path: Path) -> None:
    """Display P3, transparency and a second pass: what the mask keeps is the file's own to the bit, what it edits is
    another picture; place and camera are left behind (M41)."""
    picture = noise((15, 11), 4).resize((120, 88), Image.Resampling.BICUBIC)
    picture.putalpha(Image.linear_gradient("L").resize((120, 88)))
    exif, profile = Image.Exif(), rgb_profile("display_p3")
    exif[0x010F] = "A Camera Maker"
    photo, mask, out = tmp_path / "photo.png", tmp_path / "mask.png", tmp_path / "out"
    photo.write_bytes(file_of(picture, icc_profile=profile, exif=exif.tobytes()))
    drawn = Image.new("L", (120, 88))
    drawn.paste(255, (10, 40, 50, 80))
    drawn.save(mask)

    options = ("--mask", mask, "--second-pass", "--second-pass-strength", 0.5)
    done = edit_command(services, photo, out, *options)

    assert done.exit_code == 0, done.output
    assert "results keep its transparency" in done.output
    file = next(path for path in out.glob("*.png") if "sheet" not in path.name)
    result = Image.open(file)
    assert (result.mode, result.info["icc_profile"]) == ("RGBA", profile)
    assert b"A Camera Maker" not in file.read_bytes() and "parameters" in result.info
    found, own, inside = np.array(result), np.asarray(picture), np.asarray(drawn) > 0
    np.testing.assert_array_equal(found[~inside], own[~inside])
    np.testing.assert_array_equal(found[..., 3], own[..., 3])
    assert (found[inside] != own[inside]).any(axis=1).mean() > 0.5

    told = json.loads(result.info["unitune"])["sampling"]
    assert (told["second_pass"], told["second_pass_strength"], told["second_pass_scale"]) == (True, 0.5, 2)
    again = edit_command(services, photo, tmp_path / "again", "--mask", mask, "--like", file)
    assert again.exit_code == 0, again.output
    assert next(path for path in (tmp_path / "again").glob("*seed0.png")).read_bytes() == file.read_bytes()


def test_a_small_file_of_many_pixels_costs_the_gateway_little(services: LocalServices) -> None:
    """A WebP of 16383 x 3900 and a PNG of 64,000,000 x 1 never take it above 300 MB (R4)."""
    status = Path(f"/proc/{services._services['gateway'].process.pid}/status")
    webp = file_of(Image.new("RGB", (16_383, 3_900)), "WEBP", quality=1, method=0)
    png = file_of(Image.new("L", (64_000_000, 1)), compress_level=1)

    for data, remedy in ((webp, "24 megapixels as WebP"), (png, "16384 pixels a side")):
        with Client(services.address) as client, pytest.raises(InvalidArgument) as refusal:
            client.upload_image(data)
        assert refusal.value.reason == "IMAGE_TOO_LARGE" and remedy in refusal.value.metadata["remedy"]
    peak_kib = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_kib < 300_000


def test_the_limits_of_pictures_are_told(client: Client, services: LocalServices) -> None:
    """By the server, and in words by `unitune doctor` (R4)."""
    limits = client.server_info().limits

    assert (limits.upload_side, limits.upload_pixels, limits.upload_webp_pixels) == (16_384, 64_000_000, 24_000_000)
    assert (
        "64 megapixels (24 as WebP, 25 as AVIF or HEIC) and 16384 pixels a side" in unitune(services, "doctor").output
    )
