"""Texts in PNG files, against Pillow, which reads and writes them by itself."""

import io
import zlib

import pytest
from PIL import Image, PngImagePlugin

from unitune import png_text


def png(texts: PngImagePlugin.PngInfo | None = None, size: tuple[int, int] = (31, 7)) -> bytes:
    """A PNG file by Pillow."""
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, "PNG", pnginfo=texts)
    return file.getvalue()


TEXTS = {
    "parameters": "ein Bär, größer\nSteps: 4",
    "unitune": '{"prompt":"\\u732b"}',
    "chinese": "一只猫 🐱",
    "empty": "",
}


def test_pillow_reads_what_is_put_in() -> None:
    """Every text comes back by Pillow and by ourselves, Latin-1 as tEXt, others as iTXt; the pixels stay."""
    plain = png()
    made = png_text.with_texts(plain, TEXTS)
    read = Image.open(io.BytesIO(made))
    read.load()

    assert TEXTS == read.text == png_text.texts_of(made)
    assert isinstance(read.text["chinese"], PngImagePlugin.iTXt) and not isinstance(read.text["unitune"], tuple)
    assert read.tobytes() == Image.open(io.BytesIO(plain)).tobytes()
    assert (3, 1) == (made.count(b"tEXt"), made.count(b"iTXt"))
    assert png_text.size_of(made) == (31, 7)


def test_the_beginning_of_a_file_is_enough() -> None:
    """Of a file that comes in pieces the first 33 bytes take the texts; the rest may follow as it is."""
    plain = png()

    assert png_text.with_texts(plain[:33], TEXTS) + plain[33:] == png_text.with_texts(plain, TEXTS)
    for cut in (b"", plain[:8], plain[:32], b"\xff\xd8\xff" + plain):
        with pytest.raises(png_text.NotPng):
            png_text.with_texts(cut, TEXTS)


def test_what_pillow_puts_in_is_read() -> None:
    """tEXt, zTXt and iTXt, packed and not; of two with one keyword the first."""
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "plain")
    info.add_text("b", "packed " * 99, zip=True)
    info.add_itxt("c", "猫")
    info.add_itxt("d", "猫" * 99, zip=True)
    info.add_text("a", "later")

    assert png_text.texts_of(png(info)) == {"a": "plain", "b": "packed " * 99, "c": "猫", "d": "猫" * 99}


def test_a_text_that_unpacks_to_very_much_is_left_out() -> None:
    """A bomb of 100 MB costs no memory; the other texts are read."""
    info = PngImagePlugin.PngInfo()
    bomb = zlib.compress(bytes(100_000_000), 9)
    info.add(b"zTXt", b"bomb\0\0" + bomb)
    info.add(b"iTXt", b"other\0\1\0\0\0" + bomb)
    info.add(b"tEXt", b"long\0" + b"x" * (png_text.MAX_TEXT_BYTES + 1))
    info.add(b"zTXt", b"damaged\0\0" + bomb[:50])
    info.add(b"iTXt", b"short")
    info.add_text("good", "text")

    assert png_text.texts_of(png(info)) == {"good": "text"}


def test_a_damaged_file_is_told() -> None:
    """No PNG, cut short at any place, or with a wrong checksum: NotPng, and nothing else."""
    whole = png_text.with_texts(png(), {"unitune": "{}"})
    for length in range(len(whole) - 4):
        with pytest.raises(png_text.NotPng):
            png_text.texts_of(whole[:length])
    at = whole.index(b"unitune")
    with pytest.raises(png_text.NotPng, match="damaged"):
        png_text.texts_of(whole[:at] + b"X" + whole[at + 1 :])
    endless = whole[:33] + b"\0\0\0\0aaAa\x00\x00\x00\x00"
    with pytest.raises(png_text.NotPng):
        png_text.texts_of(endless)


@pytest.mark.parametrize("keyword", ["", "x" * 80, " x", "猫", "a\nb"])
def test_a_keyword_that_the_format_does_not_take_is_refused(keyword: str) -> None:
    """A ValueError, not a broken file."""
    with pytest.raises(ValueError, match=r"keyword|codec"):
        png_text.with_texts(png(), {keyword: "text"})
