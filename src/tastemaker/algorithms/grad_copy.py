"""Grad-copy: the reward's gradient at the picture, copied to all steps.  McAllister et al. 2026, arXiv:2603.12893.

From the ablations of their Finite Difference Flow Optimization: moving the velocity of every step by the reward's
gradient g = dr/dx0, taken once and unchanged, does as well as their full method. With v = eps - x0, the velocity of the
weights that drew the picture, every chosen step (b, i) is a regression and costs

    mean (v_theta(x[i]) - (v_old(x[i]) - scale g / rms(g)))^2,

so no network is held while the reward is differentiated, and none while another is.

Departs from the ablation, of which no formula beyond "copied" was used:
1. g is divided by its root mean square over all pictures of the update, so that `scale` is in units of the latents.
2. Through (x0, eps) it serves eps and v models too: a state of theirs is one of a flow but for a factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, at_least
from tastemaker.iteration import Iteration, Later, Loss, Update
from tastemaker.policy.policy import Conditioning
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.prompts.prompts import Prompts
from tastemaker.rollout import chain, placed
from tastemaker.surrogate import calls, judged, shares


@dataclass(frozen=True)
class Targets:
    """Items: steps of pictures' chains, and where their velocity should go; fp32 on the host.

    sample, step: [M] rows of the pictures' conditioning, and steps of the chain. x, velocity: [M,C,h,w] the state and
    the target. reward: [M] of the picture.
    """

    conditioning: Conditioning
    sample: Tensor
    step: Tensor
    x: Tensor
    velocity: Tensor
    reward: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: Tensor) -> Targets:
        picked = {name: getattr(self, name)[rows] for name in ("sample", "step", "x", "velocity", "reward")}
        return replace(self, **picked)


@dataclass(frozen=True)
class GradCopy(Algorithm):
    """The settings of grad-copy; defaults of FDFO's recipe where it has them, for one device."""

    citation = """@misc{mcallister2026finite,
  title  = {Finite Difference Flow Optimization for {RL} Post-Training of Text-to-Image Models},
  author = {McAllister, David and Aittala, Miika and Karras, Tero and Hellsten, Janne and Kanazawa, Angjoo and
            Aila, Timo and Laine, Samuli},
  year   = {2026},
  note   = {arXiv:2603.12893}
}"""
    differentiates = True

    images: int = 64  # pictures an iteration, over all devices
    updates: int = 4  # optimizer steps an iteration, each on fresh pictures
    steps: int = 40  # steps of the denoising chain
    guidance: float = 1.0  # classifier-free guidance, in drawing and in the loss; 1 switches it off
    learning_rate: float = 3e-5  # of AdamW, for a LoRA; without one the default is 1e-5
    chosen: int = 0  # steps of each picture that are learned from, drawn by the key; 0 is all
    scale: float = 0.1  # how far the velocity is moved, in units of the latents
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "chosen", 0)
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it must be positive.")

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        if self.chosen > len(schedule):
            raise ValueError(
                f"chosen is {self.chosen}, but the chain has {len(schedule)} steps: lower it, or raise steps."
            )
        return self.chosen or len(schedule)

    def iteration(self, it: Iteration) -> Iterator[Update]:
        items = self.items(it.policy.schedule(it.plan.steps))
        for prompts in shares(it):
            yield Update(Later(len(prompts) * items, partial(self.drawn, it, prompts)), partial(self.loss, it))

    def drawn(self, it: Iteration, prompts: Prompts) -> Targets:
        """The pictures of an update, their chosen states, and the targets."""
        steps = self.picked(it, prompts)
        it.progress.begin("sampling", len(prompts) * it.plan.steps)
        batches = calls(len(prompts), it.plan.sampling_batch)
        parts = [self.part(it, prompts.take(rows.tolist()), steps[rows]) for rows in batches]
        x, velocity, slope, reward = (torch.cat(column) for column in zip(*parts, strict=True))
        good = reward.isfinite().nonzero().flatten()  # a picture without a score is not learned from
        squares = (slope**2).flatten(1).mean(1)[good]
        squares = it.world.everyone(squares, ids=prompts.take(good.tolist()).ids)  # over all devices
        rms = squares.mean().sqrt().clamp(min=1e-12).to(slope)
        target = velocity - (self.scale * slope / rms)[:, None]
        sample = good.repeat_interleave(steps.shape[1])
        kept = (steps[good].flatten(), x[good].flatten(0, 1), target[good].flatten(0, 1), reward[sample])
        return Targets(it.policy.encode(prompts, it.negative), sample, *kept)

    def picked(self, it: Iteration, prompts: Prompts) -> Tensor:
        """[B,m] the steps of each picture that are learned from, ascending."""
        steps = it.plan.steps
        if not self.chosen:
            return torch.arange(steps).expand(len(prompts), steps)
        rows = [sorted(it.key.permutation(steps, "steps", b)[: self.chosen]) for b in prompts.ids]
        return torch.tensor(rows, dtype=torch.long).reshape(len(prompts), self.chosen)

    def part(self, it: Iteration, prompts: Prompts, steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one sampling call: states, velocities [B,m,C,h,w] of the chosen steps, slopes [B,C,h,w], rewards [B]."""
        states, velocities = list[Tensor](), list[Tensor]()
        walked = chain(
            it.policy,
            placed(it, self.sampler),
            prompts,
            key=it.key,
            schedule=it.policy.schedule(it.plan.steps),
            guidance=it.plan.guidance,
            negative=it.negative,
        )
        for step in walked:
            states.append(step.x.cpu())
            velocities.append(step.prediction.velocity.cpu())
            x0 = step.cleaner
            it.progress.advance(len(prompts))
            it.world.poll()
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            found = judged(it, prompts, x0)
            (slope,) = torch.autograd.grad(found.value.sum(), x0)
        rows = torch.arange(len(prompts))[:, None]
        kept = [torch.stack(column, 1)[rows, steps] for column in (states, velocities)]
        return kept[0], kept[1], slope.cpu(), found.reward.cpu()

    def loss(self, it: Iteration, targets: Targets) -> Loss:
        """The squared distance of each step's velocity to its target."""
        device, schedule = it.policy.device, it.policy.schedule(it.plan.steps)
        x, i = targets.x.to(device), targets.step.to(device)
        conditioning = targets.conditioning.take(targets.sample)
        found = it.policy.predict(x, i, schedule, conditioning, it.plan.guidance).velocity
        value = ((found - targets.velocity.to(found)) ** 2).flatten(1).mean(1)
        return Loss(value, {"reward": targets.reward})
