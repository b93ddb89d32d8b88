"""Truncation: which of a chain's steps are differentiated, drawn once for each picture.

A step that is *live* is one whose network call keeps its graph. Prabhudesai et al. 2023, arXiv:2310.03739 (AlignProp),
draw how many of the last steps are live; their first release tossed a coin for each step instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor

from tastemaker.process.noise import Key

TABLE = {
    "uniform": "tastemaker.process.truncation:Uniform",
    "gaussian": "tastemaker.process.truncation:Gaussian",
    "fixed": "tastemaker.process.truncation:Fixed",
    "per_step": "tastemaker.process.truncation:PerStep",
}


class Truncation(Protocol):
    """A rule for the live steps of a chain; frozen, without state."""

    def live(self, key: Key, ids: Sequence[int], steps: int) -> Tensor:
        """[B,T] bool, whether step i of sample b is live; every row has at least one. Row b depends on ids[b] alone."""

    def expected(self, steps: int) -> tuple[float, int]:
        """How many steps are live on average, and at most."""


@dataclass(frozen=True)
class Fixed:
    """The last `k` steps, of every picture."""

    k: int = 1  # live steps at the end of the chain

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}; at least 1 step has to be live.")

    def live(self, key: Key, ids: Sequence[int], steps: int) -> Tensor:
        return _from(torch.full((len(ids),), self._first(steps)), steps)

    def expected(self, steps: int) -> tuple[float, int]:
        return steps - self._first(steps), steps - self._first(steps)

    def _first(self, steps: int) -> int:
        if self.k > steps:
            raise ValueError(f"k is {self.k}, but the chain has {steps} steps: lower k, or raise steps.")
        return steps - self.k


@dataclass(frozen=True)
class Uniform:
    """All steps from a share of the chain on that is drawn uniformly, the last step always."""

    low: float = 0.0  # the least share of the chain that keeps no graph
    high: float = 1.0  # the largest; 1 leaves the last step alone

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def live(self, key: Key, ids: Sequence[int], steps: int) -> Tensor:
        low, high = round(self.low * steps), round(self.high * steps)
        drawn = [min(key.random("truncation", b).randint(low, high), steps - 1) for b in ids]
        return _from(torch.tensor(drawn, dtype=torch.long), steps)

    def expected(self, steps: int) -> tuple[float, int]:
        kept = [steps - min(first, steps - 1) for first in range(round(self.low * steps), round(self.high * steps) + 1)]
        return sum(kept) / len(kept), max(kept)


@dataclass(frozen=True)
class Gaussian:
    """All steps from a share of the chain on that is drawn from a normal distribution, cut to the chain."""

    mean: float = 0.84  # share of the chain that keeps no graph; the authors' 42 of 50 steps
    std: float = 0.1  # of that share; the authors' 5 of 50

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= 1:
            raise ValueError(f"mean is {self.mean}; it is a share of the chain, between 0 and 1.")
        if not self.std >= 0:
            raise ValueError(f"std is {self.std}; it must be at least 0.")

    def live(self, key: Key, ids: Sequence[int], steps: int) -> Tensor:
        drawn = [key.random("truncation", b).gauss(self.mean, self.std) * steps for b in ids]
        first = [min(max(round(place), 0), steps - 1) for place in drawn]
        return _from(torch.tensor(first, dtype=torch.long), steps)

    def expected(self, steps: int) -> tuple[float, int]:
        if not self.std:
            kept = steps - min(round(self.mean * steps), steps - 1)
            return kept, kept
        place = NormalDist(self.mean * steps, self.std * steps)
        return 1 + sum(place.cdf(first + 0.5) for first in range(steps - 1)), steps


@dataclass(frozen=True)
class PerStep:
    """A coin for every step, as AlignProp's first release and TRL have it: step i is live when a number drawn from
    low T ... high T is not above i. Idle steps in between are passed without a graph of the network."""

    low: float = 0.0  # share of the chain below which no step is live
    high: float = 1.0  # share of the chain from which on every step is

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def live(self, key: Key, ids: Sequence[int], steps: int) -> Tensor:
        low, high = round(self.low * steps), round(self.high * steps)
        coins = torch.zeros(len(ids), steps, dtype=torch.bool)
        for row, b in zip(coins, ids, strict=True):
            drawn = key.random("truncation", b)
            row[:] = torch.tensor([drawn.randint(low, high) <= i for i in range(steps)])
            row[-1] |= not row.any()  # a picture without a live step would teach nothing
        return coins

    def expected(self, steps: int) -> tuple[float, int]:
        low, high = round(self.low * steps), round(self.high * steps)
        chances = [min(max((i - low + 1) / (high - low + 1), 0.0), 1.0) for i in range(steps)]
        return sum(chances) + prod(1 - chance for chance in chances), max(steps - low, 1)


def _check_range(low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low is {low} and high {high}; they are shares of the chain, 0 <= low <= high <= 1.")


def _from(first: Tensor, steps: int) -> Tensor:
    """[B,T] the steps from `first [B]` on."""
    return torch.arange(steps) >= first[:, None]
