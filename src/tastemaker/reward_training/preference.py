"""Choices as labels: the head is to put the preferred picture higher.  Bradley & Terry 1952, Biometrika 39.

    P(first is preferred) = sigmoid(d),   d = value(first) - value(second)
    L = -[p log sigmoid(d) + (1 - p) log sigmoid(-d)]

p is 1 or 0, 0.5 for a tie, or the share of voters: with such labels L is the KL divergence to them but for a constant.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.evaluation.statistics import Interval, bootstrap
from tastemaker.reward_training.features import CHUNK, Rows
from tastemaker.reward_training.measures import accuracy
from tastemaker.rewards.head import Head


@dataclass(frozen=True)
class Preference:
    """What was seen of the first and the second pictures [N], how much the first are preferred [N], and by what they
    are split: one thing that pairs have in common, or both pictures of each."""

    first: Rows
    second: Rows
    shares: Tensor
    units: Sequence[tuple[Hashable, ...]]

    def begin(self, items: Tensor, hidden: int) -> Head:
        """A head that prefers nothing. Errors: ValueError where all labels are ties."""
        if bool((self.shares[items] == 0.5).all()):
            raise ValueError(f"data: all {len(items)} choices to learn from are ties: they teach nothing.")
        head = Head(self.first.width, hidden)
        head.fit_to(chain(self.first.chunks(items), self.second.chunks(items)))
        return head

    def loss(self, head: Head, items: Tensor) -> Tensor:
        """[n]: cross-entropies with the labels, in nats."""
        return F.binary_cross_entropy_with_logits(self._margins(head, items), self.shares[items], reduction="none")

    @torch.no_grad()
    def measure(self, head: Head, items: Tensor) -> dict[str, Interval]:
        """Share of pairs that are put in the right order, ties left out, and the cross-entropy."""
        units = [self.units[item][0] for item in items.tolist()]
        parts = torch.split(items, CHUNK)  # type: ignore[no-untyped-call]
        margins = torch.cat([self._margins(head, part) for part in parts])
        losses = torch.cat([self.loss(head, part) for part in parts])
        return {
            "accuracy": accuracy(margins, self.shares[items], units),
            "cross-entropy": bootstrap(losses.double().numpy(), units, key="entropy"),
        }

    def _margins(self, head: Head, items: Tensor) -> Tensor:
        values: Tensor = head(torch.cat([self.first(items), self.second(items)]))
        first, second = values.chunk(2)
        return first - second
