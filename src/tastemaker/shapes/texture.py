"""Which background a Shapes picture has, read from the pixels that no object covers.

A plane is fitted to the brightness; what is left tells a texture from a smooth background. Among textures the
directions of the brightness gradient decide: stripes have one axis, a checker two at right angles, spots all of them.
"""

import numpy as np
from numpy.typing import NDArray

_WEIGHTS = np.array([0.299, 0.587, 0.114])
_TEXTURE = 0.055  # deviation from the plane
_SLOPE = 0.14  # brightness from corner to corner


def kind(pixels: NDArray[np.float32], free: NDArray[np.bool_]) -> tuple[str, float]:
    """Name and confidence of the background of `pixels [H,W,3]` where `free [H,W]`; `unsure` if too little is free."""
    if free.sum() < 150:
        return "unsure", 0.0
    light = pixels @ _WEIGHTS
    y, x = np.nonzero(free)
    value = light[y, x]
    plane = np.stack([np.ones(len(x)), x / len(light), y / len(light)], 1)
    fit, *_ = np.linalg.lstsq(plane, value, rcond=None)
    left = float(np.std(value - plane @ fit))
    if left < _TEXTURE:
        slope = float(np.hypot(fit[1], fit[2]))
        smooth = "gradient" if slope > _SLOPE else "plain"
        return smooth, min(1.0, (_TEXTURE - left) / _TEXTURE * 2, abs(slope - _SLOPE) / _SLOPE * 2)
    axis, square = _moments(light, free)
    sure = min(1.0, (left - _TEXTURE) / _TEXTURE)
    if axis > 0.5:
        return "stripes", min(sure, 2 * (axis - 0.5) + 0.2)
    if square > 0.28:
        return "checker", min(sure, 3 * (square - 0.28) + 0.2)
    return "speckle", min(sure, 3 * (0.28 - square) + 0.2)


def _moments(light: NDArray[np.floating], free: NDArray[np.bool_]) -> tuple[float, float]:
    """Second and fourth circular moment of the gradient's direction, weighted by its square."""
    dy, dx = np.gradient(light)
    within = free.copy()
    within[1:] &= free[:-1]
    within[:-1] &= free[1:]
    within[:, 1:] &= free[:, :-1]
    within[:, :-1] &= free[:, 1:]
    within[0], within[-1], within[:, 0], within[:, -1] = False, False, False, False
    z = (dx + 1j * dy)[within]
    weight = np.abs(z) ** 2
    total = weight.sum() + 1e-12
    unit = z / (np.abs(z) + 1e-12)
    return float(np.abs((weight * unit**2).sum() / total)), float(np.real((weight * unit**4).sum() / total))
