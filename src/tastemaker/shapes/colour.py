"""The reward `colour`: how much of a picture has a colour of the Shapes world. Reads no prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tastemaker.shapes.drawing import COLOURS

_NEAR = 0.15  # distance in RGB at which a pixel counts half: a little above that of the shades one colour is drawn in


@dataclass(frozen=True)
class Colour:
    """How much of a picture has a wanted colour, from 0 to 1.

    value [B] = mean over pixels of 1 / (1 + (|x - c| / 0.15)^2),   x, c: RGB in [0,1]

    A pixel of the very colour c counts 1, one at a distance of 0.15 a half, one at a distance of 1 still 0.02: wherever
    a picture is, there is a gradient.
    """

    colour: str = "red"  # red, orange, yellow, green, cyan, blue, purple or pink, as the Shapes world draws it

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise ValueError(f"colour is {self.colour!r}; it is one of {', '.join(COLOURS)}.")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = images.float() if images.itemsize < 4 else images
        wanted = pixels.new_tensor(COLOURS[self.colour])[:, None, None] / 255
        return (1 / (1 + (pixels - wanted).square().sum(1) / _NEAR**2)).mean((1, 2))
