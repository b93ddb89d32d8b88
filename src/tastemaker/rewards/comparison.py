"""What scores of an iteration are worth beside each other: standardised terms, and floors.

A call sees some of the pictures, so this is a function of the finished scores of all devices, made once, before any
algorithm whitens them. With g of a term's score as in `combine`, and mean, std and rms over the valid scores of a set:

    V = sum over terms of weight * z,     z = (g - mean g) / (std g + 1e-4 rms g),   0 where all g of the set are 0

The set is a picture's group or the iteration. For `at_least` std and rms are those of the score s itself: what is
missing is counted in standard deviations, and a set in which all hold gives exact zeros. Not standardised, z = g.
Liu et al. 2026 (GDPO), arXiv:2601.05242, standardise rewards in their groups, then the sum over the batch.

With `floor: f` a picture whose score is below f is worth less than every one that holds:

    V = lowest - spread * v,     v = sum over terms of max(f - s, 0) / (std s + 1e-4 rms s)

lowest is the smallest V of the pictures of the iteration that hold, or 0; spread is the std of all V, or 1 where they
are equal; std and rms of s are over the iteration. These are Deb's rules of feasibility (2000,
doi:10.1016/S0045-7825(99)00389-8), free of scales. Where all pictures hold nothing is changed.
A picture without a score by some term is left out of every one of these numbers, and is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 1e-4  # of the rms: deviations far below it are rounding, and are not blown up


@dataclass(frozen=True)
class Rule:
    """What a sum does with a term's score."""

    weight: float = 1.0
    clip: tuple[float | None, float | None] | None = None  # None leaves one open
    at_least: float | None = None
    floor: float | None = None

    def counted(self, s: Tensor) -> Tensor:
        """g of scores [B], with their graph; what is not finite is NaN, and no limit makes a number of it."""
        finite = torch.where(s.isfinite(), s, torch.nan)
        if self.at_least is not None:
            return (finite - self.at_least).clamp(max=0)
        return s if self.clip is None else finite.clamp(*self.clip)

    def parts(self, s: Tensor) -> dict[str, Tensor]:
        """What is reported beside scores [B]."""
        found: dict[str, Tensor] = {}
        if self.clip is not None or self.at_least is not None:
            found["counted"] = self.counted(s)
        limits = [limit for limit in (self.at_least, self.floor) if limit is not None]
        if limits:
            found["holds"] = torch.where(s.isnan(), s, (s >= max(limits)).to(s))
        return found


@dataclass(frozen=True)
class Comparison:
    """How pictures are weighed against the others of their iteration."""

    parts: tuple[str, ...]  # the names of the terms' scores
    rules: tuple[Rule, ...]
    standardise: str | None  # group, iteration or None

    def worth(self, s: Tensor, groups: Tensor) -> Tensor:
        """V [N] fp32 from the terms' scores s [N,K] of all pictures and their groups [N]; NaN where a score failed."""
        found = torch.full((len(s),), torch.nan, dtype=torch.float64)
        valid = s.isfinite().all(1)
        s, groups = s[valid].double(), groups[valid]
        value = torch.zeros(len(s), dtype=torch.float64)
        for rule, column in zip(self.rules, s.unbind(1), strict=True):
            value += rule.weight * self._term(rule, column, groups)
        found[valid] = self._with_floors(value, s)
        return found.float()

    def _term(self, rule: Rule, s: Tensor, groups: Tensor) -> Tensor:
        g = rule.counted(s)
        if self.standardise is None:
            return g
        sets = groups if self.standardise == "group" else torch.zeros_like(groups)
        measured = g if rule.at_least is None else s
        found = torch.zeros_like(g)
        for one in torch.unique(sets):
            rows = sets == one
            above = g[rows] - g[rows].min()  # so that equal numbers are exactly 0
            found[rows] = (above - above.mean()) / _scale(measured[rows])
        return found

    def _with_floors(self, value: Tensor, s: Tensor) -> Tensor:
        short = torch.zeros_like(value)
        for rule, column in zip(self.rules, s.unbind(1), strict=True):
            if rule.floor is not None and len(s):
                short += (rule.floor - column).clamp(min=0) / _scale(column)
        if not (short > 0).any():  # no floor is broken
            return value
        holds, spread = short == 0, float(value.std(correction=0)) or 1.0
        lowest = value[holds].min() if holds.any() else torch.zeros(())
        return torch.where(holds, value, lowest - spread * short)


def _scale(values: Tensor) -> Tensor:
    """std + 1e-4 rms of numbers [n]; 1 where all are 0."""
    found = (values - values.min()).std(correction=0) + LEAST * values.square().mean().sqrt()
    return torch.where(found > 0, found, torch.ones_like(found))
