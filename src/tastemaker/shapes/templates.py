"""Masks of every shape's inside, drawn as the world draws them: what the oracle compares a region with."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tastemaker.shapes.drawing import SHAPES, SIZE, outline, turned

SIDE = 24  # pixels of a template's side
SPAN = 1.25  # half of its side, in units of the square root of the area
_TILTS = {"circle": (0,), "star": range(-36, 36, 8)}
_RADII = (9.0, 10.5, 12.5, 15.0, 19.0)  # pixels
_BLURS = (0.0, 0.8, 1.3, 1.8)  # pixels: what autoencoders, JPEG and samplers do to an edge
FINER = 3  # masks are cut at this multiple of the resolution
_OVERSAMPLING = 4

Mask = NDArray[np.bool_]


@cache
def templates() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Masks `[N, SIDE*SIDE]` of 0 and 1, the index into SHAPES of each `[N]`, and its size `[N]`, the root of its area.

    The size keeps a large region from being compared with a small object that a blur has rounded.
    """
    masks, names, sizes = [], [], []
    for k, shape in enumerate(SHAPES):
        for tilt in _TILTS.get(shape, range(-28, 29, 7)):
            for radius in _RADII:
                for blur in _BLURS:
                    drawn = _drawn(shape, tilt, radius, blur)
                    masks.append(normalised(drawn))
                    names.append(k)
                    sizes.append(np.sqrt(drawn.sum()) / FINER)
    return np.stack(masks), np.array(names), np.array(sizes)


def normalised(mask: Mask) -> NDArray[np.float32]:
    """A region moved to its middle, scaled to unit area and sampled at SIDE x SIDE points, flat."""
    y, x = np.nonzero(mask)
    scale = np.sqrt(len(y))
    steps = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * SPAN * scale
    padded = np.pad(mask, 1)
    rows = np.clip(np.rint(y.mean() + steps).astype(int) + 1, 0, padded.shape[0] - 1)
    columns = np.clip(np.rint(x.mean() + steps).astype(int) + 1, 0, padded.shape[1] - 1)
    return padded[np.ix_(rows, columns)].ravel().astype(np.float32)


def _drawn(shape: str, tilt: float, radius: float, blur: float) -> Mask:
    """The inside of one object of that radius at the middle of a picture `[64,64]`."""
    points = (turned(outline(shape), tilt) * radius + SIZE / 2) * _OVERSAMPLING
    path = [(float(x), float(y)) for x, y in points]
    big = Image.new("L", (SIZE * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(big)
    pen.polygon(path, fill=255)
    pen.line([*path, path[0], path[1]], fill=0, width=2 * _OVERSAMPLING, joint="curve")
    small = big.resize((SIZE, SIZE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(blur))
    return enlarged(np.asarray(small, dtype=np.float32) / np.float32(255)) > 0.5


def enlarged(share: NDArray[np.floating]) -> NDArray[np.float32]:
    """A field at FINER times its size, linear between the middles of its pixels: edges between pixels are kept."""
    size = (share.shape[1] * FINER, share.shape[0] * FINER)
    return np.asarray(Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
