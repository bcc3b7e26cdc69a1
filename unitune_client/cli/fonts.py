"""Fonts for captions. Pillow brings one for ASCII and Western letters; others are looked for on this machine.

None is shipped: one with Chinese letters has megabytes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Looked at first, since they have many letters, and so that a machine's captions have one look.
WIDE = ("notosans-regular", "dejavusans", "notosanscjk-regular", "notosansjp", "wqy-", "droidsansfallback", "unifont")
MOST_FILES = 500  # looked at without fontconfig, each is opened
FONTCONFIG_S = 20.0
NO_LETTER = "\U0010fffd"  # for private use, so that fonts show it as they show what they do not have


def font_for(text: str, size: int) -> Font | None:
    """A font of this size that has all letters of a text; None if there is none here."""
    if text.isascii():
        return ImageFont.load_default(size)
    return _font("".join(sorted(set(text))), size)


def shown_in_part(text: str, size: int) -> str:
    """A text with question marks for what Pillow's own font does not have."""
    font = ImageFont.load_default(size)
    return "".join(sign if sign.isspace() or _has(font, sign) else "?" for sign in text)


@cache
def _font(signs: str, size: int) -> Font | None:
    own = ImageFont.load_default(size)
    if _has(own, signs):
        return own
    for file in _candidates(signs):
        try:
            font = ImageFont.truetype(str(file), size)
            if _has(font, signs):
                return font
        except OSError:  # of pictures alone, as fonts of emoji are, or damaged
            continue
    return None


def _has(font: Font, signs: str) -> bool:
    """Whether each sign has a form of its own: a font shows the same box for all signs that it lacks."""
    box = _form(font, NO_LETTER)
    return all(sign.isspace() or _form(font, sign) not in (box, None) for sign in signs)


def _form(font: Font, sign: str) -> tuple[tuple[int, int], bytes] | None:
    mask = font.getmask(sign)
    return (mask.size, bytes(mask)) if all(mask.size) else None


def _candidates(signs: str) -> Iterator[Path]:
    """Files of fonts: those that fontconfig says have the signs, then what lies in the usual folders."""
    yield from _from_fontconfig(signs)
    files = [file for folder in _folders() for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    yield from sorted(files, key=_suits)[:MOST_FILES]


def _suits(file: Path) -> tuple[bool, bool, str]:
    """Sorts files: fonts of many letters first, and upright ones of usual weight before others."""
    name = file.name.lower()
    return (
        not name.startswith(WIDE),
        any(style in name for style in ("bold", "italic", "light", "mono", "oblique", "thin")),
        str(file),
    )


def _from_fontconfig(signs: str) -> Iterator[Path]:
    letters = " ".join(f"{ord(sign):x}" for sign in signs if not sign.isspace())
    try:
        command = ["fc-list", f":charset={letters}", "file"]
        listed = subprocess.run(command, capture_output=True, timeout=FONTCONFIG_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # it is not everywhere
        return
    files = [Path(os.fsdecode(line.rstrip().rstrip(b":"))) for line in listed.splitlines() if line]
    yield from sorted(files, key=_suits)


def _folders() -> list[Path]:
    """The folders where systems keep fonts, as far as they exist."""
    home = Path.home()
    if sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
    elif sys.platform == "darwin":
        folders = [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    else:
        data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        own = os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")
        folders = [Path(one, "fonts") for one in (own, *data.split(":"))]
    return [folder for folder in folders if folder.is_dir()]
