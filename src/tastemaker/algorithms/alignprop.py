"""AlignProp: the reward's gradient through a randomly truncated chain.  Prabhudesai et al. 2023, arXiv:2310.03739.

As in DRaFT the picture is a differentiable function of the weights; how many of the last steps keep their graph is
drawn anew for every picture, K ~ U(0, T), which the authors found to keep pictures that whole backpropagation loses.

    minimise |r - target| scale   or   - r   or   1 - r,     times `coefficient`.

Departs from mihirp1998/AlignProp@5a28984:
1. K is drawn once a picture; there, and in TRL, a coin is tossed at every step (`truncation: per_step` does that, with
   a last step that is live where no other is).
2. Steps that are cut off run without a graph, many pictures a call; there they run with one and are detached.
3. Evaluations have noise of their own; there one reseeds the training noise at every step.
4. Where the network predicts v or x0, an idle step inside the chain (`per_step`) holds the noise constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, Calls
from tastemaker.iteration import Iteration, Later, Loss, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.process.truncation import Truncation, Uniform
from tastemaker.prompts.prompts import Prompts
from tastemaker.surrogate import Starts, judged, prefix, shares, walk, whole


@dataclass(frozen=True)
class AlignProp(Algorithm):
    """The settings of AlignProp; defaults of the authors' configuration for the aesthetic reward.

    That has a target, a coin for every step and seven iterations (the recipe `alignprop_aesthetic`).
    """

    citation = """@misc{prabhudesai2023aligning,
  title  = {Aligning Text-to-Image Diffusion Models with Reward Backpropagation},
  author = {Prabhudesai, Mihir and Goyal, Anirudh and Pathak, Deepak and Fragkiadaki, Katerina},
  year   = {2023},
  note   = {arXiv:2310.03739}
}"""
    differentiates = True

    images: int = 256  # pictures an iteration, over all devices
    updates: int = 2  # optimizer steps an iteration, each on fresh pictures
    guidance: float = 7.5  # classifier-free guidance, in the prefix and in the steps that are differentiated
    learning_rate: float = 1e-3  # of AdamW, for a LoRA; without one the default is 1e-5
    weight_decay: float = 0.1  # of AdamW
    truncation: Truncation = field(default_factory=Uniform)  # which steps of a picture's chain keep their graph
    loss_form: Literal["negative", "target", "one_minus"] = "negative"  # of the reward r: -r, |r - target| or 1 - r
    target: float = 10.0  # the reward that `loss_form: target` aims at, and does not pass
    scale: float = 1.0  # of |r - target|
    coefficient: float = 0.01  # of the loss; with AdamW and no clipping of gradients it changes nothing
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "coefficient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        idle = [name for name in ("target", "scale") if name in self.given and self.loss_form != "target"]
        if idle:
            raise ValueError(f"{idle[0]} has no effect with loss_form={self.loss_form}: use loss_form=target.")

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        self.truncation.expected(len(schedule))
        return 1

    def calls(self, schedule: Sized) -> Calls:
        live, most = self.truncation.expected(len(schedule))
        return Calls(len(schedule) - live, live, most)

    def iteration(self, it: Iteration) -> Iterator[Update]:
        for prompts in shares(it):
            yield Update(Later(len(prompts), partial(self.drawn, it, prompts)), partial(self.loss, it))

    def drawn(self, it: Iteration, prompts: Prompts) -> Starts:
        """The pictures of an update at their first live step."""
        live = self.truncation.live(it.key, prompts.ids, it.plan.steps)
        return prefix(it, self.sampler, prompts, whole(live))

    def loss(self, it: Iteration, starts: Starts) -> Loss:
        """The loss of each picture's reward."""
        found = judged(it, starts.prompts, walk(it, self.sampler, starts).x0)
        live = starts.course.live.sum(1).float()
        return Loss(self.of(found.value), {"reward": found.reward, "live_steps": live})

    def of(self, r: Tensor) -> Tensor:
        """[M] the loss of rewards [M]."""
        forms = {"negative": -r, "one_minus": 1 - r, "target": (r - self.target).abs() * self.scale}
        return self.coefficient * forms[self.loss_form]
