"""RAM, Reinforce Adjoint Matching: the tilted base as a regression's fixed point.  Bergmeister 2026, arXiv:2605.10759.

Pictures are drawn by the weights as they are and noised again. The velocity v = eps - x0 learns, without a gradient
through its target,

    v_base + strength A (v - v_theta),

whose fixed point is, to first order in strength, the velocity of the base tilted by exp(strength A): the optimum of
E[A] - KL(p || base) / strength. In x0, of which every velocity's error is a multiple, the target is
x0_base + strength A (x0 - x0_theta).

Departs from the paper, whose formula was derived again:
1. Eps and v models are served too; the same equation holds of each, for the factors between them cancel.
2. A is measured from the mean of the prompt's pictures, or of all where a prompt has one, in deviations of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least, one_of, positive
from tastemaker.algorithms.noising import SPACES, Noised, advantage, calls, check, noised
from tastemaker.iteration import Iteration, Loss, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import collect, placed


@dataclass(frozen=True)
class RAM(Algorithm):
    """The settings of RAM; sizes are DiffusionNFT's, for the paper's own were not at hand."""

    citation = r"""@misc{bergmeister2026reinforce,
  title  = {Reinforce Adjoint Matching: Scaling {RL} Post-Training of Diffusion and Flow-Matching Models},
  author = {Bergmeister, Andreas and Jegelka, Stefanie and N{\"u}sken, Nikolas and Domingo-Enrich, Carles and
            Pidstrigach, Jakiw},
  year   = {2026},
  note   = {arXiv:2605.10759}
}"""

    images: int = 1152  # pictures an iteration, over all devices
    per_prompt: int = 24  # pictures of one prompt, which are compared with each other
    updates: int = 2  # optimizer steps an iteration, each on images / updates pictures
    steps: int = 10  # steps of the denoising chain
    guidance: float = 1.0  # classifier-free guidance, in drawing and in the loss; 1 switches it off
    levels: int = 10  # noise levels each picture is learned from, spread over the chain
    strength: float = 1.0  # how far the base is tilted: 1 / the weight of the KL
    space: str = "velocity"  # the error that is squared: velocity, eps or x0
    advantage_limit: float = 5.0  # advantages are cut to +- this
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "levels", 1)
        positive(self, "strength", "advantage_limit")
        one_of(self, "space", SPACES)

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        return check(self.levels, schedule, self.space)

    def calls(self, schedule: Sized) -> Calls:
        return calls(self, schedule, others=1)

    def iteration(self, it: Iteration) -> Iterator[Update]:
        rollout = collect(it, placed(it, self.sampler))
        rollout = rollout.credited(advantage(it, rollout, self.advantage_limit))
        for batch in rollout.updates(it, 0):
            yield Update(noised(it, batch, self.levels, 0), partial(self.loss, it))

    def loss(self, it: Iteration, items: Noised) -> Loss:
        """The squared distance of each item's belief to its target."""
        seen = items.seen(it)
        base = seen.believed_by("base", self.guidance).x0
        new = seen.believed(self.guidance).x0
        A = items.credit.to(new).view(-1, 1, 1, 1)
        target = base + self.strength * A * (seen.x0 - new.detach())
        return Loss(seen.squares(new - target, self.space), {"kl": seen.squares((new - base).detach(), "velocity")})
