"""How well a trained reward says what people said, with intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tastemaker.evaluation.statistics import Interval, bootstrap

_Z = 1.959964  # of a normal distribution, both tails 2.5 %


def spearman(values: Tensor, ratings: Tensor) -> Interval:
    """Spearman's rank correlation of values and ratings [N], ties at their mean rank, with its 95 % interval.

    atanh(r) +- 1.96 sqrt((1 + r^2 / 2) / (N - 3)):  Bonett & Wright 2000, Psychometrika 65.
    NaN where either is constant; ends are NaN for fewer than four.
    """
    a, b = ranks(values.numpy()), ranks(ratings.numpy())
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return Interval(math.nan, math.nan, math.nan)
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if len(a) < 4:
        return Interval(r, math.nan, math.nan)
    middle, reach = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), _Z * math.sqrt((1 + r * r / 2) / (len(a) - 3))
    return Interval(r, float(np.tanh(middle - reach)), float(np.tanh(middle + reach)))


def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks from 1 of values [N]; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return np.asarray((ends - (count - 1) / 2)[place.reshape(-1)], dtype=np.float64)


def accuracy(margins: Tensor, shares: Tensor, units: Sequence[Hashable]) -> Interval:
    """Share of pairs whose preferred picture has the higher value, with its bootstrap interval over units.

    margins [N]: value of the first less that of the second; shares [N]: how much the first is preferred. Ties of the
    voters are left out; equal values are half right.
    """
    right = np.sign(margins.double().numpy()) * np.sign(shares.double().numpy() - 0.5)
    found = np.where(shares.numpy() == 0.5, np.nan, (right + 1) / 2)
    return bootstrap(found, units, key="accuracy")
