"""Paint a scene: sky, place, stickers with their shadows, fog, light, style; about a millisecond each.

Everything is painted at twice the size and averaged down, so that edges are soft. Lengths in the code are for the
canvas of a 64 px picture, which is 128 wide. For a larger picture they are multiplied, so that it shows the same scene,
aligned to the pixel.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stickerbook.stickers import sticker
from stickerbook.styles import STYLE
from stickerbook.world import NONE, Scene

SIDE = 64
CANVAS = 2 * SIDE

Colour = tuple[float, float, float]
Ink = tuple[int, int, int] | int

SKY: dict[str, tuple[Colour, Colour]] = {  # at the top, at the horizon
    "day": ((78, 150, 222), (196, 226, 244)),
    "sunset": ((116, 92, 158), (252, 166, 92)),
    "night": ((8, 12, 40), (36, 46, 92)),
}
LIGHT: dict[str, Colour] = {"day": (1, 1, 1), "sunset": (1.0, 0.80, 0.66), "night": (0.40, 0.46, 0.70)}
STICKER_LIGHT: dict[str, Colour] = {"day": (1, 1, 1), "sunset": (1.0, 0.86, 0.74), "night": (0.66, 0.70, 0.88)}
GROUND: dict[str, tuple[Colour, Colour]] = {  # at the horizon, at the bottom
    "beach": ((238, 214, 160), (214, 178, 116)),
    "city": ((120, 120, 126), (84, 84, 92)),
    "forest": ((62, 110, 52), (38, 72, 34)),
    "meadow": ((134, 196, 80), (84, 152, 52)),
    "sea": ((72, 142, 196), (24, 84, 150)),
    "snow": ((248, 250, 254), (214, 226, 240)),
    "desert": ((236, 182, 104), (206, 134, 62)),
    "room": ((176, 122, 78), (134, 84, 50)),
}
WALL: Colour = (232, 214, 196)
FOG: dict[str, Colour] = {"day": (214, 220, 226), "sunset": (226, 186, 164), "night": (74, 82, 106)}
BACKGROUND_SCALE = 0.75  # of a second object behind the first, against one beside it


def render(scene: Scene, side: int = SIDE) -> np.ndarray:
    """The picture of a scene: uint8, (side, side, 3), RGB; `side` is a multiple of 64."""
    canvas = _sky(scene, side // SIDE)
    _paint_place(canvas, scene)
    *behind, front = _stickers(scene)
    if scene.side == "background":
        _paint_sticker(canvas, scene, *behind.pop())
    if scene.weather == "fog":
        canvas = _draw_fog(canvas, scene)
    for sticker_behind in behind:
        _paint_sticker(canvas, scene, *sticker_behind)
    _paint_sticker(canvas, scene, *front)
    pixels = np.asarray(canvas.reduce(2)) * scene.layout.light
    return STYLE[scene.style](np.clip(pixels, 0, 255).astype(np.uint8))


def object_mask(scene: Scene, word: str) -> np.ndarray:
    """Where the sticker of an object is visible: bool, (64, 64), without its shadow.

    `word` is the scene's object or its second one. A pixel counts when most of it is the sticker's. Raises ValueError
    for a word that the scene does not show.
    """
    if word not in (scene.object, scene.second) or word == NONE:
        raise ValueError(f"the scene shows no {word!r}")
    cover = {}
    for name, center_x, base_y, size in _stickers(scene):
        picture, corner = _placed(name, center_x, base_y, size)
        cover[name] = Image.new("L", (CANVAS, CANVAS), 0)
        cover[name].paste(picture.getchannel("A"), corner)
    shown = np.asarray(cover[word].reduce(2)) / 255
    if word == scene.second:
        shown = shown * (1 - np.asarray(cover[scene.object].reduce(2)) / 255)
    is_shown: np.ndarray = shown > 0.5
    return is_shown


def kept_pixels(before: np.ndarray, after: np.ndarray, tolerance: int = 6) -> np.ndarray:
    """Which pixels the ground truth of an edit keeps: bool, (64, 64).

    `before` and `after` are renders of one layout. A pixel is kept if no channel differs by more than `tolerance`
    levels, and no neighbour has changed.
    """
    changed = (np.abs(before.astype(int) - after.astype(int)) > tolerance).any(axis=2)
    grown = Image.fromarray(changed.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))
    return np.asarray(grown) == 0


def psnr_db(before: np.ndarray, after: np.ndarray, where: np.ndarray) -> float:
    """PSNR in dB over the pixels `where` is true; uint8 pictures."""
    error = (before[where].astype(float) - after[where].astype(float)) / 255
    return float(-10 * np.log10(max(float(np.mean(error**2)), 1e-10)))


class _Brush:
    """Draws on a canvas of any scale, with lengths of a canvas of 128."""

    def __init__(self, canvas: Image.Image) -> None:
        self.scale = canvas.width // CANVAS
        self._draw = ImageDraw.Draw(canvas)

    def _box(self, box: Sequence[float]) -> tuple[float, ...]:
        # The last row and column belong to a shape; a larger canvas has several of each.
        left, top, right, bottom = (self.scale * length for length in box)
        return left, top, right + self.scale - 1, bottom + self.scale - 1

    def rectangle(self, box: Sequence[float], fill: Ink) -> None:
        self._draw.rectangle(self._box(box), fill=fill)

    def ellipse(self, box: Sequence[float], fill: Ink) -> None:
        self._draw.ellipse(self._box(box), fill=fill)

    def arc(self, box: Sequence[float], start: float, end: float, fill: Ink, width: int) -> None:
        self._draw.arc(self._box(box), start, end, fill=fill, width=self.scale * width)

    def polygon(self, corners: list[tuple[float, float]], fill: Ink) -> None:
        self._draw.polygon([(self.scale * x, self.scale * y) for x, y in corners], fill=fill)


def _gradient(top: Colour, bottom: Colour, rows: int, scale: int) -> np.ndarray:
    """A band of colour as wide as the canvas; `rows` are those of a canvas of 128."""
    mix = np.linspace(0, 1, scale * max(rows, 1))[:, None, None]
    band = (1 - mix) * np.array(top) + mix * np.array(bottom)
    return np.broadcast_to(band, (len(mix), scale * CANVAS, 3))


def _lit(colour: Colour, time: str) -> tuple[int, int, int]:
    r, g, b = (int(channel * light) for channel, light in zip(colour, LIGHT[time], strict=True))
    return r, g, b


def _horizon(scene: Scene) -> int:
    return round(scene.layout.horizon * CANVAS)


def _sky(scene: Scene, scale: int) -> Image.Image:
    horizon = _horizon(scene)
    rows = np.zeros((scale * CANVAS, scale * CANVAS, 3))
    rows[: scale * horizon] = _gradient(*SKY[scene.time], horizon, scale)
    canvas = Image.fromarray(rows.astype(np.uint8))
    draw = _Brush(canvas)
    rng = np.random.default_rng(scene.layout.details)
    x = scene.layout.sun_x * CANVAS
    if scene.time == "day":
        _disc(draw, x, 18, 9, (255, 244, 190))
        for cx, cy in zip(rng.uniform(0, CANVAS, 2), rng.uniform(10, 34, 2), strict=True):
            for dx, radius in ((-9, 5), (0, 7), (9, 5)):
                draw.ellipse(
                    (cx + dx - 1.5 * radius, cy - radius, cx + dx + 1.5 * radius, cy + 0.6 * radius),
                    fill=(246, 250, 252),
                )
    elif scene.time == "sunset":
        _disc(draw, x, horizon - 4, 15, (255, 222, 120))
    else:
        for sx, sy in zip(rng.uniform(2, CANVAS - 2, 9), rng.uniform(2, horizon - 8, 9), strict=True):
            _disc(draw, sx, sy, 1.5, (226, 228, 240))
        _disc(draw, x, 18, 10, (244, 240, 206))
    return canvas


def _disc(draw: _Brush, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _paint_place(canvas: Image.Image, scene: Scene) -> None:
    horizon, time = _horizon(scene), scene.time
    rng = np.random.default_rng(scene.layout.details + 1)
    draw = _Brush(canvas)
    if scene.place == "city":
        _paint_skyline(draw, rng, horizon, time)
    elif scene.place == "snow":
        _paint_pines(draw, rng, horizon, time)
    elif scene.place == "meadow":
        _paint_hills(draw, rng, horizon, time)
    elif scene.place == "forest":
        _paint_trunks(canvas, draw, rng, horizon, time)
    elif scene.place == "desert":
        _paint_dunes(draw, rng, horizon, time)
    elif scene.place == "room":
        _paint_wall(canvas, scene, horizon)
    ground = _gradient(*GROUND[scene.place], CANVAS - horizon, draw.scale) * np.array(LIGHT[time])
    canvas.paste(Image.fromarray(ground.astype(np.uint8)), (0, draw.scale * horizon))
    if scene.place == "beach":
        shore = horizon + 16
        draw.rectangle((0, horizon, CANVAS, shore), fill=_lit((64, 150, 200), time))
        draw.rectangle((0, shore, CANVAS, shore + 2), fill=_lit((240, 246, 246), time))
    elif scene.place == "sea":
        _paint_waves(draw, rng, horizon, time)
    elif scene.place == "city":
        middle = (horizon + CANVAS) // 2 + 14
        for x in range(int(rng.integers(-20, 0)), CANVAS, 26):
            draw.rectangle((x, middle, x + 14, middle + 3), fill=_lit((240, 220, 110), time))
    elif scene.place == "meadow":
        _paint_flowers(draw, rng, horizon, time)
    elif scene.place == "desert":
        _paint_ripples(draw, rng, horizon, time)
    elif scene.place == "room":
        _paint_floor(draw, scene, horizon)


def _paint_skyline(draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    window = (250, 214, 110) if time == "night" else _lit((196, 212, 224), time)
    x = -4
    while x < CANVAS:
        width, height, shade = int(rng.integers(16, 26)), int(rng.integers(22, 50)), int(rng.integers(104, 150))
        draw.rectangle((x, horizon - height, x + width - 2, horizon), fill=_lit((shade, shade, shade + 14), time))
        for wy in range(horizon - height + 4, horizon - 4, 8):
            for wx in range(x + 3, x + width - 5, 6):
                draw.rectangle((wx, wy, wx + 2, wy + 3), fill=window)
        x += width


def _paint_pines(draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    for x in rng.uniform(0, CANVAS, 7):
        height = rng.uniform(14, 30)
        for part in (0.0, 0.35):
            top = horizon - height * (1 - part)
            draw.polygon(
                [
                    (x, top),
                    (x - height * 0.3, horizon - height * 0.3 * (1 - 2 * part)),
                    (x + height * 0.3, horizon - height * 0.3 * (1 - 2 * part)),
                ],
                fill=_lit((88, 130, 124), time),
            )


def _paint_hills(draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    for x in rng.uniform(0, CANVAS, 2):
        draw.ellipse((x - 48, horizon - 14, x + 48, horizon + 30), fill=_lit((112, 176, 84), time))


def _paint_trunks(canvas: Image.Image, draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    sky = canvas.crop((0, 0, canvas.width, draw.scale * horizon))
    haze = Image.new("RGB", sky.size, _lit((58, 106, 66), time))
    canvas.paste(Image.blend(sky, haze, 0.62), (0, 0))
    for x in sorted(rng.uniform(0, CANVAS, 7)):
        width = rng.uniform(6, 11)
        draw.rectangle((x, 0, x + width, horizon + 4), fill=_lit((92, 64, 42), time))


def _paint_waves(draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    for x, y in zip(rng.uniform(0, CANVAS, 12), rng.uniform(horizon + 5, CANVAS - 4, 12), strict=True):
        draw.rectangle((x, y, x + 14, y + 1.5), fill=_lit((170, 210, 232), time))


def _paint_flowers(draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    colours = ((252, 240, 120), (250, 250, 250), (240, 130, 150))
    for x, y in zip(rng.uniform(0, CANVAS, 10), rng.uniform(horizon + 12, CANVAS - 3, 10), strict=True):
        _disc(draw, x, y, 2, _lit(colours[int(rng.integers(3))], time))


def _paint_dunes(draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    for x in rng.uniform(0, CANVAS, 2):
        width, height = rng.uniform(14, 24), rng.uniform(16, 26)
        mesa = [(x - width, horizon), (x - width * 0.7, horizon - height), (x + width * 0.7, horizon - height)]
        draw.polygon([*mesa, (x + width, horizon)], fill=_lit((196, 108, 64), time))
    x = rng.uniform(0, CANVAS)
    draw.ellipse((x - 70, horizon - 9, x + 70, horizon + 30), fill=_lit((240, 192, 116), time))


def _paint_ripples(draw: _Brush, rng: np.random.Generator, horizon: int, time: str) -> None:
    for x, y in zip(rng.uniform(-10, CANVAS - 20, 8), rng.uniform(horizon + 8, CANVAS - 4, 8), strict=True):
        draw.arc((x, y, x + 34, y + 8), 200, 340, fill=_lit((180, 112, 52), time), width=2)


def _paint_wall(canvas: Image.Image, scene: Scene, horizon: int) -> None:
    """A wall with a window, whose sky shows the time of day."""
    light = 0.6 if scene.time == "night" else 1.0
    wall = tuple(int(channel * light * tint) for channel, tint in zip(WALL, STICKER_LIGHT[scene.time], strict=True))
    draw = _Brush(canvas)
    above = (0, 0, canvas.width, draw.scale * horizon)
    outside = canvas.crop(above)
    canvas.paste(wall, above)
    left = 6 if scene.layout.sun_x < 0.5 else CANVAS - 50
    window = (left, 8, left + 44, horizon - 18)
    draw.rectangle((window[0] - 3, window[1] - 3, window[2] + 3, window[3] + 3), fill=_lit((250, 246, 240), scene.time))
    panes = (draw.scale * (window[2] - window[0]), draw.scale * (window[3] - window[1]))
    canvas.paste(outside.resize(panes), (draw.scale * window[0], draw.scale * window[1]))
    middle = (window[0] + window[2]) // 2
    draw.rectangle((middle - 1, window[1], middle + 1, window[3]), fill=_lit((250, 246, 240), scene.time))


def _paint_floor(draw: _Brush, scene: Scene, horizon: int) -> None:
    draw.rectangle((0, horizon, CANVAS, horizon + 4), fill=_lit((246, 238, 228), scene.time))
    for fraction in (0.2, 0.5, 0.85):
        y = horizon + 4 + fraction * (CANVAS - horizon - 4)
        draw.rectangle((0, y, CANVAS, y + 1), fill=_lit((112, 70, 42), scene.time))


def _draw_fog(canvas: Image.Image, scene: Scene) -> Image.Image:
    """Fog over what has been painted: thickest at the horizon, thinner towards the viewer."""
    rows = np.arange(canvas.height) / canvas.height
    distance = np.where(rows < scene.layout.horizon, 0.80, 0.80 - 0.9 * (rows - scene.layout.horizon))
    indoors = 0.8 if scene.place == "room" else 1.0
    thickness = np.broadcast_to((255 * indoors * distance).astype(np.uint8)[:, None], canvas.size)
    fog = Image.new("RGB", canvas.size, tuple(int(channel) for channel in FOG[scene.time]))
    return Image.composite(fog, canvas, Image.fromarray(np.ascontiguousarray(thickness)))


def _stickers(scene: Scene) -> list[tuple[str, float, float, float]]:
    """Word, centre, base and size of each sticker, the one in front last."""
    layout = scene.layout
    front = (scene.object, layout.center_x, layout.base_y, layout.size)
    if scene.side == NONE:
        return [front]
    if scene.side == "background":
        away = 1 if layout.center_x < 0.5 else -1
        x = layout.center_x + away * layout.second_offset
        return [(scene.second, x, layout.horizon + 0.10, layout.second_size * BACKGROUND_SCALE), front]
    x = layout.center_x + (layout.second_offset if scene.side == "right" else -layout.second_offset)
    return [(scene.second, x, layout.base_y + 0.02, layout.second_size), front]


def _placed(
    word: str, center_x: float, base_y: float, size: float, scale: int = 1
) -> tuple[Image.Image, tuple[int, int]]:
    """A sticker, scaled for the canvas, and its upper left corner there."""
    picture = sticker(word)
    shrunk = size * CANVAS / max(picture.size)
    width, height = (max(1, round(side * shrunk)) for side in picture.size)
    left, base = round(center_x * CANVAS - width / 2), round(base_y * CANVAS)
    smooth = Image.Resampling.BOX if scale * shrunk < 0.5 else Image.Resampling.BILINEAR
    return picture.resize((scale * width, scale * height), smooth), (scale * left, scale * (base - height))


def _paint_sticker(canvas: Image.Image, scene: Scene, word: str, center_x: float, base_y: float, size: float) -> None:
    scale = canvas.width // CANVAS
    picture, (left, top) = _placed(word, center_x, base_y, size, scale)
    width, height = picture.size
    base = top + height

    # The shadow falls away from the sun, and is fainter in fog.
    away = -0.10 * width * np.sign(scene.layout.sun_x - 0.5)
    shadow = Image.new("L", canvas.size, 0)
    shape = (
        left + width * 0.06 + away,
        base - 0.09 * width - 2 * scale,
        left + width * 0.94 + away,
        base + 0.08 * width + scale,
    )
    ImageDraw.Draw(shadow).ellipse(shape, fill=110 if scene.weather == "clear" else 60)
    shadow = shadow.filter(ImageFilter.BoxBlur(3 * scale))
    canvas.paste(Image.new("RGB", canvas.size, (10, 14, 30)), (0, 0), shadow)

    # The side that looks towards the sun is a little brighter.
    towards = np.linspace(1.06, 0.90, width) if scene.layout.sun_x < 0.5 else np.linspace(0.90, 1.06, width)
    lit = np.asarray(picture.convert("RGB")) * np.array(STICKER_LIGHT[scene.time]) * towards[None, :, None]
    if scene.weather == "fog":
        lit = 0.78 * lit + 0.22 * np.array(FOG[scene.time])
    lit = np.clip(lit, 0, 255).astype(np.uint8)
    canvas.paste(Image.fromarray(lit), (left, top), picture.getchannel("A"))
