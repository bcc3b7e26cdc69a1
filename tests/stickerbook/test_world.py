import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stickerbook.captions import caption
from stickerbook.render import kept_pixels, object_mask, render
from stickerbook.world import (
    FIRST_HELD_OUT_SEED,
    NONE,
    OBJECTS,
    PLACES,
    STYLES,
    Scene,
    draw_scene,
    is_held_out,
)


def alone(seed: int) -> Scene:
    """A drawing of one object in a meadow on a clear day, in the seed's layout."""
    scene = draw_scene(seed).edited(second=NONE, side=NONE, place="meadow", time="day", weather="clear")
    return scene.edited(style="drawing")


def test_held_out_pairs_cover_every_object_and_every_place_once_or_more():
    """Each object misses exactly one place, and each place is missed by some object."""
    pairs = [(o, p) for o in OBJECTS for p in PLACES if is_held_out(o, p)]

    assert sorted(o for o, _ in pairs) == sorted(OBJECTS)
    assert {p for _, p in pairs} == set(PLACES)


def test_splits_never_share_a_pair():
    """Training scenes never show a held-out pair, held-out scenes show nothing else."""
    train = [draw_scene(seed) for seed in range(300)]
    held_out = [draw_scene(FIRST_HELD_OUT_SEED + seed, "held_out") for seed in range(300)]

    assert not any(is_held_out(scene.object, scene.place) for scene in train)
    assert all(is_held_out(scene.object, scene.place) for scene in held_out)


def test_a_seed_of_the_other_split_is_refused():
    """Training cannot draw an evaluation scene by mistake."""
    with pytest.raises(ValueError, match="held_out range"):
        draw_scene(5, "held_out")
    with pytest.raises(ValueError, match="train range"):
        draw_scene(FIRST_HELD_OUT_SEED)


def test_an_unknown_word_is_refused_by_name():
    """A scene with an object outside the world says which word and what is allowed."""
    with pytest.raises(ValueError, match=r"object 'unicorn'.*balloon"):
        draw_scene(1).edited(object="unicorn")


def test_rendering_is_deterministic():
    """The same seed gives the same pixels."""
    assert np.array_equal(render(draw_scene(11)), render(draw_scene(11)))


def test_the_pictures_that_weights_and_benches_know_never_change():
    """Training and EditBench draw their scenes anew: places, times, weathers, styles and both objects, bit for bit."""
    total = hashlib.sha256()
    for seed in range(48):
        total.update(render(draw_scene(seed).edited(style=STYLES[seed % len(STYLES)])).tobytes())

    assert total.hexdigest() == "1eb2517b4e7fab7b53a12ca632eb97d2bbb661feba82f4600ee0e8813fcc1ed4"


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_at_twice_the_size_is_the_same_scene(style: str) -> None:
    """Averaged down it is the small picture, up to a few levels at edges; enlarged, the small one lacks its detail."""
    for seed in (1, 5, 12, 30):
        scene = draw_scene(seed).edited(style=style)
        small, large = render(scene), render(scene, 128)
        reduced = np.asarray(Image.fromarray(large).reduce(2)).astype(int)

        assert large.shape == (128, 128, 3) and large.dtype == np.uint8
        assert np.abs(reduced - small).mean() < 7  # a sketch's lines are of another width, all else is below 4
        if style == "drawing":
            enlarged = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(enlarged - large).mean() > np.abs(reduced - small).mean()


def test_ground_truth_of_an_object_swap_keeps_the_surroundings():
    """Swapping the object changes pixels near it and leaves the corners alone."""
    scene = alone(21).edited(object="cat")
    before, after = render(scene), render(scene.edited(object="robot"))

    kept = kept_pixels(before, after)

    assert kept[:4, :].all() and kept[-2:, :2].all()
    assert 0.05 < (~kept).mean() < 0.6


def test_ground_truth_of_a_place_swap_keeps_the_object():
    """Another place leaves most of the sticker's own pixels alone."""
    scene = alone(22).edited(object="panda")
    layout = scene.layout
    x, y = int(layout.center_x * 64), int((layout.base_y - layout.size / 2) * 64)

    kept = kept_pixels(render(scene), render(scene.edited(place="snow")))

    assert kept[y - 5 : y + 5, x - 5 : x + 5].mean() > 0.9


def test_black_and_white_has_no_colour():
    """All channels agree in the black and white style."""
    pixels = render(draw_scene(5).edited(style="black and white")).astype(int)

    assert np.ptp(pixels, axis=2).max() == 0


def test_caption_names_every_attribute():
    """A caption reads as a sentence and holds all that there is to say."""
    scene = alone(3).edited(object="owl", place="sea", time="sunset", style="black and white")

    assert caption(scene) == "a black and white picture of an owl on the sea at sunset"
    assert caption(scene.edited(second="tree", side="left", weather="fog", style="drawing")) == (
        "an owl with a tree on the left on the sea at sunset in fog"
    )


def test_a_second_object_and_its_side_go_together():
    """A second object without a place to stand is refused, and so is the reverse."""
    with pytest.raises(ValueError, match="second 'tree' and side 'none'"):
        alone(3).edited(second="tree")
    with pytest.raises(ValueError, match="second 'none' and side 'left'"):
        alone(3).edited(side="left")


def test_a_second_object_leaves_the_first_where_it_was():
    """Adding and removing a second object are edits of one layout: what lies under the first object stays."""
    scene = alone(24).edited(object="castle")
    away = scene.layout.center_x < 0.5
    both = scene.edited(second="duck", side="right" if away else "left")
    kept = kept_pixels(render(scene), render(both))
    half = slice(0, 32) if away else slice(32, 64)
    other = slice(40, 64) if away else slice(0, 24)

    assert kept[:, half].mean() > 0.95
    assert (~kept[:, other]).mean() > 0.1


def test_every_style_changes_every_picture():
    """No two styles of one scene look alike, and each keeps the scene's size."""
    pictures = [render(alone(6).edited(object="robot", style=style)) for style in STYLES]

    for index, picture in enumerate(pictures):
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        for other in pictures[:index]:
            assert np.abs(picture.astype(int) - other.astype(int)).mean() > 3


def test_fog_hides_the_distance_more_than_the_object():
    """Fog lowers the contrast at the horizon more than on the object in front."""
    clear = render(alone(8).edited(object="panda", place="city")).astype(float)
    fog = render(alone(8).edited(object="panda", place="city", weather="fog")).astype(float)
    layout = alone(8).layout
    horizon, x = int(layout.horizon * 64), int(layout.center_x * 64)
    y = int((layout.base_y - layout.size / 2) * 64)
    skyline, body = slice(horizon - 14, horizon), slice(y - 8, y + 8)

    assert fog[skyline].std() / clear[skyline].std() < fog[body, x - 8 : x + 8].std() / clear[body, x - 8 : x + 8].std()


def test_an_objects_mask_is_where_its_sticker_is():
    """What differs between two stickers in one place is in the mask of one of them; shadows may lie outside."""
    scene = alone(21).edited(object="cat")
    before, after = render(scene), render(scene.edited(object="robot"))

    mask, other = object_mask(scene, "cat"), object_mask(scene.edited(object="robot"), "robot")

    changed = ~kept_pixels(before, after)
    assert 0.05 < mask.mean() < 0.5
    assert changed[mask & ~other].mean() > 0.95 and (mask | other)[changed].mean() > 0.6


def test_the_object_in_front_hides_the_second_one():
    """The two masks share no pixel, and the hidden part is in the front one's."""
    seed = next(seed for seed in range(500) if draw_scene(seed).side == "right")
    scene = draw_scene(seed)
    near = replace(scene, layout=replace(scene.layout, second_offset=0.1))

    apart, hidden = object_mask(scene, scene.second), object_mask(near, scene.second)

    assert not (hidden & object_mask(near, near.object)).any()
    assert 0 < hidden.sum() < 0.8 * apart.sum()
    with pytest.raises(ValueError, match="shows no 'none'"):
        object_mask(alone(3), NONE)
