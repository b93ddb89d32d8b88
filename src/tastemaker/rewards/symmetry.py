"""Pictures that look the same mirrored, turned, or small: rewards of the DDPO authors' JAX code, with a gradient.

    mirror_symmetry       - mean (x - mirrored x)^2          mean over pixels and colours, values in [0,1]
    rotational_symmetry   - mean (x - x turned by 180)^2
    rotation_invariance   - mean over turns by 90, 180, 270 of the angle between the CLIP vectors of x and of x turned
    thumbnail             - mean over 4, 8, 16 of the angle between those of x and of x shrunk so many times

Angles are in degrees. No prompt is read.

Departs from github.com/jannerm/ddpo@e0454b9: 1. Differences are of numbers in [0,1], not of bytes, whose squares
overflowed there. 2. Pictures are shrunk in torch as floats. 3. Angles beyond 90 degrees count as they are, and come by
the formula of Kahan, 2 atan2(|u - v|, |u + v|), whose gradient exists where u = v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tastemaker.rewards import preprocess
from tastemaker.rewards.clip import Clip

TURNS = (1, 2, 3)  # of 90 degrees
SHRINKS = (4, 8, 16)


def mirror_symmetry(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the mean squared difference [B] of pictures [B,3,H,W] in [0,1] and their mirror images: 0 at the best."""
    return -_apart(images, (3,))


def rotational_symmetry(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the mean squared difference [B] of pictures [B,3,H,W] in [0,1] and the same upside down: 0 at the best."""
    return -_apart(images, (2, 3))


def _apart(images: Tensor, axes: tuple[int, ...]) -> Tensor:
    pixels = images.float() if images.itemsize < 4 else images
    return (pixels - pixels.flip(axes)).square().mean((1, 2, 3))


@dataclass(frozen=True)
class RotationInvariance(Clip):
    """Whether a picture looks the same to a CLIP when it is turned by 90, 180 and 270 degrees: minus the mean angle.

    value [B] = - mean over turns of the angle, in degrees, between the vectors of the picture and of the turned one
    """

    name: ClassVar[str] = "rotation_invariance"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B], at most 0, with their graph; where the pictures are."""
        return _likeness(self, images, [images.rot90(turn, (2, 3)) for turn in TURNS])


@dataclass(frozen=True)
class Thumbnail(Clip):
    """Whether a picture looks the same to a CLIP when it is a quarter, an eighth and a sixteenth as large.

    value [B] = - mean over sizes of the angle, in degrees, between the vectors of the picture and of the small one
    """

    name: ClassVar[str] = "thumbnail"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B], at most 0, with their graph; where the pictures are."""
        return _likeness(self, images, [shrunk(images, by) for by in SHRINKS])


def shrunk(images: Tensor, by: int) -> Tensor:
    """Pictures [B,3,H//by,W//by] of pictures [B,3,H,W], no side below one pixel; fp32 (fp64 stays)."""
    pixels = images.float() if images.itemsize < 4 else images
    down, across = (
        preprocess.matrix(side, max(1, side // by), "bicubic").to(pixels) for side in (pixels.shape[2], pixels.shape[3])
    )
    return (down @ (pixels @ across.T)).clamp(0, 1)


def _likeness(clip: Clip, images: Tensor, others: Sequence[Tensor]) -> Tensor:
    seen = clip.see(images)
    return -torch.stack([angle(seen, clip.see(other)) for other in others]).mean(0).to(images.device)


def angle(u: Tensor, v: Tensor) -> Tensor:
    """Angles [B] in degrees between vectors [B,D] of length 1."""
    return torch.rad2deg(
        2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1))
    )
