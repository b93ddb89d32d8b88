"""DiffusionNFT: the forward process learns from good and bad pictures at once.  Zheng et al. 2025, arXiv:2509.16117.

Pictures are drawn by the old weights and noised again. With r in [0, 1] how good a picture is, and x0_old what the old
weights believe, two mirrored beliefs are made of the new one and both are asked for the picture x0:

    x0_plus = x0_old + beta (x0_theta - x0_old),    x0_minus = x0_old - beta (x0_theta - x0_old),
    L = limit / beta [r mean (x0_plus - x0)^2 / w_plus + (1 - r) mean (x0_minus - x0)^2 / w_minus]
        + kl mean (v_theta - v_base)^2,
    r = (A / limit + 1) / 2,    w = mean |x0_plus - x0|, without a gradient, and its mirror's likewise.

After each iteration old <- keep old + (1 - keep) theta, keep = min(ramp n, keep_most) after n others.

Departs from the authors' code:
1. Beliefs are of x0 throughout, so eps and v models are served too; there it is a flow's velocity, which is the same.
2. Pictures are drawn by the chain's ODE (first order); there by a solver of second order.
3. A prompt with one picture is compared with all of the iteration.
4. `n` counts iterations; there optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least, positive
from tastemaker.algorithms.noising import Noised, advantage, calls, check, noised
from tastemaker.iteration import Iteration, Loss, State, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import collect, placed

LEAST = 1e-5  # of w: where a belief is the picture itself its square is 0 too


@dataclass(frozen=True)
class DiffusionNFT(Algorithm):
    """The settings of DiffusionNFT; defaults of the authors' code for SD3.5, for one prompt more or less."""

    citation = """@misc{zheng2025diffusionnft,
  title  = {{DiffusionNFT}: Online Diffusion Reinforcement with Forward Process},
  author = {Zheng, Kaiwen and Chen, Huayu and Ye, Haotian and Wang, Haoxiang and Zhang, Qinsheng and Jiang, Kai and
            Su, Hang and Ermon, Stefano and Zhu, Jun and Liu, Ming-Yu},
  year   = {2025},
  note   = {arXiv:2509.16117}
}"""
    sets: ClassVar[tuple[str, ...]] = ("base", "old")

    images: int = 1152  # pictures an iteration, over all devices
    per_prompt: int = 24  # pictures of one prompt, which are compared with each other
    updates: int = 2  # optimizer steps an iteration, each on images / updates pictures
    steps: int = 10  # steps of the denoising chain
    guidance: float = 1.0  # classifier-free guidance, in drawing and in the loss; 1 switches it off
    levels: int = 10  # noise levels each picture is learned from, spread over the chain
    beta: float = 1.0  # how far the mirrored beliefs are from the old one; small is bold
    kl: float = 1e-4  # weight of the squared distance to the base's velocity
    ramp: float = 1e-3  # by which `keep` grows each iteration
    keep_most: float = 0.5  # the largest `keep`, the share of the old weights that stays
    advantage_limit: float = 5.0  # advantages are cut to +- this, which is r = 0 or 1
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "levels", 1)
        for name in ("kl", "ramp"):
            at_least(self, name, 0)
        positive(self, "beta", "advantage_limit")
        if not 0 <= self.keep_most <= 1:
            raise ValueError(f"keep_most is {self.keep_most}; it is a share between 0 and 1.")
        for name, other in (("ramp", "keep_most"), ("keep_most", "ramp")):
            if name in self.given and getattr(self, name) and not getattr(self, other):
                raise ValueError(
                    f"{name} has no effect at {other}=0, where nothing of the old weights stays: leave it out, or "
                    f"raise {other}."
                )

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        return check(self.levels, schedule)

    def calls(self, schedule: Sized) -> Calls:
        return calls(self, schedule, others=1 + (self.kl > 0))

    def begin(self) -> State:
        return {"done": 0}

    def iteration(self, it: Iteration) -> Iterator[Update]:
        with it.policy.using("old"):
            rollout = collect(it, placed(it, self.sampler))
        rollout = rollout.credited(advantage(it, rollout, self.advantage_limit))
        for batch in rollout.updates(it, 0):
            yield Update(noised(it, batch, self.levels, 0), partial(self.loss, it))
        it.policy.blend("old", min(self.ramp * it.state["done"], self.keep_most))
        it.state["done"] += 1

    def loss(self, it: Iteration, items: Noised) -> Loss:
        """What the two mirrored beliefs of each item cost, and the distance from the base."""
        seen = items.seen(it)
        old = seen.believed_by("old", self.guidance).x0
        base = seen.believed_by("base", self.guidance).x0 if self.kl else None
        new = seen.believed(self.guidance).x0
        r = (items.credit.to(new) / self.advantage_limit + 1) / 2
        step = self.beta * (new - old)
        plus, minus = _normalised(old + step - seen.x0), _normalised(old - step - seen.x0)
        value = self.advantage_limit / self.beta * (r * plus + (1 - r) * minus)
        stats = {"moved": seen.squares((new - old).detach(), "velocity")}
        if base is not None:
            apart = seen.squares(new - base, "velocity")
            value, stats = value + self.kl * apart, stats | {"kl": apart.detach()}
        return Loss(value, stats)


def _normalised(error: Tensor) -> Tensor:
    """[M] the mean square of an error over its mean size."""
    error = error.flatten(1)
    return (error**2).mean(1) / error.detach().abs().mean(1).clamp(min=LEAST)
