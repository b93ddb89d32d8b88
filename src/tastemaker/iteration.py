"""All that passes between an algorithm and the trainer: `Iteration` goes in, `Update`s come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from tastemaker.plan import Plan
from tastemaker.policy.policy import Policy
from tastemaker.process.noise import Key
from tastemaker.prompts.prompts import Prompts, PromptSource
from tastemaker.rewards.reward import Reward, Scores, adapt
from tastemaker.world import World

State = dict[str, Any]  # an algorithm's memory between iterations: plain data, JSON and tensors
B = TypeVar("B", bound="Batch")


class Loss(NamedTuple):
    """What items cost, one number each; an algorithm never reduces."""

    value: Tensor  # [M], with a graph
    stats: dict[str, Tensor]  # name -> [M], without


class Batch(Protocol):
    """Items that travel together: transitions, noised pictures, starts of a chain, preference pairs."""

    def __len__(self) -> int: ...

    def take(self: B, rows: Tensor) -> B:
        """The items at `rows [M]` int64, a row as often as it stands there."""
        ...


class Update(NamedTuple):
    """One optimizer step on the mean of `loss` over the items of `batch`, all devices together.

    `loss` is a pure function of (weights, items), but for what an adapter with dropout drops: the trainer may cut the
    items anywhere and begin a step again.
    """

    batch: Any
    loss: Callable[[Any], Loss]


@dataclass(frozen=True)
class Later:
    """A batch of `count` items that is made when its update is: one passed over after a restart costs nothing."""

    count: int
    make: Callable[[], Any]

    def __len__(self) -> int:
        return self.count


class Progress(Protocol):
    """Who is told how far the work has come."""

    def begin(self, what: str, total: int) -> None: ...

    def advance(self, count: int, note: str = "") -> None: ...


class Silence:
    """Tells nobody."""

    def begin(self, what: str, total: int) -> None: ...

    def advance(self, count: int, note: str = "") -> None: ...


@dataclass
class Iteration:
    """One round of drawing, scoring and learning, as an algorithm sees it.

    prompts: this device's share, ids counting the pictures of the iteration over all devices.
    everyone: the texts of the whole draw over all devices, by group.
    state: the algorithm's own memory; what it holds when the generator ends is what the next iteration begins with.
    notes: why scores failed.
    negative: what guidance leads away from.
    kept: tensors that a checkpoint inside the iteration saves, so that replay need not make them again.
    """

    key: Key
    policy: Policy
    reward: Reward
    prompts: Prompts
    everyone: tuple[str, ...]
    plan: Plan
    world: World
    state: State = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silence)
    negative: str = ""
    notes: list[str] = field(default_factory=list)

    def over_all(self, fn: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """`fn` of everyone's values, in the order of the samples' ids; this device's rows of the result."""
        return self.world.over_all(fn, *values, ids=self.prompts.ids)

    def worth(self, reward: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """What this device's pictures are learned from `[B]`: their rewards, or what everyone's scores make of them.

        A picture without a score has none; all others are as if it had not been drawn.
        """
        how = adapt(self.reward).comparison
        if how is None:
            return reward
        none = torch.full_like(reward, torch.nan)
        scores = torch.stack([parts.get(name, none) for name in how.parts], 1)
        return self.over_all(how.worth, scores, torch.tensor(self.prompts.groups, dtype=torch.long))

    def saw(self, ids: Sequence[int], x0: Tensor, scores: Scores) -> None:
        """Keeps pictures `x0 [B,C,h,w]` that are scored while they are learned from, for the record.

        What is seen of a picture again takes the place of what was seen before.
        """
        rows = [self.prompts.ids.index(b) for b in ids]
        seen = {"reward": scores.value, "x0": x0} | {f"parts.{name}": part for name, part in scores.parts.items()}
        for name, values in seen.items():
            values = values.detach().float().cpu()
            kept = self.kept.get(f"rollout.{name}")
            if kept is None:
                kept = torch.full((len(self.prompts), *values.shape[1:]), torch.nan)
            self.kept[f"rollout.{name}"] = kept
            kept[rows] = torch.where(values.isfinite(), values, torch.nan)


def deal(source: PromptSource, key: Key, plan: Plan, world: World) -> tuple[Prompts, tuple[str, ...]]:
    """This device's share of the iteration's prompts, `plan.per_prompt` pictures each, and everyone's texts by group.

    Every device draws the whole list. Groups (the pictures of one prompt) are permuted by the key and dealt round
    robin, whole; ids count pictures in that order, so id // per_prompt is the group's place.
    """
    groups = plan.images // plan.per_prompt
    drawn = source.draw(key.random("prompts"), groups)
    order: Sequence[int] = key.permutation(groups, "deal")
    places = tuple(range(groups))
    dealt = drawn.take(order)
    dealt = Prompts(dealt.texts, places, places, dealt.metadata)
    return dealt.take(range(world.rank, groups, world.size)).repeat(plan.per_prompt), dealt.texts
