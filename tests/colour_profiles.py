"""Colour profiles to test with, made here so that none is copied from anywhere."""

import struct

# Chromaticities of the primaries, red, green and blue, adapted to D50 (columns of the matrix to XYZ).
_PRIMARIES = {
    "srgb": ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)),
    "display_p3": ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)),
    "adobe_rgb": ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
}
_WHITE = (0.9642, 1.0, 0.8249)  # D50


def rgb_profile(primaries: str, gamma: float = 2.2) -> bytes:
    """An ICC profile (version 2) of a display with these primaries."""
    colours = {
        name: _xyz(value) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), _PRIMARIES[primaries], strict=True)
    }
    curves = {name: _gamma(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"RGB ", b"XYZ ", {b"wtpt": _xyz(_WHITE), **colours, **curves})


def grey_profile(gamma: float = 1.8) -> bytes:
    """An ICC profile of grey with this gamma."""
    return _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(_WHITE), b"kTRC": _gamma(gamma)})


def print_profile() -> bytes:
    """An ICC profile of print colours: a table from the corners of CMYK to Lab, and no way back."""
    lab = []
    for corner in range(16):
        cyan, magenta, yellow, black = (corner >> shift & 1 for shift in (3, 2, 1, 0))
        light = (1 - black) * (100 - 25 * cyan - 35 * magenta - 8 * yellow)
        red, blue = (1 - black) * (50 * magenta - 30 * cyan), (1 - black) * (60 * yellow - 40 * cyan)
        lab += [round(light * 2.55), round(red + 128), round(blue + 128)]
    identity = b"".join(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536) for _ in range(1))
    table = b"mft1" + bytes(4) + struct.pack(">BBBB", 4, 3, 2, 0) + identity
    table += bytes(range(256)) * 4 + bytes(lab) + bytes(range(256)) * 3
    return _profile(b"CMYK", b"Lab ", {b"wtpt": _xyz(_WHITE), b"A2B0": table}, device=b"prtr")


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _profile(colours: bytes, connection: bytes, tags: dict[bytes, bytes], device: bytes = b"mntr") -> bytes:
    """Header, table of tags and their data (ICC.1:2001-04, section 6)."""
    about = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": about, b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content
    size = 128 + len(table) + len(data)
    header = struct.pack(">I4sI", size, b"test", 0x02400000) + device + colours + connection + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(struct.pack(">i", round(value * 65536)) for value in _WHITE)
    return header + bytes(128 - len(header)) + table + data
