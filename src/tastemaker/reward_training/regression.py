"""Ratings as labels: the head is to give the number that people gave.

L = mean ((value - rating) / s)^2,   s: the standard deviation of the ratings that it learns from
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker.evaluation.statistics import Interval, bootstrap
from tastemaker.reward_training.features import Rows
from tastemaker.reward_training.measures import spearman
from tastemaker.rewards.head import Head


@dataclass(frozen=True)
class Regression:
    """What was seen [N], ratings [N], and by what they are split: the picture of each."""

    rows: Rows
    ratings: Tensor
    units: Sequence[tuple[Hashable, ...]]

    def begin(self, items: Tensor, hidden: int) -> Head:
        """A head that gives everything the mean rating. Errors: ValueError where all ratings are equal."""
        ratings = self.ratings[items].double()
        spread, mean = torch.std_mean(ratings, correction=0)
        if not spread > 0:
            raise ValueError(f"data: all {len(items)} ratings to learn from are {float(mean):g}: they teach nothing.")
        head = Head(self.rows.width, hidden)
        head.fit_to(self.rows.chunks(items))
        head.middle.copy_(mean)
        head.scale.copy_(spread)
        return head

    def loss(self, head: Head, items: Tensor) -> Tensor:
        """[n]: squared errors over the ratings' variance."""
        errors: Tensor = (head(self.rows(items)) - self.ratings[items]) / head.scale
        return errors**2

    @torch.no_grad()
    def measure(self, head: Head, items: Tensor) -> dict[str, Interval]:
        """Rank correlation with the ratings, a picture's mean where it has several, and their mean absolute error."""
        values = torch.cat([head(part) for part in self.rows.chunks(items)]).double()
        ratings, units = self.ratings[items].double(), [self.units[item] for item in items.tolist()]
        places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
        index = torch.tensor([places[unit] for unit in units])
        means = (torch.zeros(2, len(places)).double().index_add_(1, index, torch.stack([values, ratings]))) / (
            torch.bincount(index)
        )
        return {
            "rank correlation": spearman(*means),
            "absolute error": bootstrap((values - ratings).abs().numpy(), units, key="error"),
        }
