"""AWM: advantage-weighted matching of the forward process.  Xue et al. 2025, arXiv:2509.25050.

The loss of training the model itself takes the place of the log-probability in a clipped policy gradient. Pictures are
noised again, and with l = w mean (v_theta(x) - v)^2, v = eps - x0,

    rho = exp(l_old - l),    L = max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + kl mean (v_theta - v_base)^2.

At theta = old its gradient is that of A l: matching, weighted by the advantage.

Departs from the published implementations:
1. w is 1 in the error that `space` names; a generalised Huber loss is not offered.
2. One anchor, the base; a second one that follows the weights slowly is not kept.
3. A prompt with one picture is compared with all of the iteration.
4. A is cut to +- advantage_limit; there it is divided by that limit too, so kl = 1e-4 of that code is 5e-4 here.
5. Pictures are drawn by the chain's ODE (first order); there by a solver of higher order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least, one_of, positive
from tastemaker.algorithms.noising import SPACES, Noised, advantage, calls, check, noised
from tastemaker.algorithms.transitions import clipped
from tastemaker.iteration import Iteration, Loss, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import collect, placed


@dataclass(frozen=True)
class AWM(Algorithm):
    """The settings of advantage-weighted matching; defaults of the published ones for SD3.5 where they are known."""

    citation = """@misc{xue2025advantage,
  title  = {Advantage Weighted Matching: Aligning {RL} with Pretraining in Diffusion Models},
  author = {Xue, Shuchen and Ge, Chongjian and Zhang, Shilong and Li, Yichen and Ma, Zhi-Ming},
  year   = {2025},
  note   = {arXiv:2509.25050}
}"""
    sets: ClassVar[tuple[str, ...]] = ("base", "old")

    images: int = 1152  # pictures an iteration, over all devices
    per_prompt: int = 24  # pictures of one prompt, which are compared with each other
    updates: int = 2  # optimizer steps an iteration, each on images / updates pictures
    steps: int = 10  # steps of the denoising chain
    guidance: float = 1.0  # classifier-free guidance, in drawing and in the loss; 1 switches it off
    levels: int = 6  # noise levels each picture is learned from, spread over the chain
    clip: float = 1.0  # of the ratio
    kl: float = 5e-4  # weight of the squared distance to the base's velocity
    space: str = "velocity"  # the error that is squared: velocity, eps or x0
    advantage_limit: float = 5.0  # advantages are cut to +- this
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "levels", 1)
        at_least(self, "kl", 0)
        positive(self, "clip", "advantage_limit")
        one_of(self, "space", SPACES)

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        return check(self.levels, schedule, self.space)

    def calls(self, schedule: Sized) -> Calls:
        return calls(self, schedule, others=1 + (self.kl > 0))

    def iteration(self, it: Iteration) -> Iterator[Update]:
        rollout = collect(it, placed(it, self.sampler))
        rollout = rollout.credited(advantage(it, rollout, self.advantage_limit))
        for batch in rollout.updates(it, 0):
            yield Update(noised(it, batch, self.levels, 0), partial(self.loss, it))
        it.policy.blend("old", 0.0)

    def loss(self, it: Iteration, items: Noised) -> Loss:
        """The clipped surrogate of each item, and the distance from the base."""
        seen = items.seen(it)
        old = seen.squares(seen.believed_by("old", self.guidance).x0 - seen.x0, self.space)
        base = seen.believed_by("base", self.guidance).x0 if self.kl else None
        new = seen.believed(self.guidance).x0
        apart = old - seen.squares(new - seen.x0, self.space)
        value, stats = clipped(apart, items.credit.to(apart), self.clip)
        if base is not None:
            away = seen.squares(new - base, "velocity")
            value, stats = value + self.kl * away, stats | {"kl": away.detach()}
        return Loss(value, stats)
