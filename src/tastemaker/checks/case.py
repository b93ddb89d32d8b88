"""`Case`: what is looked at, a model with the settings of a run; and the few pictures that the checks share."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.iteration import Iteration, Later, Progress, Silence, State, Update, deal
from tastemaker.plan import Plan
from tastemaker.policy.policy import Policy
from tastemaker.process.noise import Key
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts, PromptSource
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import NamedReward
from tastemaker.rollout import chain
from tastemaker.settings import RunSettings
from tastemaker.training.optimizer import Optimizer
from tastemaker.world import World

PICTURES = 4  # of an iteration
ITEMS = 16  # of an update, or a call of it where that has more
STEPS = 4  # of chains that only have to be the same as another; 1000 is a multiple of it
ROWS = 2  # pictures of those


@dataclass
class Case:
    """A model and the settings of a run, of which nothing is written anywhere."""

    name: str  # the algorithm's
    algorithm: Algorithm
    run: RunSettings
    policy: Policy
    optimizer: Optimizer
    plan: Plan  # of the run
    reward: NamedReward
    source: PromptSource
    progress: Progress = field(default_factory=Silence)
    _drawn: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.untrained = self.look()

    @property
    def clip(self) -> float | None:
        """The range of the algorithm's ratio, where it has one."""
        return float(self.algorithm.clip) if "clip" in {one.name for one in fields(self.algorithm)} else None  # type: ignore[attr-defined]

    @property
    def precision(self) -> str:
        """What the network computes in."""
        return "fp32" if self.run.mixed_precision == "no" else self.run.mixed_precision

    @cached_property
    def prompts(self) -> Prompts:
        return self.source.draw(Key(self.run.seed, "check").random("prompts"), ROWS)

    @cached_property
    def x(self) -> Tensor:
        """[B,C,h,w] noise to begin with."""
        return Key(self.run.seed, "check").noise("x0", 0, self.prompts.ids, self.policy.latent_shape)

    @cached_property
    def latents(self) -> Tensor:
        """[B,C,h,w] where a chain of the model as it was loaded ends."""
        return self.ends()

    @cached_property
    def pictures(self) -> Tensor:
        """[B,3,H,W] of them."""
        with torch.no_grad():
            return self.policy.decode(self.latents)

    def ends(self) -> Tensor:
        """[B,C,h,w] where the ODE's chain of `STEPS` steps ends that begins at `x`."""
        *_, last = chain(
            self.policy,
            DDIM(eta=0.0),
            self.prompts,
            key=Key(self.run.seed, "check"),
            schedule=self.policy.schedule(STEPS),
            guidance=self.plan.guidance,
            negative=self.run.negative_prompt,
            x=self.x.to(self.policy.device),
        )
        return last.cleaner

    @torch.no_grad()
    def look(self) -> Prediction:
        """What the network says of `x` now, in a call that is always the same."""
        conditioning = self.policy.encode(self.prompts, self.run.negative_prompt)
        x, schedule = self.x.to(self.policy.device), self.policy.schedule(STEPS)
        return self.policy.predict(x, STEPS // 2, schedule, conditioning, self.plan.guidance)

    def iteration(
        self, index: int, *, most: int | None = None, state: State | None = None, **kept: Tensor
    ) -> Iteration:
        """An iteration on few pictures, in network calls of the plan's size or `most`; that of index 0 draws them once.

        kept: what it finds there, as after a restart.
        """
        few = replace(self.plan, images=PICTURES, per_prompt=min(self.plan.per_prompt, 2), updates=1, inner_epochs=1)
        if most is not None:
            calls = (min(self.plan.micro_batch, most), min(self.plan.sampling_batch, most))
            few = replace(few, micro_batch=calls[0], sampling_batch=calls[1])
        key, world = Key(self.run.seed, index), World()
        prompts, everyone = deal(self.source, key, few, world)
        return Iteration(
            key=key,
            policy=self.policy,
            reward=Recorded(self.reward),
            prompts=prompts,
            everyone=everyone,
            plan=few,
            world=world,
            state=self.algorithm.begin() if state is None else deepcopy(state),
            kept={**kept, **(self._drawn if index == 0 else {})},
            progress=self.progress,
            negative=self.run.negative_prompt,
        )

    def update(self, it: Iteration, items: int = ITEMS) -> Update | None:
        """The iteration's first update on so many of its items; None where there is nothing to learn from."""
        update = next(self.algorithm.iteration(it), None)
        if it.key.iteration == 0:
            self._drawn = {name: kept for name, kept in it.kept.items() if name.startswith("rollout.")}
        if update is None:
            return None
        batch: Any = update.batch.make() if isinstance(update.batch, Later) else update.batch
        rows = spread(len(batch), max(items, it.plan.micro_batch))
        return update._replace(batch=batch.take(rows)) if len(batch) else None


def spread(count: int, most: int) -> Tensor:
    """At most so many of the places 0 ... count - 1, as far apart as can be, the last among them."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def same(one: Prediction, other: Prediction) -> bool:
    """Bit for bit."""
    return torch.equal(one.x0, other.x0) and torch.equal(one.eps, other.eps)


@torch.no_grad()
def stir(policy: Policy) -> None:
    """Changes every trainable tensor by a twentieth of its mean size; what is zero, as an adapter's B, a little."""
    for k, parameter in enumerate(policy.parameters()):
        size = 0.05 * parameter.abs().mean().clamp(min=1e-2)
        generator = torch.Generator().manual_seed(k)
        parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))


NOTHING = (
    "there is nothing to learn from: the reward gives all pictures of a prompt the same, or no score. Give another "
    "--reward, or leave it out here."
)
