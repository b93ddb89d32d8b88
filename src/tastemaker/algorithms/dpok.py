"""DPOK: policy gradients held by the KL divergence to the pretrained model.  Fan et al. 2023, arXiv:2305.16381.

The chain is the decision process of `ddpo`, with A the whitened reward and rho the ratio of the new to the sampling
policy. Of every transition, minimise

    -reward_weight min(rho A, clip(rho, 1 - clip, 1 + clip) A) + kl KL(p_theta(. | x[i], c) || p_base(. | x[i], c)).

The KL of two Gaussians with the std of the step is (mean_theta - mean_base)^2 / (2 std^2), exactly.

Departs from google-research/dpok@1d49f2c:
1. The reward is whitened over the iteration's pictures; there a value network is trained to tell it from x[i], and
   subtracted.
2. The pessimistic minimum is PPO's; there the ratio is only cut, so that a transition which has left the range never
   has a way back.
3. Every iteration learns from its own pictures; there from the last 1,000 transitions, of several iterations.
4. KL is that of the two Gaussians; there it is the squared distance of their eps, so the same number holds less or more
   at a step: of Stable Diffusion 1.5 in 50 steps 0.088 times as much in the median one, 5.4 times in the last.
5. KL and log-probability are means over the latent's numbers, in fp32.
6. Latents, failed scores, cutting and renewed log-probabilities are as in `ddpo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least, positive, share
from tastemaker.algorithms.transitions import (
    base_at,
    chosen,
    clipped,
    held,
    log_ratio,
    random_steps,
    subset,
    with_base,
    with_old,
)
from tastemaker.credit import whiten
from tastemaker.iteration import Iteration, Loss, State, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import Transitions, collect, placed, transition_at


@dataclass(frozen=True)
class DPOK(Algorithm):
    """The settings of DPOK; defaults of the authors' command for a single prompt."""

    citation = """@inproceedings{fan2023dpok,
  title     = {{DPOK}: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models},
  author    = {Fan, Ying and Watkins, Olivia and Du, Yuqing and Liu, Hao and Ryu, Moonkyung and Boutilier, Craig and
               Abbeel, Pieter and Ghavamzadeh, Mohammad and Lee, Kangwook and Lee, Kimin},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2305.16381}
}"""

    images: int = 10  # pictures an iteration, over all devices
    updates: int = 5  # optimizer steps an iteration (and inner epoch), each on images / updates pictures
    guidance: float = 7.5  # classifier-free guidance, in sampling and in the loss; 1 switches it off
    iterations: int = 2000  # rounds of drawing, scoring and learning
    learning_rate: float = 1e-5  # of AdamW
    weight_decay: float = 0.0  # of AdamW
    reward_weight: float = 10.0  # of the policy gradient; the authors' 1,000, with kl 0.1, is for many prompts
    kl: float = 0.01  # of the divergence to the pretrained model, at every step; 0 leaves it out
    clip: float = 1e-4  # of the ratio
    inner_epochs: int = 1  # how often the same pictures are learned from
    timestep_fraction: float = 0.48  # share of each picture's random steps that is learned from: 48 an update, as there
    sampler: Sampler = field(default_factory=DDIM)  # draws the training pictures; needs random steps

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "inner_epochs", 1)
        at_least(self, "kl", 0)
        share(self, "timestep_fraction")
        positive(self, "reward_weight", "clip")

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
        rollout = collect(it, sampler)
        rollout = rollout.credited(it.over_all(whiten, rollout.reward))
        rollout = with_old(it, sampler, rollout, self.clip, self.learning_guidance)
        for epoch in range(self.inner_epochs):
            for batch in rollout.updates(it, epoch):
                pairs = batch.transitions(chosen(it, batch, self.timestep_fraction, epoch))
                yield Update(pairs, partial(self.loss, it, sampler))

    def loss(self, it: Iteration, sampler: Sampler, pairs: Transitions) -> Loss:
        """The clipped surrogate of each transition and its divergence from the base, to be made small."""
        base = base_at(it, sampler, pairs, self.learning_guidance) if self.kl else None
        p = transition_at(it, sampler, pairs, self.learning_guidance)
        loss = clipped(log_ratio(p, pairs), self.reward_weight * pairs.credit.to(p.mean.device), self.clip)
        return loss if base is None else held(loss, p, base, self.kl)
