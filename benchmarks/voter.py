"""A voter that is a rule with noise: what people are in the benchmarks of rewards from people.

It likes plain, dark backgrounds and large objects, whatever the caption says. Nothing in the package knows the rule.

    u = -(light - 0.62) / 0.12 - (unrest - 0.14) / 0.10 + (cover - 0.145) / 0.05,   in units of U below

light and unrest are mean and deviation of the background's brightness, cover the share of the picture in strong colour.
P(left) = sigmoid(STEADY (u_left - u_right));  a rating is 5.5 + 2 (u + NOISE e), rounded, from 1 to 10.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LIGHT, UNREST, COVER = (0.62, 0.12), (0.14, 0.10), (0.145, 0.05)  # mean and SD over the base's pictures
U = 1.67  # SD of the sum over the base's pictures
STEADY = 2.5  # how sure the voter is of a difference of one SD
CLOSE = 0.1  # SD: a smaller difference is a tie
NOISE = 0.35  # SD of what a rating has beside the rule
_CHROMA = 0.33  # objects lie above, backgrounds below


def utility(images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """The rule [B] of pictures [B,3,64,64] in [0,1], in standard deviations of the base's."""
    x = images.detach().float().clamp(0, 1)
    inside = x.amax(1) - x.amin(1) > _CHROMA
    free = F.max_pool2d(inside[:, None].float(), 13, 1, 6)[:, 0] == 0
    light = torch.einsum("bchw,c->bhw", x, torch.tensor([0.299, 0.587, 0.114]))
    mean = _mean(light, free)
    unrest = _mean((light - mean[:, None, None]) ** 2, free).sqrt()
    parts = ((-mean, (-LIGHT[0], LIGHT[1])), (-unrest, (-UNREST[0], UNREST[1])), (inside.float().mean((1, 2)), COVER))
    return sum((value - middle) / spread for value, (middle, spread) in parts) / U


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)


def of_files(files: Sequence[Path]) -> Tensor:
    """The rule of pictures in files."""
    found = []
    for file in files:
        with Image.open(file) as picture:
            found.append(torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1) / 255)
    return utility(torch.stack(found))


def vote(left: Path, right: Path, *key: object) -> str:
    """What the voter says of two pictures; the key draws its mood."""
    a, b = of_files([left, right]).tolist()
    if abs(a - b) < CLOSE:
        return "tie"
    return "left" if _mood(*key).random() < 1 / (1 + math.exp(-STEADY * (a - b))) else "right"


def rating(value: float, *key: object) -> int:
    """What the voter gives a picture of that utility, from 1 to 10."""
    return min(10, max(1, round(5.5 + 2 * (value + NOISE * _mood(*key).gauss(0, 1)))))


def _mood(*key: object) -> random.Random:
    return random.Random(hashlib.blake2b(repr(key).encode(), digest_size=8).digest())
