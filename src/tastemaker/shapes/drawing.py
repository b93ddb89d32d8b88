"""Drawing of the Shapes world: 64x64 pictures of 1-4 outlined objects of one shape and colour on a background.

The caption names count, colour and shape, never the background: what is left open gives rewards their room.
Every size is chosen so that an autoencoder of factor 8 can carry it: thick outlines, textures of 8-16 pixels.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 40),
    "orange": (250, 138, 18),
    "yellow": (250, 220, 40),
    "green": (40, 165, 62),
    "cyan": (45, 205, 215),
    "blue": (38, 78, 218),
    "purple": (132, 46, 182),
    "pink": (250, 112, 186),
}
SHAPES = ("circle", "square", "triangle", "star", "heart")
COUNTS = (1, 2, 3, 4)
BACKGROUNDS = ("plain", "gradient", "stripes", "checker", "speckle")
_SHARES = (0.26, 0.18, 0.18, 0.20, 0.18)  # of pictures

OUTLINE = (40, 36, 54)
_OVERSAMPLING = 4
_SOFT = 1.0  # pixels from one tone of a texture to the other
_RADII = {1: (12.0, 19.0), 2: (11.0, 14.5), 3: (10.0, 12.5), 4: (9.5, 12.0)}  # pixels, by count
_TILT = {"circle": 0.0, "square": 18.0, "triangle": 18.0, "star": 12.0, "heart": 18.0}  # degrees, to either side

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """What one picture shows; the caption is a function of the first three."""

    count: int
    colour: str
    shape: str
    background: str


def outline(shape: str) -> NDArray[np.float64]:
    """Corners of the unit shape `[N,2]`: y points down, about radius 1 from its middle."""
    if shape == "circle":
        angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        return np.stack([np.cos(angle), np.sin(angle)], 1) * 0.95
    if shape == "square":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.86
    if shape == "triangle":
        return np.array([[0, -1.05], [1.06, 0.8], [-1.06, 0.8]])
    if shape == "star":
        angle = np.arange(10) * math.pi / 5 - math.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 1.22, 0.52)
        return np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y - 1.5], 1) / 15.2
    raise ValueError(f"{shape!r} is not a shape of this world: {', '.join(SHAPES)}")


def turned(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """The points turned about the origin by `degrees`, clockwise on the picture."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def draw(scene: Scene, rng: random.Random) -> Picture:
    """One picture of the scene `[64,64,3]` uint8; size, place, tilt, shades and background are drawn from `rng`."""
    canvas = _background(scene.background, rng)
    big = Image.fromarray(canvas).resize((SIZE * _OVERSAMPLING,) * 2, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(big)
    fill = tuple(int(np.clip(c + rng.uniform(-12, 12), 0, 255)) for c in COLOURS[scene.colour])
    width = round(rng.uniform(1.6, 2.0) * _OVERSAMPLING)
    for x, y, radius in _places(scene.count, rng):
        tilt = rng.uniform(-_TILT[scene.shape], _TILT[scene.shape])
        corners = turned(outline(scene.shape), tilt) * radius + (x, y)
        path = [(float(a) * _OVERSAMPLING, float(b) * _OVERSAMPLING) for a, b in corners]
        pen.polygon(path, fill=fill)
        pen.line([*path, path[0], path[1]], fill=OUTLINE, width=width, joint="curve")
    return np.asarray(big.resize((SIZE, SIZE), Image.Resampling.BOX))


def random_scene(rng: random.Random) -> Scene:
    """Every count, colour and shape equally often, backgrounds by their shares."""
    count, colour, shape = rng.choice(COUNTS), rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    return Scene(count, colour, shape, rng.choices(BACKGROUNDS, _SHARES)[0])


def _places(count: int, rng: random.Random) -> list[tuple[float, float, float]]:
    """Middle and radius of `count` objects that lie inside the picture and do not touch."""
    low, high = _RADII[count]
    shrink = 1.0
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(40 * count):
            radius = rng.uniform(low, high) * shrink
            edge = radius * 1.12 + 2
            x, y = rng.uniform(edge, SIZE - edge), rng.uniform(edge, SIZE - edge)
            if all(math.hypot(x - a, y - b) > 1.12 * (radius + r) + 4 for a, b, r in placed):
                placed.append((x, y, radius))
            if len(placed) == count:
                return placed
        shrink *= 0.97


def _tones(rng: random.Random) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two muted tones: their saturation stays far below that of every object."""
    hue, saturation = rng.random(), rng.uniform(0.05, 0.24)
    light = rng.uniform(0.88, 0.98)
    dark = light - rng.uniform(0.56, 0.74)
    return _rgb(hue, saturation * 0.8, light), _rgb(hue + rng.uniform(-0.08, 0.08), saturation, dark)


def _rgb(hue: float, saturation: float, value: float) -> NDArray[np.float64]:
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return 255 * value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def _background(kind: str, rng: random.Random) -> Picture:
    """`[64,64,3]` uint8 of one kind; the edges between two tones are soft."""
    light, dark = _tones(rng)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64) + 0.5
    if kind == "plain":
        tone = rng.choice((rng.uniform(0.0, 0.2), rng.uniform(0.7, 0.85)))  # a tone between would draw samples to it
        share = np.full((SIZE, SIZE), tone)
    elif kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        along = x * math.cos(angle) + y * math.sin(angle)
        share = (along - along.min()) / (along.max() - along.min())
    elif kind == "stripes":
        angle, period = rng.choice((30, 60, 120, 150)) * math.pi / 180, rng.uniform(12, 18)
        share = _wave(x * math.cos(angle) + y * math.sin(angle) + rng.uniform(0, period), period)
    elif kind == "checker":
        cell = rng.uniform(6.5, 9.5)
        a, b = _wave(x + rng.uniform(0, 2 * cell), 2 * cell), _wave(y + rng.uniform(0, 2 * cell), 2 * cell)
        share = a * b + (1 - a) * (1 - b)
    elif kind == "speckle":
        share = _spots(x, y, rng)
    else:
        raise ValueError(f"{kind!r} is not a background of this world: {', '.join(BACKGROUNDS)}")
    return np.clip(light + (dark - light) * share[..., None], 0, 255).astype(np.uint8)


def _wave(position: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """A square wave in [0, 1] with soft edges."""
    distance = np.abs((position / period) % 1 - 0.5) * period - period / 4
    share: NDArray[np.float64] = np.clip(distance / _SOFT + 0.5, 0, 1)
    return share


def _spots(x: NDArray[np.float64], y: NDArray[np.float64], rng: random.Random) -> NDArray[np.float64]:
    """Round spots of 6-8 pixels on a jittered grid of 11."""
    share = np.zeros_like(x)
    step = 11.0
    shift = rng.uniform(0, step), rng.uniform(0, step)
    for row in range(-1, 8):
        for column in range(-1, 8):
            cx = shift[0] + (column + 0.5 * (row % 2)) * step + rng.uniform(-1.5, 1.5)
            cy = shift[1] + row * step + rng.uniform(-1.5, 1.5)
            radius = rng.uniform(2.8, 3.8)
            share = np.maximum(share, np.clip((radius - np.hypot(x - cx, y - cy)) / _SOFT + 0.5, 0, 1))
    return share
