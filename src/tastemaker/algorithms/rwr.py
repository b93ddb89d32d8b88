"""RWR: reward-weighted regression on one's own pictures.  Lee et al. 2023, arXiv:2302.12192.

Peters & Schaal 2007; as here in Black et al. 2023, arXiv:2305.13301, section 4.2.

Pictures are drawn, scored, noised again and learned from as in training the model itself, each with a weight w(r):

    L = w(r) mean (eps_theta(x) - eps)^2,    x = alpha x0 + sigma eps,
    w(r) = exp(r / temperature) / mean of it (dense),   or 1 for the best `top` of the pictures and 0 else (sparse).

Departs from jannerm/ddpo:
1. Rewards are whitened before the exponential, so that `temperature` is in standard deviations; there the raw reward is
   multiplied by 0.2.
2. Noise levels are those of the sampling chain, not all of the model's thousand.
3. Of networks that predict eps the loss is theirs; `space` makes it that of x0 or a flow's velocity.
4. Sparse weights leave pictures out before they cost anything; the share is of an iteration, not of a stream.
5. Weights are normalised over the iteration; there, in the run on animals, among the pictures of each prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least, one_of, positive
from tastemaker.algorithms.noising import SPACES, Noised, check, noised
from tastemaker.credit import softmax_weights, top, whiten
from tastemaker.iteration import Iteration, Loss, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import collect, placed


@dataclass(frozen=True)
class RWR(Algorithm):
    """The settings of reward-weighted regression; defaults of the DDPO paper's code."""

    citation = """@misc{lee2023aligning,
  title  = {Aligning Text-to-Image Models using Human Feedback},
  author = {Lee, Kimin and Liu, Hao and Ryu, Moonkyung and Watkins, Olivia and Du, Yuqing and Boutilier, Craig and
            Abbeel, Pieter and Ghavamzadeh, Mohammad and Gu, Shixiang Shane},
  year   = {2023},
  note   = {arXiv:2302.12192}
}"""

    images: int = 10_240  # pictures an iteration, over all devices
    updates: int = 40  # optimizer steps an iteration and inner epoch, each on images / updates pictures
    iterations: int = 10  # rounds of drawing, scoring and learning
    inner_epochs: int = 5  # how often the same pictures are learned from, with other noise
    levels: int = 1  # noise levels each picture is learned from in an epoch, spread over the chain
    temperature: float = 1.0  # of the weights, in standard deviations of the reward; small is greedy
    top: float = 0.0  # share of the pictures that is learned from, with equal weights; 0 weighs all by temperature
    space: str = "eps"  # the error that is squared: eps, x0 or velocity; of a flow x0 or velocity
    guidance_in_loss: bool = True  # off: learn the conditional prediction alone
    sampler: Sampler = field(default_factory=DDIM)  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inner_epochs", "levels"):
            at_least(self, name, 1)
        positive(self, "temperature")
        if not 0 <= self.top <= 1:
            raise ValueError(f"top is {self.top}; it is a share between 0 (all, weighed) and 1.")
        if self.top and "temperature" in self.given:
            raise ValueError("temperature has no effect with top, which weighs equally: leave one of them out.")
        if "guidance_in_loss" in self.given and self.guidance <= 1:
            raise ValueError(
                f"guidance_in_loss has no effect at guidance={self.guidance}, which is none: leave it out, or raise "
                "guidance."
            )
        one_of(self, "space", SPACES)

    @classmethod
    def settled(cls, stated: Mapping[str, Any]) -> frozenset[str]:
        return frozenset(() if stated.get("top") in (None, 0, "0", "0.0") else {"temperature"})

    @property
    def epochs(self) -> int:
        return self.inner_epochs

    @property
    def learning_guidance(self) -> float:
        return self.guidance if self.guidance_in_loss else 1.0

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        return check(self.levels, schedule, self.space)

    def calls(self, schedule: Sized) -> Calls:
        share = self.top or 1.0
        return Calls(drawn=len(schedule), learned=share, depth=1, taken=share)

    def iteration(self, it: Iteration) -> Iterator[Update]:
        rollout = collect(it, placed(it, self.sampler))
        rollout = rollout.credited(it.over_all(self.weights, rollout.reward))
        for epoch in range(self.inner_epochs):
            for batch in rollout.updates(it, epoch):
                yield Update(noised(it, batch, self.levels, epoch), partial(self.loss, it))

    def weights(self, r: Tensor) -> Tensor:
        """[N] what each picture counts; NaN where it is not learned from."""
        return top(r, share=self.top) if self.top else softmax_weights(whiten(r), temperature=self.temperature)

    def loss(self, it: Iteration, items: Noised) -> Loss:
        """The weighted squared error of each item."""
        seen = items.seen(it)
        squares = seen.squares(seen.believed(self.learning_guidance).x0 - seen.x0, self.space)
        weight = items.credit.to(squares)
        return Loss(weight * squares, {"error": squares.detach(), "weight": weight})
