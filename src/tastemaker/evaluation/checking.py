"""A check: fixed prompts from fixed noise, drawn by the base and by the tuned model, and scored by the same rewards.

Two means over an iteration's pictures differ by their prompts and noise as well as by their weights; here the weights
are all that differs, so the same number of pictures tells much smaller changes apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tastemaker.evaluation.evaluate import Trial, judge
from tastemaker.iteration import Progress
from tastemaker.policy.policy import Policy
from tastemaker.rewards.reward import NamedReward
from tastemaker.world import World


class Check:
    """The fixed pictures of one run; the base's are drawn once.

    trained: the reward that is trained on. held_out: those whose fall is looked for.
    """

    def __init__(self, trial: Trial, trained: NamedReward, held_out: Sequence[NamedReward]) -> None:
        self.trial, self.trained, self.held_out = trial, trained, held_out
        self._base: list[Tensor] | None = None

    def changes(self, policy: Policy, world: World, progress: Progress) -> dict[str, float]:
        """`checked`: pictures of which both scores of the trained reward are there. `checked_trained`, `checked.NAME`:
        the mean change of a score in the base's standard deviations over pictures; `checked_error.NAME`: its standard
        error. NaN where there is none.

        A collective.
        """
        base = self._base
        if base is None:
            with policy.using("base"):
                base = self._scores(policy, world, progress)
            if all(bool(scores.isfinite().any()) for scores in base):  # a reward that fails is asked again
                self._base = base
        pairs = list(zip(base, self._scores(policy, world, progress), strict=True))
        groups, both = self.trial.prompts.groups, pairs[0][0].isfinite() & pairs[0][1].isfinite()
        found = {"checked": float(both.sum()), "checked_trained": change(*pairs[0], groups)[0]}
        for reward, pair in zip(self.held_out, pairs[1:], strict=True):
            found[f"checked.{reward.name}"], found[f"checked_error.{reward.name}"] = change(*pair, groups)
        return found

    def _scores(self, policy: Policy, world: World, progress: Progress) -> list[Tensor]:
        """Of the trained reward, then of the held-out ones."""
        rewards = [self.trained, *self.held_out]
        found = judge(policy, rewards, self.trial, world=world, progress=progress).values
        return [found[reward.name] for reward in rewards]


def change(base: Tensor, tuned: Tensor, groups: Sequence[int]) -> tuple[float, float]:
    """Mean of tuned - base `[N]` where both are finite, and its standard error; both in the base's deviations, or as
    they are where the base's scores are all equal.

    Pictures of one prompt, a group, resemble each other, so prompts are what the error counts:
    sqrt(G / (G - 1) sum_g (sum over g of (d - mean))^2) / N for G groups.  NaN where one group is all there is.
    """
    both = base.isfinite() & tuned.isfinite()
    away, n = (tuned - base)[both].double(), int(both.sum())
    if n < 2:
        return math.nan, math.nan
    unit = float(base[both].double().std(correction=0)) or 1.0
    places = torch.tensor(groups)[both].unique(return_inverse=True)[1]
    sums = torch.zeros(int(places.max()) + 1, dtype=torch.float64).index_add(0, places, away - away.mean())
    many = len(sums)
    error = math.sqrt(many / (many - 1) * float(sums.square().sum())) / n if many > 1 else math.nan
    return float(away.mean()) / unit, error / unit
