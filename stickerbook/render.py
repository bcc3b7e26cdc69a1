"""Paint a scene: sky, place, shadow, sticker, light, style; about two milliseconds each.

Everything is painted at twice the size and averaged down, so that edges are soft.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stickerbook.stickers import sticker
from stickerbook.world import Scene

SIDE = 64
CANVAS = 2 * SIDE

Colour = tuple[float, float, float]

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
}


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8, (64, 64, 3), RGB."""
    canvas = _sky(scene)
    _paint_place(canvas, scene)
    _paint_sticker(canvas, scene)
    pixels = np.asarray(canvas.reduce(2))
    if scene.style == "black and white":
        grey = pixels @ np.array([0.299, 0.587, 0.114])
        grey = np.clip(128 + 1.15 * (grey - 128), 0, 255)  # a little contrast, as on old film
        pixels = np.repeat(grey[..., None], 3, axis=2).round().astype(np.uint8)
    return pixels


def kept_pixels(before: np.ndarray, after: np.ndarray, tolerance: int = 6) -> np.ndarray:
    """Which pixels the ground truth of an edit leaves alone: bool, (64, 64).

    `before` and `after` are renders of one layout. A pixel is kept when no channel differs by more
    than `tolerance` levels; a border of one pixel around every change is left out of the judgement.
    """
    changed = (np.abs(before.astype(int) - after.astype(int)) > tolerance).any(axis=2)
    grown = Image.fromarray(changed.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))
    return np.asarray(grown) == 0


def _gradient(top: Colour, bottom: Colour, rows: int) -> np.ndarray:
    mix = np.linspace(0, 1, max(rows, 1))[:, None, None]
    band = (1 - mix) * np.array(top) + mix * np.array(bottom)
    return np.broadcast_to(band, (max(rows, 1), CANVAS, 3))


def _lit(colour: Colour, time: str) -> tuple[int, int, int]:
    r, g, b = (int(channel * light) for channel, light in zip(colour, LIGHT[time], strict=True))
    return r, g, b


def _horizon(scene: Scene) -> int:
    return round(scene.layout.horizon * CANVAS)


def _sky(scene: Scene) -> Image.Image:
    horizon = _horizon(scene)
    rows = np.zeros((CANVAS, CANVAS, 3))
    rows[:horizon] = _gradient(*SKY[scene.time], horizon)
    canvas = Image.fromarray(rows.astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
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


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _paint_place(canvas: Image.Image, scene: Scene) -> None:
    horizon, time = _horizon(scene), scene.time
    rng = np.random.default_rng(scene.layout.details + 1)
    draw = ImageDraw.Draw(canvas)
    if scene.place == "city":
        _paint_skyline(draw, rng, horizon, time)
    elif scene.place == "snow":
        _paint_pines(draw, rng, horizon, time)
    elif scene.place == "meadow":
        _paint_hills(draw, rng, horizon, time)
    elif scene.place == "forest":
        _paint_trunks(canvas, draw, rng, horizon, time)
    ground = _gradient(*GROUND[scene.place], CANVAS - horizon) * np.array(LIGHT[time])
    canvas.paste(Image.fromarray(ground.astype(np.uint8)), (0, horizon))
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


def _paint_skyline(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, time: str) -> None:
    window = (250, 214, 110) if time == "night" else _lit((196, 212, 224), time)
    x = -4
    while x < CANVAS:
        width, height, shade = int(rng.integers(16, 26)), int(rng.integers(22, 50)), int(rng.integers(104, 150))
        draw.rectangle((x, horizon - height, x + width - 2, horizon), fill=_lit((shade, shade, shade + 14), time))
        for wy in range(horizon - height + 4, horizon - 4, 8):
            for wx in range(x + 3, x + width - 5, 6):
                draw.rectangle((wx, wy, wx + 2, wy + 3), fill=window)
        x += width


def _paint_pines(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, time: str) -> None:
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


def _paint_hills(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, time: str) -> None:
    for x in rng.uniform(0, CANVAS, 2):
        draw.ellipse((x - 48, horizon - 14, x + 48, horizon + 30), fill=_lit((112, 176, 84), time))


def _paint_trunks(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, time: str
) -> None:
    haze = Image.new("RGB", (CANVAS, horizon), _lit((58, 106, 66), time))
    canvas.paste(Image.blend(canvas.crop((0, 0, CANVAS, horizon)), haze, 0.62), (0, 0))
    for x in sorted(rng.uniform(0, CANVAS, 7)):
        width = rng.uniform(6, 11)
        draw.rectangle((x, 0, x + width, horizon + 4), fill=_lit((92, 64, 42), time))


def _paint_waves(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, time: str) -> None:
    for x, y in zip(rng.uniform(0, CANVAS, 12), rng.uniform(horizon + 5, CANVAS - 4, 12), strict=True):
        draw.rectangle((x, y, x + 14, y + 1.5), fill=_lit((170, 210, 232), time))


def _paint_flowers(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, time: str) -> None:
    colours = ((252, 240, 120), (250, 250, 250), (240, 130, 150))
    for x, y in zip(rng.uniform(0, CANVAS, 10), rng.uniform(horizon + 12, CANVAS - 3, 10), strict=True):
        _disc(draw, x, y, 2, _lit(colours[int(rng.integers(3))], time))


def _paint_sticker(canvas: Image.Image, scene: Scene) -> None:
    layout = scene.layout
    picture = sticker(scene.object)
    scale = layout.size * CANVAS / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, base = round(layout.center_x * CANVAS - width / 2), round(layout.base_y * CANVAS)
    picture = picture.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)

    shadow = Image.new("L", (CANVAS, CANVAS), 0)
    ImageDraw.Draw(shadow).ellipse((left + width * 0.06, base - 7, left + width * 0.94, base + 6), fill=110)
    shadow = shadow.filter(ImageFilter.BoxBlur(3))
    canvas.paste(Image.new("RGB", canvas.size, (10, 14, 30)), (0, 0), shadow)

    lit = np.asarray(picture.convert("RGB")) * np.array(STICKER_LIGHT[scene.time])
    canvas.paste(Image.fromarray(lit.astype(np.uint8)), (left, base - height), picture.getchannel("A"))
