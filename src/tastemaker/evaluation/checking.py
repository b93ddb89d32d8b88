"""A check: fixed prompts from fixed noise, drawn by the base and by the tuned model, and scored by the same rewards.

Two means over an iteration's pictures differ by their prompts and noise as well as by their weights; here the weights
are all that differs, so the same number of pictures tells much smaller changes apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        """`checked`: how many pictures. `checked_trained`, `checked.NAME`: the mean change of a score in the base's
        standard deviations over pictures; `checked_error.NAME`: its standard error. NaN where there is none.

        A collective.
        """
        if self._base is None:
            with policy.using("base"):
                self._base = self._scores(policy, world, progress)
        pairs = list(zip(self._base, self._scores(policy, world, progress), strict=True))
        found = {"checked": float(len(self.trial.prompts)), "checked_trained": change(*pairs[0])[0]}
        for reward, pair in zip(self.held_out, pairs[1:], strict=True):
            found[f"checked.{reward.name}"], found[f"checked_error.{reward.name}"] = change(*pair)
        return found

    def _scores(self, policy: Policy, world: World, progress: Progress) -> list[Tensor]:
        """Of the trained reward, then of the held-out ones."""
        rewards = [self.trained, *self.held_out]
        found = judge(policy, rewards, self.trial, world=world, progress=progress).values
        return [found[reward.name] for reward in rewards]


def change(base: Tensor, tuned: Tensor) -> tuple[float, float]:
    """Mean of tuned - base `[N]` where both are finite, and its standard error; both in the base's deviations."""
    both = base.isfinite() & tuned.isfinite()
    n, away = int(both.sum()), (tuned - base)[both].double()
    unit = float(base[both].double().std(correction=0)) if n > 1 else 0.0
    if unit <= 0:
        return math.nan, math.nan
    return float(away.mean()) / unit, float(away.std()) / math.sqrt(n) / unit
