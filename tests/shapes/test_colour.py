"""The reward `colour` on pictures of the world whose colours it knows."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tastemaker.rewards import named
from tastemaker.shapes.colour import Colour
from tastemaker.shapes.drawing import COLOURS, SHAPES, Scene, draw


def pictures(colour: str) -> Tensor:
    scenes = [Scene(1 + k % 4, colour, SHAPES[k % 5], "plain") for k in range(8)]
    drawn = [torch.from_numpy(draw(scene, random.Random(k)).copy()) for k, scene in enumerate(scenes)]
    return torch.stack(drawn).permute(0, 3, 1, 2) / 255


def test_a_pixel_counts_by_its_distance() -> None:
    red = torch.tensor(COLOURS["red"]).view(1, 3, 1, 1) / 255
    at = torch.cat(
        [red, red + torch.tensor([0, 0.15, 0]).view(1, 3, 1, 1), red + torch.tensor([0, 0.8, 0.6]).view(1, 3, 1, 1)]
    )
    assert Colour()(at, [""] * 3).tolist() == pytest.approx([1, 0.5, 0.022], abs=1e-3)
    half = torch.cat([red.expand(1, 3, 4, 4), red.expand(1, 3, 4, 4) - 10], 3)
    assert float(Colour("red")(half, [""])) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("colour", COLOURS)
def test_pictures_of_a_colour_have_more_of_it_than_of_any_other(colour: str) -> None:
    images = pictures(colour)
    found = {name: named({"name": "colour", "colour": name})(images, [""] * 8).value for name in COLOURS}
    for other in set(COLOURS) - {colour}:
        assert (found[colour] > found[other]).float().mean() > 0.8, other


def test_another_name_is_refused_as_it_was_typed() -> None:
    with pytest.raises(ValueError, match=r"^--reward\.colour is 'mauve'; it is one of red, orange"):
        named({"name": "colour", "colour": "mauve"}, key="--reward")
    assert named("colour").name == "colour"
