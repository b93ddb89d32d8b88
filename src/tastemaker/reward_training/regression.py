"""Ratings as labels: the head is to give the number that people gave.

L = mean ((value - rating) / s)^2,   s: the standard deviation of the ratings that it learns from
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker.evaluation.statistics import Interval, bootstrap
from tastemaker.reward_training.measures import spearman
from tastemaker.rewards.head import Head


@dataclass(frozen=True)
class Regression:
    """Rows [N,F] of what was seen, ratings [N], and of which picture each is."""

    rows: Tensor
    ratings: Tensor
    units: Sequence[Hashable]

    def begin(self, items: Tensor, hidden: int) -> Head:
        """A head that gives everything the mean rating. Errors: ValueError where all ratings are equal."""
        head, ratings = Head(self.rows.shape[1], hidden), self.ratings[items].double()
        spread, mean = torch.std_mean(ratings, correction=0)
        if not spread > 0:
            raise ValueError(f"data: all {len(items)} ratings to learn from are {float(mean):g}: they teach nothing.")
        head.fit_to(self.rows[items])
        head.middle.copy_(mean)
        head.scale.copy_(spread)
        return head

    def loss(self, head: Head, items: Tensor) -> Tensor:
        """[n]: squared errors over the ratings' variance."""
        errors: Tensor = (head(self.rows[items]) - self.ratings[items]) / head.scale
        return errors**2

    @torch.no_grad()
    def measure(self, head: Head, items: Tensor) -> dict[str, Interval]:
        """Rank correlation with the ratings, and mean absolute error in their units."""
        values, ratings = head(self.rows[items]).double(), self.ratings[items].double()
        units = [self.units[item] for item in items.tolist()]
        return {
            "rank correlation": spearman(values, ratings),
            "absolute error": bootstrap((values - ratings).abs().numpy(), units, key="error"),
        }
