"""ReFL: the reward's gradient through one late step straight to the picture.  Xu et al. 2023, arXiv:2304.05977.

The chain is walked without a graph to a step i drawn uniformly among late ones; there the network's own belief about
x0 is the picture, and

    minimise   scale relu(threshold - r(x0(x[i], i, c), c)).

Departs from THUDM/ImageReward@c1392c6 (`ReFL.py`):
1. There is no second loss on a data set of pictures, which would need one.
2. i is drawn for every picture, not for every call; the same noise at any batch size.
3. A LoRA by default; the authors train the whole network (`--no-lora`).
4. The call with the graph tells the network the time of its step; there it is told the step's number (30 to 39).
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial

import torch

from tastemaker.algorithms.algorithm import Algorithm, Calls
from tastemaker.iteration import Iteration, Later, Loss, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.prompts.prompts import Prompts
from tastemaker.surrogate import Course, Starts, judged, prefix, shares, walk


@dataclass(frozen=True)
class ReFL(Algorithm):
    """The settings of ReFL; the authors' defaults."""

    citation = """@inproceedings{xu2023imagereward,
  title     = {{ImageReward}: Learning and Evaluating Human Preferences for Text-to-Image Generation},
  author    = {Xu, Jiazheng and Liu, Xiao and Wu, Yuchen and Tong, Yuxuan and Li, Qinkai and Ding, Ming and Tang, Jie
               and Dong, Yuxiao},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2304.05977}
}"""
    differentiates = True

    images: int = 64  # pictures an iteration, over all devices
    updates: int = 1  # optimizer steps an iteration, each on fresh pictures
    steps: int = 40  # steps of the denoising chain
    guidance: float = 1.0  # classifier-free guidance, in the prefix and in the last call; 1 switches it off
    learning_rate: float = 1e-5  # of AdamW
    weight_decay: float = 0.01  # of AdamW
    first: float = 0.75  # share of the chain after which the step to the picture may lie; the authors' 30 of 40
    last: float = 0.975  # and the share after which it lies at the latest; the authors' 39 of 40
    threshold: float = 2.0  # rewards above it are good enough and give no gradient
    scale: float = 1e-3  # of the loss
    sampler: Sampler = field(default_factory=DDIM)  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first <= self.last < 1:
            raise ValueError(
                f"first is {self.first} and last {self.last}; they are shares of the chain, 0 <= first <= last < 1."
            )
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it must be positive.")

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def range(self, steps: int) -> tuple[int, int]:
        """The first and the last step from which a picture may be reached."""
        low, high = (min(round(share * steps), steps - 1) for share in (self.first, self.last))
        return low, high

    def items(self, schedule: Schedule) -> int:
        return 1

    def calls(self, schedule: Sized) -> Calls:
        return Calls(sum(self.range(len(schedule))) / 2, 1, 1)

    def iteration(self, it: Iteration) -> Iterator[Update]:
        for prompts in shares(it):
            yield Update(Later(len(prompts), partial(self.drawn, it, prompts)), partial(self.loss, it))

    def drawn(self, it: Iteration, prompts: Prompts) -> Starts:
        """The pictures of an update before the step that goes straight to x0."""
        low, high = self.range(it.plan.steps)
        step = torch.tensor([it.key.random("step", b).randint(low, high) for b in prompts.ids], dtype=torch.long)
        live = torch.arange(it.plan.steps) == step[:, None]
        return prefix(it, self.sampler, prompts, Course(live, step))

    def loss(self, it: Iteration, starts: Starts) -> Loss:
        """How far each picture's reward is below the threshold."""
        found = judged(it, starts.prompts, walk(it, self.sampler, starts).x0)
        satisfied = (found.reward >= self.threshold).float()
        return Loss(
            self.scale * torch.relu(self.threshold - found.value), {"reward": found.reward, "satisfied": satisfied}
        )
