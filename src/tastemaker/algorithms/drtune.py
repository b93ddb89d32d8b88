"""DRTune: the reward's gradient to evenly spread steps, each cut off at its input.  Wu et al. 2024, arXiv:2405.00760.

Of T steps `active` ones, T / active apart from a random first one, are differentiated. The network's input is cut out
of the graph, x[i+1] = a x[i] + b eps_theta(sg(x[i])), so the gradient runs along the chain and never through one call
of the network into another: early steps are trained without exploding gradients. The chain stops early, at one of the
last `early` steps drawn uniformly, and the network's belief about x0 there is the picture.

Departs from the paper:
1. No code was published and its text was not at hand; the defaults are ours, and so is the place of the first active
   step, drawn uniformly among those that leave room for all of them.
2. The last active step is never behind the one at which the chain stops: where that would leave none, it is that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial

import torch

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least
from tastemaker.iteration import Iteration, Later, Loss, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.prompts.prompts import Prompts
from tastemaker.surrogate import Course, Starts, judged, prefix, shares, walk


@dataclass(frozen=True)
class DRTune(Algorithm):
    """The settings of DRTune."""

    citation = """@inproceedings{wu2024deep,
  title     = {Deep Reward Supervisions for Tuning Text-to-Image Diffusion Models},
  author    = {Wu, Xiaoshi and Hao, Yiming and Zhang, Manyuan and Sun, Keqiang and Huang, Zhaoyang and Song, Guanglu
               and Liu, Yu and Li, Hongsheng},
  booktitle = {European Conference on Computer Vision},
  year      = {2024},
  note      = {arXiv:2405.00760}
}"""
    differentiates = True

    images: int = 16  # pictures an iteration, over all devices
    updates: int = 1  # optimizer steps an iteration, each on fresh pictures
    guidance: float = 7.5  # classifier-free guidance, in all steps
    iterations: int = 2000  # rounds of drawing, scoring and learning
    learning_rate: float = 1e-4  # of AdamW, for a LoRA; without one the default is 1e-5
    active: int = 5  # steps that are differentiated, evenly spread
    early: int = 1  # the chain stops at one of so many last steps; 1 is the last one
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("active", "early"):
            at_least(self, name, 1)

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        for name in ("active", "early"):
            if getattr(self, name) > len(schedule):
                found = getattr(self, name)
                raise ValueError(
                    f"{name} is {found}, but the chain has {len(schedule)} steps: lower it, or raise steps."
                )
        return 1

    def calls(self, schedule: Sized) -> Calls:
        steps = len(schedule)
        begins, stops = range(self._places(steps)), range(steps - self.early, steps)
        active = [len(self._active(begin, stop, steps)) for begin in begins for stop in stops]
        walked, learned = steps - (self.early - 1) / 2, sum(active) / len(active)
        return Calls(walked - learned, learned, max(active))

    def iteration(self, it: Iteration) -> Iterator[Update]:
        for prompts in shares(it):
            yield Update(Later(len(prompts), partial(self.drawn, it, prompts)), partial(self.loss, it))

    def drawn(self, it: Iteration, prompts: Prompts) -> Starts:
        """The pictures of an update at their first active step."""
        rows = [self.course(it, b) for b in prompts.ids]
        live = torch.zeros(len(rows), it.plan.steps, dtype=torch.bool)
        for row, (active, _) in zip(live, rows, strict=True):
            row[active] = True
        stop = torch.tensor([stop for _, stop in rows], dtype=torch.long)
        return prefix(it, self.sampler, prompts, Course(live, stop))

    def course(self, it: Iteration, sample: int) -> tuple[list[int], int]:
        """A picture's active steps, and the step at which its chain stops."""
        steps, random = it.plan.steps, it.key.random("course", sample)
        begin, stop = random.randrange(self._places(steps)), steps - random.randint(1, self.early)
        return self._active(begin, stop, steps), stop

    def _places(self, steps: int) -> int:
        """How many steps may be the first active one."""
        return max(steps - self._spacing(steps) * (self.active - 1), 1)

    def _active(self, begin: int, stop: int, steps: int) -> list[int]:
        active = [begin + self._spacing(steps) * n for n in range(self.active)]
        return [step for step in active if step <= stop] or [stop]

    def _spacing(self, steps: int) -> int:
        return max(steps // self.active, 1)

    def loss(self, it: Iteration, starts: Starts) -> Loss:
        """Minus the reward of each picture."""
        found = judged(it, starts.prompts, walk(it, self.sampler, starts, detached=True).x0)
        return Loss(-found.value, {"reward": found.reward})
