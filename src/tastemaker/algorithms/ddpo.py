"""DDPO: policy gradients on the denoising chain.  Black et al. 2023, arXiv:2305.13301.

The chain is a decision process: the state is (c, i, x[i]), the action x[i+1], the reward comes only with x[T].
With A the whitened reward and rho the ratio of the new to the sampling policy, DDPO-IS maximises

    E sum_i min(rho_i A, clip(rho_i, 1 - clip, 1 + clip) A),
    rho_i = p_theta(x[i+1] | x[i], c) / p_old(x[i+1] | x[i], c).

Departs from kvablack/ddpo-pytorch@1958463:
1. Latents stay fp32 and are the ones the log-probability was computed on; there they are rounded after scoring.
2. Updates are cut by sample and summed over devices; an item is one transition; calls of equal rows cut them anywhere.
3. Prompt statistics are part of every checkpoint, use whole texts as keys and never cast rewards to whole numbers.
4. A failed score leaves its picture out; there it would be a reward of 0.
5. Where drawing and learning disagree by more than a tenth of `clip` before the first update (half precision, other
   rows a call), old log-probabilities are taken again in the layout of learning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, at_least, positive, share
from tastemaker.algorithms.transitions import chosen, clipped, log_probs, random_steps, subset, with_old
from tastemaker.credit import per_prompt, whiten
from tastemaker.iteration import Iteration, Loss, State, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import Rollout, Transitions, collect, placed


@dataclass(frozen=True)
class DDPO(Algorithm):
    """The settings of DDPO with importance sampling; defaults of the authors' LoRA code."""

    citation = """@inproceedings{black2024training,
  title     = {Training Diffusion Models with Reinforcement Learning},
  author    = {Black, Kevin and Janner, Michael and Du, Yilun and Kostrikov, Ilya and Levine, Sergey},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2305.13301}
}"""

    clip: float = 1e-4  # of the ratio; small, for the authors' log-probability is a mean over the latent
    advantage_limit: float = 5.0  # advantages are cut to +- this
    inner_epochs: int = 1  # how often the same pictures are learned from
    timestep_fraction: float = 1.0  # share of each picture's random steps that is learned from, drawn by the key
    guidance_in_loss: bool = True  # off: learn the conditional prediction alone, as authors' train_cfg=False
    prompt_history: int = 0  # rewards remembered of each prompt to whiten by; 0 whitens by the iteration's pictures
    prompt_minimum: int = 16  # remembered rewards below which a prompt is whitened by the iteration's pictures
    sampler: Sampler = field(default_factory=DDIM)  # draws the training pictures; needs random steps

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("inner_epochs", 1), ("prompt_history", 0), ("prompt_minimum", 1)):
            at_least(self, name, least)
        share(self, "timestep_fraction")
        positive(self, "clip", "advantage_limit")
        if 0 < self.prompt_history < self.prompt_minimum:
            raise ValueError(
                f"prompt_history is {self.prompt_history}, so no prompt ever has prompt_minimum={self.prompt_minimum} "
                "rewards: raise the history or lower the minimum."
            )
        if "prompt_minimum" in self.given and not self.prompt_history:
            raise ValueError("prompt_minimum has no effect without prompt_history: give that one too.")
        if "guidance_in_loss" in self.given and self.guidance <= 1:
            raise ValueError(f"guidance_in_loss has no effect at guidance={self.guidance}, which is none.")

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
        return subset(random_steps(self.sampler, schedule), self.timestep_fraction)

    def begin(self) -> State:
        return {"history": {}, "renew": False}

    def iteration(self, it: Iteration) -> Iterator[Update]:
        sampler = placed(it, self.sampler)
        rollout = collect(it, sampler)
        A = self.advantage(it, rollout).clamp(-self.advantage_limit, self.advantage_limit)
        rollout = with_old(it, sampler, rollout.credited(A), self.clip, self.learning_guidance)
        for epoch in range(self.inner_epochs):
            for batch in rollout.updates(it, epoch):
                pairs = batch.transitions(chosen(it, batch, self.timestep_fraction, epoch))
                yield Update(pairs, partial(self.loss, it, sampler))

    def advantage(self, it: Iteration, rollout: Rollout) -> Tensor:
        """The whitened reward `[B]`, by everyone's rewards or by the prompt's own history."""
        if not self.prompt_history:
            return it.over_all(whiten, rollout.reward)
        # Every device sees all rewards and so keeps the same history; texts travel as their place in the whole draw.
        texts = it.everyone

        def whitened(r: Tensor, group: Tensor) -> Tensor:
            A, it.state["history"] = per_prompt(
                r,
                [texts[g] for g in group.tolist()],
                it.state["history"],
                buffer=self.prompt_history,
                minimum=self.prompt_minimum,
            )
            return A

        return it.over_all(whitened, rollout.reward, torch.tensor(rollout.prompts.groups))

    def loss(self, it: Iteration, sampler: Sampler, pairs: Transitions) -> Loss:
        """The clipped surrogate of each transition, to be made small."""
        new, old, A = log_probs(it, sampler, pairs, self.learning_guidance)
        return clipped(new - old, A, self.clip)
