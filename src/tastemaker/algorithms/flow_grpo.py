"""Flow-GRPO: policy gradients with advantages inside the group.  Liu et al. 2025, arXiv:2505.05470.

Every prompt is drawn `per_prompt` times; A is how far a picture's reward lies above its group's mean, in standard
deviations of all rewards of the iteration. With rho the ratio of the new to the sampling policy, of every transition
minimise

    -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + kl KL(p_theta(. | x[i], c) || p_base(. | x[i], c)),
    A = (r - mean_group) / (std_all + 1e-4),   KL = (mean_theta - mean_base)^2 / (2 std_i^2).

Flow-GRPO-Fast, MixGRPO and DanceGRPO are values: `sampler` a `window`, or `dance_sde` with `same_noise`. With
`recentred` the ratio is GRPO-Guard's (arXiv:2510.22319): with z the noise that x[i+1] was drawn with,

    log rho = mean z (mean_theta - mean_old) = (log p_theta - log p_old) std_i + (mean_theta - mean_old)^2 / (2 std_i).

Departs from yifan123/flow_grpo:
1. KL is that of the two Gaussians. There std_i lacks its factor sqrt(-dt), so kl = 0.04 of that code is 0.04 / T here,
   in T equal steps: 0.004.
2. Every random step is learned from. There the last is left out (timestep_fraction 0.99 of 10 steps).
3. Groups of equal rewards have no items at all, also where kl would; there they are left out one picture at a time.
4. `cps` has the log-probability of its Gaussian; there the variance is left out of it.
5. Of GRPO-Guard the ratio alone is taken, not its weights of steps; mean_old is x[i+1] - std_i z, exact but for the
   rounding of x[i+1].
6. Latents, failed scores, cutting and renewed log-probabilities are as in `ddpo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least, one_of, positive, share
from tastemaker.algorithms.transitions import (
    base_at,
    chosen,
    clipped,
    held,
    log_ratio,
    random_steps,
    recentred,
    subset,
    with_base,
    with_old,
)
from tastemaker.credit import equal, relative
from tastemaker.iteration import Iteration, Loss, State, Update
from tastemaker.process.flow_samplers import FlowSDE
from tastemaker.process.samplers import Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import Rollout, Transitions, collect, placed, transition_at

Spread = Literal["global", "group", "none"]
Baseline = Literal["mean", "leave_one_out"]


@dataclass(frozen=True)
class FlowGRPO(Algorithm):
    """The settings of Flow-GRPO; defaults of the authors' run on GenEval."""

    citation = """@misc{liu2025flowgrpo,
  title  = {{Flow-GRPO}: Training Flow Matching Models via Online {RL}},
  author = {Liu, Jie and Liu, Gongye and Liang, Jiajun and Li, Yangguang and Liu, Jiaheng and Wang, Xintao and
            Wan, Pengfei and Zhang, Di and Ouyang, Wanli},
  year   = {2025},
  note   = {arXiv:2505.05470}
}"""

    images: int = 1152  # pictures an iteration, over all devices: 48 groups
    per_prompt: int = 24  # pictures of one prompt; together they are a group
    updates: int = 2  # optimizer steps an iteration (and inner epoch), each on images / updates pictures
    steps: int = 10  # steps of the denoising chain
    guidance: float = 4.5  # classifier-free guidance, in sampling and in the loss; 1 switches it off
    iterations: int = 2500  # rounds of drawing, scoring and learning; the authors go on past 5,000 updates
    clip: float = 1e-4  # of the ratio; the authors take 1e-5 for windows and without guidance
    kl: float = 0.004  # of the divergence to the pretrained model, at every step; 0 leaves it out
    advantage: Spread = "global"  # what advantages are divided by: the std of all rewards, of the group, or nothing
    baseline: Baseline = "mean"  # what they are measured from: the group's mean, or that of its other pictures
    advantage_limit: float = 5.0  # advantages are cut to +- this
    inner_epochs: int = 1  # how often the same pictures are learned from
    timestep_fraction: float = 1.0  # share of each picture's random steps that is learned from, drawn by the key
    recentred: bool = False  # GRPO-Guard's ratio, centred at every step; log rho is std_i times as large, so lower clip
    same_noise: bool = False  # the pictures of a group begin at the same noise, as in DanceGRPO
    sampler: Sampler = field(default_factory=FlowSDE)  # draws the training pictures; needs random steps

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "inner_epochs", 1)
        at_least(self, "kl", 0)
        share(self, "timestep_fraction")
        positive(self, "clip", "advantage_limit")
        one_of(self, "advantage", get_args(Spread))
        one_of(self, "baseline", get_args(Baseline))
        if self.per_prompt < 2:
            raise ValueError(
                f"per_prompt is {self.per_prompt}, but an advantage is measured within a group of pictures of one "
                "prompt: use per_prompt=2 or more, or ddpo, which compares all pictures of an iteration."
            )

    @property
    def epochs(self) -> int:
        return self.inner_epochs

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        return subset(random_steps(self.sampler, schedule), self.timestep_fraction)

    def calls(self, schedule: Sized) -> Calls:
        return with_base(self, schedule, self.kl)

    def begin(self) -> State:
        return {"renew": False}

    def iteration(self, it: Iteration) -> Iterator[Update]:
        sampler = placed(it, self.sampler)
        rollout = collect(it, sampler, same_noise=self.same_noise)
        A, idle = self.credit(it, rollout)
        rollout = rollout.credited(A)
        if not self.recentred:  # that ratio needs no old log-probabilities
            rollout = with_old(it, sampler, rollout, self.clip, self.learning_guidance)
        for epoch in range(self.inner_epochs):
            for batch in rollout.updates(it, epoch):
                pairs = batch.transitions(chosen(it, batch, self.timestep_fraction, epoch))
                yield Update(pairs, partial(self.loss, it, sampler, idle))

    def credit(self, it: Iteration, rollout: Rollout) -> tuple[Tensor, int]:
        """Advantages `[B]`, NaN in groups of equal rewards, and how many such groups there are on all devices."""
        groups = torch.tensor(rollout.prompts.groups)
        fn = partial(relative, baseline=self.baseline, spread=self.advantage)
        A = it.over_all(fn, rollout.reward, groups).clamp(-self.advantage_limit, self.advantage_limit)
        idle = equal(rollout.reward, groups)  # a group is whole on its device
        return A.masked_fill(idle, torch.nan), it.world.sum(len(torch.unique(groups[idle])))

    def loss(self, it: Iteration, sampler: Sampler, idle: int, pairs: Transitions) -> Loss:
        """The clipped surrogate of each transition and its divergence from the base, to be made small."""
        base = base_at(it, sampler, pairs, self.learning_guidance) if self.kl else None
        p = transition_at(it, sampler, pairs, self.learning_guidance)
        apart = recentred(it, p, pairs) if self.recentred else log_ratio(p, pairs)
        loss = clipped(apart, pairs.credit.to(apart.device), self.clip)
        loss.stats["zero_std"] = torch.full_like(apart.detach(), idle)
        return loss if base is None else held(loss, p, base, self.kl)
