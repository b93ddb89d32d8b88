"""The world's pictures: a function of scene and generator, varied, with room between objects."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tastemaker.rewards.jpeg import incompressibility
from tastemaker.shapes import drawing
from tastemaker.shapes.drawing import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    SHAPES,
    SIZE,
    Scene,
    draw,
    outline,
    random_scene,
    turned,
)


def test_a_picture_is_a_function_of_scene_and_generator() -> None:
    scene = Scene(2, "red", "star", "speckle")
    one, again, other = (draw(scene, random.Random(seed)) for seed in (1, 1, 2))
    assert one.shape == (SIZE, SIZE, 3) and one.dtype == np.uint8
    assert np.array_equal(one, again) and (one != other).mean() > 0.3


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_is_drawn(background: str) -> None:
    """Textures weigh more than plain ground, which gives (in)compressibility its room."""

    def size(kind: str) -> float:
        pictures = np.stack([draw(Scene(1, "blue", "circle", kind), random.Random(seed)) for seed in range(6)])
        return float(incompressibility(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, []).mean())

    assert background in ("plain", "gradient") or size(background) > 1.2 * size("plain")


@pytest.mark.parametrize("colour", COLOURS)
def test_objects_have_the_named_colour(colour: str) -> None:
    picture = draw(Scene(1, colour, "square", "plain"), random.Random(3)).reshape(-1, 3).astype(int)
    near = np.abs(picture - np.array(COLOURS[colour])).max(1) <= 13
    assert near.mean() > 0.05
    for other, tone in COLOURS.items():
        if other != colour:
            assert (np.abs(picture - np.array(tone)).max(1) <= 13).mean() < 0.005


def test_objects_lie_inside_and_apart() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        count = 1 + seed % 4
        places = drawing._places(count, rng)
        assert len(places) == count
        for x, y, radius in places:
            assert radius + 2 <= x <= SIZE - radius - 2 and radius + 2 <= y <= SIZE - radius - 2
        for k, (x, y, radius) in enumerate(places):
            assert all(np.hypot(x - a, y - b) > radius + r + 4 for a, b, r in places[:k])


def test_outlines_are_of_radius_one_and_turn_about_their_middle() -> None:
    for shape in SHAPES:
        reach = np.hypot(*outline(shape).T).max()
        assert 0.9 < reach < 1.4
        assert np.allclose(np.hypot(*turned(outline(shape), 30).T), np.hypot(*outline(shape).T))
    assert np.allclose(turned(np.array([[1.0, 0.0]]), 90), [[0, 1]])  # y points down: clockwise on the picture


def test_scenes_are_drawn_evenly_and_half_of_the_backgrounds_are_smooth() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(2000)]
    for values, all_of_them in (([s.shape for s in scenes], SHAPES), ([s.count for s in scenes], COUNTS)):
        shares = [values.count(value) / 2000 for value in all_of_them]
        assert max(abs(share - 1 / len(all_of_them)) for share in shares) < 0.05
    grounds = [scene.background for scene in scenes]
    assert abs(sum(kind in ("plain", "gradient") for kind in grounds) / 2000 - 0.55) < 0.1
    assert all(grounds.count(kind) > 200 for kind in BACKGROUNDS)


def test_what_is_not_of_this_world_is_named() -> None:
    with pytest.raises(ValueError, match="'clouds' is not a background of this world: plain, "):
        draw(Scene(1, "red", "star", "clouds"), random.Random(0))
    with pytest.raises(ValueError, match="'hexagon' is not a shape of this world: circle, "):
        outline("hexagon")
