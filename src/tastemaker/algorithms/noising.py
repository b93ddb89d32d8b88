"""The forward process: finished pictures are noised again, and the network is asked what it believes of them.

All algorithms here regress on x0: with x = alpha x0 + sigma eps, every network's error is the same vector but for a
number, x0_theta - x0 = -(sigma / alpha) (eps_theta - eps) = -sigma / (alpha + sigma) (v_theta - v), v = eps - x0. So
one loss serves networks that predict eps, v, x0 or a flow's velocity, and `scale` says which of these errors it means.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Calls
from tastemaker.credit import relative, whiten
from tastemaker.iteration import Iteration
from tastemaker.policy.policy import Conditioning
from tastemaker.process.noise import Key
from tastemaker.process.prediction import Prediction
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import Rollout

SPACES = ("x0", "eps", "velocity")


@dataclass(frozen=True)
class Noised:
    """Items: pairs (picture, noise level), as places in a rollout and in the chain's schedule.

    sample, i: [M] int64. The noise is a function of (key, epoch, level, name) and made when it is needed; name [M] is
    the picture's id, or that of the pair it belongs to.
    """

    rollout: Rollout
    key: Key
    epoch: int
    sample: Tensor
    i: Tensor
    name: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: Tensor) -> Noised:
        return replace(self, sample=self.sample[rows], i=self.i[rows], name=self.name[rows])

    @property
    def credit(self) -> Tensor:
        """[M] the picture's credit."""
        assert self.rollout.credit is not None
        return self.rollout.credit[self.sample]

    @property
    def eps(self) -> Tensor:
        """[M,C,h,w] the noise that is added, fp32 on the CPU."""
        shape = self.rollout.x0.shape[1:]
        eps = torch.empty(len(self), *shape)
        for row, i, b in zip(eps, self.i.tolist(), self.name.tolist(), strict=True):
            row.normal_(generator=self.key.generator("noised", self.epoch, i, b))
        return eps

    def seen(self, it: Iteration) -> Seen:
        """The noised pictures on the policy's device."""
        device, schedule = it.policy.device, it.policy.schedule(it.plan.steps)
        x0 = self.rollout.x0[self.sample].to(device)
        i = self.i.to(device)
        alpha, sigma = schedule.at(i, x0)
        x = alpha * x0 + sigma * self.eps.to(x0)
        return Seen(it, x0, x, i, schedule, self.rollout.conditioning.take(self.sample))


@dataclass(frozen=True)
class Seen:
    """Noised pictures as the network sees them: x [M,C,h,w] at levels i [M], of the pictures x0."""

    it: Iteration
    x0: Tensor
    x: Tensor
    i: Tensor
    schedule: Schedule
    conditioning: Conditioning

    def believed(self, guidance: float) -> Prediction:
        """What the weights in use say of x."""
        return self.it.policy.predict(self.x, self.i, self.schedule, self.conditioning, guidance)

    def believed_by(self, weights: str, guidance: float) -> Prediction:
        """The same of another set of weights, without a graph."""
        with self.it.policy.using(weights):
            return self.believed(guidance)

    def scale(self, space: str) -> Tensor:
        """[M,1,1,1] by which an error of x0 is multiplied to be, but for its sign, one of `space`."""
        alpha, sigma = self.schedule.at(self.i, self.x0)
        if space == "eps":
            return alpha / sigma
        return (alpha + sigma) / sigma if space == "velocity" else torch.ones_like(sigma)

    def squares(self, error: Tensor, space: str) -> Tensor:
        """[M] the mean square of an error of x0, counted in `space`."""
        return ((self.scale(space) * error) ** 2).flatten(1).mean(1)


def noised(it: Iteration, rollout: Rollout, levels: int, epoch: int) -> Noised:
    """`levels` different noise levels of the chain for each picture that has a credit, drawn by its id."""
    assert rollout.credit is not None, "credit comes before noise"
    samples = rollout.credit.isfinite().nonzero().flatten()
    drawn = [levels_of(it, rollout.prompts.ids[row], levels, epoch) for row in samples.tolist()]
    i = torch.tensor(drawn, dtype=torch.long).reshape(-1)
    sample = samples.repeat_interleave(levels)
    return Noised(rollout, it.key, epoch, sample, i, torch.tensor(rollout.prompts.ids, dtype=torch.long)[sample])


def levels_of(it: Iteration, b: int, levels: int, epoch: int) -> Sequence[int]:
    """One of each `levels` equal parts of the chain, so that every picture is seen with little noise and with much."""
    steps, random = it.plan.steps, it.key.random("levels", epoch, b)
    bounds = [steps * k // levels for k in range(levels + 1)]
    return [random.randrange(low, high) for low, high in zip(bounds, bounds[1:], strict=False)]


def advantage(it: Iteration, rollout: Rollout, limit: float) -> Tensor:
    """`[B]` how far a reward is above the mean of its prompt's, or of all where a prompt has one picture; cut.

    In standard deviations of all rewards of the iteration, as in the authors' runs of DiffusionNFT and AWM.
    """
    if it.plan.per_prompt == 1:
        return it.over_all(whiten, rollout.reward).clamp(-limit, limit)
    fn = partial(relative, baseline="mean", spread="global")
    return it.over_all(fn, rollout.reward, torch.tensor(rollout.prompts.groups)).clamp(-limit, limit)


def check(levels: int, schedule: Schedule, space: str = "velocity") -> int:
    """`levels`, if the chain has as many steps and the error of `space` is one at all of them."""
    if levels > len(schedule):
        raise ValueError(f"levels is {levels}, but the chain has {len(schedule)} steps: lower it, or raise steps.")
    if space == "eps" and not schedule.alpha[0]:
        raise ValueError("space is eps, but the chain begins at pure noise, where that error is 0: use space=velocity.")
    return levels


def calls(algorithm: Any, schedule: Sized, *, others: int) -> Calls:
    """A whole chain without a graph, and of each item one call with and `others` without."""
    return Calls(drawn=len(schedule) + others * algorithm.levels * algorithm.epochs, learned=1, depth=1)
