"""DRaFT: the reward's gradient through the last steps of the chain.  Clark et al. 2023, arXiv:2309.17400.

The picture is a differentiable function of the weights, so a differentiable reward is climbed directly:

    maximise E r(x[T], c),    with the graph of the last k steps alone (DRaFT-K; k = T is the whole chain).

DRaFT-LV (`copies` n) draws the whole chain without a graph, takes its picture back to the noise of the last step n
times, x[T-1] = alpha[T-1] x0 + sigma[T-1] eps, and averages the gradients of the n last steps.
DRaFT+ (`kl`, NVIDIA NeMo-Aligner) adds the squared distance to the base model's noise, guided as ours, at our latents:

    - r + kl mean over the live steps of mean (eps_theta(x[i]) - eps_base(x[i]))^2.

Departs from the paper and from NeMo-Aligner@af2b3bd9:
1. The prefix runs without a graph at the sampling batch; only the last k calls keep one, and the VAE's is made anew.
2. The base's noise comes from the same network with its adapter off; there a second model, decoder included, is kept.
3. `diversity` rewards a picture for its mean squared distance to the other pictures of its prompt, which are
   constants: summed over the group that is along the gradient of the mean distance of all pairs. The paper tried such a
   bonus without giving its formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least
from tastemaker.dropping import KINDS, dropping
from tastemaker.iteration import Iteration, Later, Loss, Update
from tastemaker.policy.policy import decode
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.process.truncation import Fixed
from tastemaker.prompts.prompts import Prompts
from tastemaker.surrogate import Starts, Walk, calls, finished, judged, prefix, shares, walk, whole


@dataclass(frozen=True)
class DRaFT(Algorithm):
    """The settings of DRaFT, DRaFT-LV and DRaFT+; defaults of NeMo-Aligner's draftp_sd.yaml, without its kl.

    It has 4 images an iteration and a million of iterations.
    """

    citation = """@inproceedings{clark2024directly,
  title     = {Directly Fine-Tuning Diffusion Models on Differentiable Rewards},
  author    = {Clark, Kevin and Vicol, Paul and Swersky, Kevin and Fleet, David J.},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2309.17400}
}"""
    differentiates = True

    images: int = 16  # pictures an iteration, over all devices
    updates: int = 1  # optimizer steps an iteration, each on fresh pictures
    guidance: float = 7.5  # classifier-free guidance, in the prefix and in the steps that are differentiated
    iterations: int = 2000  # rounds of drawing, scoring and learning
    learning_rate: float = 1e-4  # of AdamW, for a LoRA; without one the default is 1e-5
    weight_decay: float = 0.0  # of AdamW
    k: int = 1  # last steps that keep their graph; as many as `steps` is the whole chain
    copies: int = 0  # above 0: DRaFT-LV, so many re-noised copies of each picture's last step
    kl: float = 0.0  # weight of the squared distance to the base's guided noise (DRaFT+)
    diversity: float = 0.0  # weight of a picture's mean squared distance to the other pictures of its prompt
    reward_dropout: bool = False  # switch the dropout of the reward's network on while it is differentiated
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "k", 1)
        for name in ("copies", "kl", "diversity"):
            at_least(self, name, 0)
        if self.copies and "k" in self.given and self.k != 1:
            raise ValueError(f"k is {self.k} and copies {self.copies}: copies are made of the last step alone, k=1.")
        if self.diversity and self.per_prompt < 2:
            raise ValueError(
                f"diversity is {self.diversity}, but per_prompt is {self.per_prompt}: a picture is compared with the "
                "others of its prompt. Use per_prompt=2 or more."
            )

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        Fixed(self.k).expected(len(schedule))
        return max(self.copies, 1)

    def calls(self, schedule: Sized) -> Calls:
        steps = len(schedule)
        items = max(self.copies, 1)
        base = self.k * items if self.kl else 0
        drawn = (steps if self.copies or self.diversity else steps - self.k) + base
        return Calls(drawn, self.k, self.k, items)

    def check_reward(self, reward: Any) -> None:
        if self.reward_dropout and not _dropouts(reward):
            raise ValueError(
                f"reward_dropout has no effect on the reward `{reward.name}`, which shows no `network` with dropout "
                "layers: leave it out."
            )

    def iteration(self, it: Iteration) -> Iterator[Update]:
        for prompts in shares(it):
            count = len(prompts) * max(self.copies, 1)
            yield Update(Later(count, partial(self.drawn, it, prompts)), partial(self.loss, it))

    def drawn(self, it: Iteration, prompts: Prompts) -> Drawn:
        """The pictures of an update at their first live step."""
        course = whole(Fixed(self.k).live(it.key, prompts.ids, it.plan.steps))
        starts = prefix(it, self.sampler, prompts, course)
        if not (self.copies or self.diversity):
            return Drawn(starts)
        x0 = finished(it, self.sampler, starts)
        fellows = _fellows(it, starts.prompts, x0) if self.diversity else None
        found = Drawn(starts, fellows)
        return _renoised(it, found, x0, self.copies) if self.copies else found

    def loss(self, it: Iteration, drawn: Drawn) -> Loss:
        """Minus the reward of each picture, and what it is held by."""
        starts = drawn.starts
        ways = walk(it, self.sampler, starts)
        with _dropout(it, starts.prompts.ids) if self.reward_dropout else nullcontext():
            found = judged(it, starts.prompts, ways.x0)
        value, stats = -found.value, {"reward": found.reward}
        if self.kl:
            apart = self.distance(it, starts, ways)
            value, stats["kl"] = value + self.kl * apart, apart.detach()
        if drawn.fellows is not None:
            far = drawn.fellows.distance(found.images)
            value, stats["diversity"] = value - self.diversity * far, far.detach()
        return Loss(value, stats)

    def distance(self, it: Iteration, starts: Starts, ways: Walk) -> Tensor:
        """[M] mean squared distance to the base's guided noise over the live steps, at our latents."""
        schedule, total = it.policy.schedule(it.plan.steps), torch.zeros_like(ways.x0.flatten(1)[:, 0])
        for live in ways.live:
            with it.policy.using("base"):
                conditioning = starts.conditioning.take(live.rows)
                base = it.policy.predict(live.x.detach(), live.i, schedule, conditioning, it.plan.guidance)
            apart = ((live.prediction.eps - base.eps) ** 2).flatten(1).mean(1)
            total = total.index_add(0, live.rows.to(total.device), apart)
        return total / self.k


@dataclass(frozen=True)
class Fellows:
    """The other pictures of the same prompt, as constants.

    pictures: [N,3,H,W] of a whole update, on the host. rows: [M, per_prompt - 1] those of each item.
    """

    pictures: Tensor
    rows: Tensor

    def distance(self, images: Tensor) -> Tensor:
        """[M] mean squared distance of pictures [M,3,H,W] to their fellows."""
        others = self.pictures[self.rows].to(images)
        return ((images[:, None] - others) ** 2).flatten(1).mean(1)


@dataclass(frozen=True)
class Drawn:
    """Items: pictures at their first live step, with their fellows where they are wanted."""

    starts: Starts
    fellows: Fellows | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: Tensor) -> Drawn:
        others = None if self.fellows is None else replace(self.fellows, rows=self.fellows.rows[rows])
        return Drawn(self.starts.take(rows), others)


@torch.no_grad()
def _fellows(it: Iteration, prompts: Prompts, x0: Tensor) -> Fellows:
    device, groups = it.policy.device, torch.tensor(prompts.groups)
    pictures = [decode(it.policy, x0[rows].to(device)).cpu() for rows in calls(len(x0), it.plan.sampling_batch)]
    same = (groups[:, None] == groups) & ~torch.eye(len(groups), dtype=torch.bool)
    rows = [row.nonzero().flatten() for row in same]
    return Fellows(torch.cat(pictures), torch.stack(rows)) if rows else Fellows(x0, groups[:, None])


def _renoised(it: Iteration, drawn: Drawn, x0: Tensor, copies: int) -> Drawn:
    """Each picture `copies` times, taken back to the noise of the last step."""
    schedule = it.policy.schedule(it.plan.steps)
    alpha, sigma = schedule.alpha[-2].cpu(), schedule.sigma[-2].cpu()
    ids, shape = drawn.starts.prompts.ids, it.policy.latent_shape
    noise = torch.stack([it.key.noise("copies", copy, ids, shape) for copy in range(copies)], 1).flatten(0, 1)
    many = drawn.take(torch.arange(len(x0)).repeat_interleave(copies))
    x = alpha * x0.repeat_interleave(copies, 0) + sigma * noise.to(x0)
    return replace(many, starts=replace(many.starts, x=x))


def _dropouts(reward: Any) -> list[nn.Module]:
    network = reward.network
    return [] if network is None else [module for module in network.modules() if isinstance(module, KINDS)]


def _dropout(it: Iteration, ids: Sequence[int]) -> AbstractContextManager[None]:
    """The reward's dropout is on inside; what it drops is drawn by the key and the pictures of the call."""
    number = it.key.generator("dropout", tuple(ids)).initial_seed()
    return dropping(_dropouts(it.reward), it.policy.device, number)
