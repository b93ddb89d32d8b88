"""Means with intervals for paired measurements, on prompts and over seeds.  Efron & Tibshirani 1993, ch. 13.

Pictures of one prompt resemble each other, so a prompt is what is resampled, with all its pictures:

    mean* = sum_p sum(values of prompt p) / sum_p count(values of prompt p),   prompts p drawn with replacement

A value that is NaN (a picture without a score) is left out; in a pair both are.
"""

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

RESAMPLES = 10_000
FEW = 20  # prompts, below which a percentile interval is too narrow
_AT_ONCE = 2_000_000  # drawn prompts held in memory at a time


class Interval(NamedTuple):
    """A mean and the ends of its interval; NaN where the numbers do not tell."""

    mean: float
    low: float
    high: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    values: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    key: object = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of values [N] with its percentile bootstrap interval over prompts [N].

    `key` makes the draws: the same key, the same interval. With fewer than about 20 prompts a percentile interval is
    too narrow, by about sqrt((n - 1) / n); with one prompt its ends are NaN.
    Errors: ValueError where values and prompts are not equally many.
    """
    sums, counts = _per_prompt(values, prompts)
    if len(sums) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(mean, float("nan"), float("nan"))
    draws = np.random.default_rng(int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "big"))
    means: list[Numbers] = []
    share = max(1, _AT_ONCE // len(sums))
    for first in range(0, resamples, share):
        rows = draws.integers(len(sums), size=(min(share, resamples - first), len(sums)))
        means.append(sums[rows].sum(1) / counts[rows].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def paired(
    before: ArrayLike,
    after: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    key: object = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of after - before [N], the same prompt and noise in both, with its bootstrap interval over prompts."""
    change = _pairs(before, after)
    return bootstrap(change, prompts, key=key, level=level, resamples=resamples)


def win_rate(
    before: ArrayLike,
    after: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    key: object = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Share of pairs that `after` wins, with its bootstrap interval over prompts; a tie is half a win."""
    change = _pairs(before, after)
    wins = np.where(np.isnan(change), np.nan, (np.sign(change) + 1) / 2)
    return bootstrap(wins, prompts, key=key, level=level, resamples=resamples)


def over_seeds(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of one number a seed [n] with its t interval: mean +- t(n - 1) s / sqrt(n), 4.30 s / sqrt(3) for n = 3.

    Unlike the bootstrap a seed that is NaN is not left out: a run that failed is no reason for a narrower claim.
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    mean = float(numbers.mean()) if len(numbers) else float("nan")
    if len(numbers) < 2:
        return Interval(mean, float("nan"), float("nan"))
    reach = t_quantile(len(numbers) - 1, level) * float(numbers.std(ddof=1)) / len(numbers) ** 0.5
    return Interval(mean, mean - reach, mean + reach)


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The t for which Student's P(|T| < t) = level.

    With T = sqrt(degrees) tan(theta) that probability is the integral of cos^(degrees - 1) from 0 to theta over the one
    from 0 to pi / 2, which is summed on a grid and read backwards (relative error below 1e-6 up to 1,000 degrees).
    """
    if degrees < 1 or not 0 < level < 1:
        raise ValueError(f"t needs 1 degree of freedom or more and a level inside (0, 1), found {degrees} and {level}.")
    edge = np.linspace(0, np.pi / 2, 200_001)
    inside = np.cos((edge[1:] + edge[:-1]) / 2) ** (degrees - 1)
    share = np.concatenate([[0.0], np.cumsum(inside)]) / inside.sum()
    return float(degrees**0.5 * np.tan(np.interp(level, share, edge)))


def _pairs(before: ArrayLike, after: ArrayLike) -> Numbers:
    old, new = (np.asarray(values, dtype=np.float64).ravel() for values in (before, after))
    if len(old) != len(new):
        raise ValueError(
            f"{len(old)} values before and {len(new)} after are no pairs: measure both on the same pictures."
        )
    return new - old


def _per_prompt(values: ArrayLike, prompts: Sequence[Hashable]) -> tuple[Numbers, Numbers]:
    """Sums and counts of the values that are numbers, one a prompt that has any."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if len(numbers) != len(prompts):
        raise ValueError(f"{len(numbers)} values for {len(prompts)} prompts: give the prompt of each picture.")
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    rows = np.array([places[prompt] for prompt in prompts], dtype=np.int64)
    valid = ~np.isnan(numbers)
    sums = np.bincount(rows[valid], weights=numbers[valid], minlength=len(places)).astype(np.float64)
    counts = np.bincount(rows[valid], minlength=len(places)).astype(np.float64)
    return sums[counts > 0], counts[counts > 0]
