"""Choices as labels: the head is to put the preferred picture higher.  Bradley & Terry 1952, Biometrika 39.

    P(first is preferred) = sigmoid(d),   d = value(first) - value(second)
    L = -[p log sigmoid(d) + (1 - p) log sigmoid(-d)]

p is 1 or 0, 0.5 for a tie, or the share of voters: with such labels L is the KL divergence to them but for a constant.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.evaluation.statistics import Interval, bootstrap
from tastemaker.reward_training.measures import accuracy
from tastemaker.rewards.head import Head


@dataclass(frozen=True)
class Preference:
    """Rows [N,F] of the first and the second pictures, how much the first are preferred [N], and the prompts."""

    first: Tensor
    second: Tensor
    shares: Tensor
    prompts: Sequence[Hashable]
    units: Sequence[Hashable]

    def begin(self, items: Tensor, hidden: int) -> Head:
        """A head that prefers nothing. Errors: ValueError where all labels are ties."""
        if bool((self.shares[items] == 0.5).all()):
            raise ValueError(f"data: all {len(items)} choices to learn from are ties: they teach nothing.")
        head = Head(self.first.shape[1], hidden)
        head.fit_to(torch.cat([self.first[items], self.second[items]]))
        return head

    def loss(self, head: Head, items: Tensor) -> Tensor:
        """[n]: cross-entropies with the labels, in nats."""
        return F.binary_cross_entropy_with_logits(self._margins(head, items), self.shares[items], reduction="none")

    @torch.no_grad()
    def measure(self, head: Head, items: Tensor) -> dict[str, Interval]:
        """Share of pairs that are put in the right order, ties left out, and the cross-entropy."""
        prompts = [self.prompts[item] for item in items.tolist()]
        return {
            "accuracy": accuracy(self._margins(head, items), self.shares[items], prompts),
            "cross-entropy": bootstrap(self.loss(head, items).double().numpy(), prompts, key="entropy"),
        }

    def _margins(self, head: Head, items: Tensor) -> Tensor:
        values: Tensor = head(torch.cat([self.first[items], self.second[items]]))
        first, second = values.chunk(2)
        return first - second
