"""What pictures show of a model that games its reward: a pattern of the network's own grid, colours at their ends.

The grid: latents lie `stride` pixels apart, and a transformer sees patches of two of them, so what the decoder or the
network repeats has a period of 2 stride pixels or a fraction of it. With a picture's mean taken off, a Hann window, and
A(f)^2 the squared amplitude of its wave of frequency f, averaged over colours,

    periodicity = max over those f of  L(f) - max over four directions d of (L(f - 2d) + L(f + 2d)) / 2,
    L(f) = mean over pictures of log10 (A(f)^2 + a^2),     a = 1 / 255

in powers of ten. The places on both sides say what a wave has there where nothing is repeated, in that direction where
it is most, because the edges of a thing lie along a line through 0. An f that one beside it exceeds is no peak, a wave
weaker than one step of grey counts as nothing, and stripes that one picture of many is to show add little to the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = 1 / 255  # the weakest wave that counts
NEAREST = 4  # frequencies from one place of the comb to the next, at least: a window's peak is three wide
DIRECTIONS = ((0, 2), (2, 0), (2, 2), (2, -2))
BESIDE = ((0, 1), (0, -1), (1, 0), (-1, 0))


def saturation(images: Tensor) -> Tensor:
    """Share [B] of the numbers of pictures [B,3,H,W] in [0,1] that are at an end, 0 or 1, within half a step of 255."""
    return ((images < GREY / 2) | (images > 1 - GREY / 2)).float().flatten(1).mean(1)


def comb(images: Tensor, latent: tuple[int, ...]) -> Tensor:
    """A^2 [B,P,13] at the P frequencies of the grid, at the pairs of places on both sides of each, and beside it.

    images: [B,3,H,W] in [0,1]; latent: (..., h, w) of the latents. P is 0 where a picture is too small for it.
    """
    height, width = images.shape[-2:]
    rows, columns = _places(height, latent[-2]), _places(width, latent[-1])
    places = torch.cartesian_prod(rows, columns)[1:]  # without 0, the mean
    window = torch.outer(torch.hann_window(height), torch.hann_window(width)).to(images)
    waves = torch.fft.fft2((images - images.mean((2, 3), keepdim=True)) * window)
    squares = (2 * waves.abs() / window.sum()).square().mean(1)
    around = [(0, 0), *(step for y, x in DIRECTIONS for step in ((y, x), (-y, -x))), *BESIDE]
    at = places[:, None] + torch.tensor(around)
    return squares[:, at[..., 0] % height, at[..., 1] % width]


def _places(size: int, latents: int) -> Tensor:
    """The frequencies of one side whose period is two latents, or one, or a fraction of it; 0 alone if too close."""
    apart = latents // 2 if latents % 2 == 0 and latents // 2 >= NEAREST else latents
    return torch.arange(0, size, apart) if apart >= NEAREST else torch.zeros(1, dtype=torch.long)


def periodicity(squares: Tensor) -> float:
    """The number above, of `comb`'s squares [B,P,13] of some pictures; NaN without any."""
    if not squares.numel():
        return float("nan")
    level = (squares.double() + GREY**2).log10().mean(0)
    around = ((level[:, 1:9:2] + level[:, 2:9:2]) / 2).amax(1)
    peaks = level[:, 0] >= level[:, 9:].amax(1)
    return float(torch.where(peaks, level[:, 0] - around, 0.0).max())


def spread(images: Tensor) -> float:
    """Mean squared difference of the colours of two pictures, over all pairs of [B,3,H,W]; NaN for fewer than two."""
    if len(images) < 2:
        return float("nan")
    apart = images.double() - images[:1].double()  # exact for pictures that are alike
    return float(2 * apart.var(0).mean())


def ratio_error(above: Tensor, below: Tensor) -> float:
    """Standard error of sum(above) / sum(below) over paired numbers [N]; NaN for fewer than two.

    By linearisation, the deviations being those of above - ratio below (Cochran 1977, Sampling Techniques, chapter 6).
    """
    count, whole = len(above), float(below.sum())
    if count < 2 or whole == 0:
        return float("nan")
    left = above - above.sum() / whole * below
    return float((left.square().sum() * count / (count - 1)).sqrt()) / whole
