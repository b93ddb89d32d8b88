"""Judging a model: fixed prompts x fixed noise, so that two models differ in nothing but their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tastemaker.evaluation.diversity import Metric, measure
from tastemaker.evaluation.statistics import Interval, bootstrap, paired, win_rate
from tastemaker.iteration import Progress, Silence
from tastemaker.policy.policy import Policy, decode
from tastemaker.process.noise import Key
from tastemaker.process.samplers import Sampler, Window
from tastemaker.prompts.prompts import Prompts, PromptSource
from tastemaker.rewards.reward import NamedReward, score
from tastemaker.rollout import chain, padded
from tastemaker.world import World


@dataclass(frozen=True)
class Trial:
    """What every model is asked to draw. Noise is keyed by (seed, "evaluation", step, id): the same for all models."""

    prompts: Prompts
    steps: int
    guidance: float
    sampler: Sampler
    seed: int
    batch: int = 32  # pictures a call; the same pictures within rounding whatever it is
    negative: str = ""


def some(trial: Trial, count: int) -> Trial:
    """With so many of its pictures at most: the first one of every prompt, then the second ones, and so on."""
    groups = trial.prompts.groups
    order = sorted(range(len(groups)), key=lambda row: groups[:row].count(groups[row]))[:count]
    return replace(trial, prompts=trial.prompts.take(sorted(order)), batch=min(trial.batch, len(order)))


class Verdict(NamedTuple):
    """Scores of every picture by reward, and by `reward.part`, in the order of the trial's prompts, of all devices."""

    values: dict[str, Tensor]  # [N] fp32, NaN where a score failed
    pictures: list[Tensor]  # uint8 [3,H,W], this device's share
    ids: tuple[int, ...]  # of the pictures
    diversity: dict[int, float] = {}  # of every prompt's pictures, by group; empty where it was not measured


class Change(NamedTuple):
    """A tuned model against its base on the same prompts and noise."""

    base: Interval
    tuned: Interval
    change: Interval  # paired
    deviations: float  # the change in units of the base's standard deviation over pictures
    wins: Interval  # share of pairs won, ties half


def trial_prompts(source: PromptSource, count: int, images_per_prompt: int, seed: int) -> Prompts:
    """The first `count` prompts of the source's keyed order, some pictures each."""
    drawn = source.draw(Key(seed, "evaluation").random("prompts"), count)
    return drawn.repeat(images_per_prompt)


def judge(
    policy: Policy,
    rewards: Sequence[NamedReward],
    trial: Trial,
    *,
    metric: Metric | None = None,
    world: World | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Draw the trial's pictures with the policy's present weights and score them. Asks no gradient of anything.

    metric: measures the diversity of every prompt's pictures, of which there have to be two or more.
    """
    world, progress = world or World(), progress or Silence()
    key = Key(trial.seed, "evaluation")
    groups = trial.prompts.groups  # a prompt's pictures stay together
    own = trial.prompts.take([row for row, group in enumerate(groups) if group % world.size == world.rank])
    progress.begin("evaluating", len(own))
    scores: list[dict[str, Tensor]] = []
    pictures: list[Tensor] = []
    for part in own.split(trial.batch):
        images = draw_pictures(policy, trial, key, padded(part, trial.batch))[: len(part)]
        scores.append(_scores(rewards, images, part))
        pictures += list((images * 255).round().clamp(0, 255).to(torch.uint8).cpu())
        progress.advance(len(part))
        world.poll()
    found = measure(metric, pictures, own.groups, progress=progress) if metric else {}
    return Verdict(_over_all(scores, own, trial.batch, world), pictures, own.ids, _everyones(found, world))


def _everyones(diversity: dict[int, float], world: World) -> dict[int, float]:
    """The diversity of all devices' prompts."""
    if world.size == 1:
        return diversity
    rows = [[float(group), value] for group, value in diversity.items()]
    both = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2)
    return {int(group): value for group, value in world.everyone(both, ids=list(diversity)).tolist()}


def _scores(rewards: Sequence[NamedReward], images: Tensor, prompts: Prompts) -> dict[str, Tensor]:
    """Every reward's scores `[B]` of one call's pictures, by its name, and its parts by `reward.part`."""
    found: dict[str, Tensor] = {}
    for reward in rewards:
        scores = score(reward, images, prompts)
        found[reward.name] = scores.value.float()
        found |= {f"{reward.name}.{part}": numbers.float() for part, numbers in scores.parts.items()}
    return found


def _over_all(scores: list[dict[str, Tensor]], own: Prompts, batch: int, world: World) -> dict[str, Tensor]:
    """All pictures' scores `[N]` by name; NaN where a call that failed had no such part."""
    names = list(dict.fromkeys(name for found in scores for name in found))
    if world.size > 1:  # rank 0 always has pictures; one without any does not know the names
        names = world.broadcast_text("\n".join(names)).split("\n")
    counts = [len(part) for part in own.split(batch)]
    values: dict[str, Tensor] = {}
    for name in names:
        column = [found.get(name, torch.full((n,), torch.nan)) for found, n in zip(scores, counts, strict=True)]
        values[name] = torch.cat([torch.zeros(0), *column])
        if world.size > 1:
            values[name] = world.everyone(values[name], ids=own.ids)
    return values


@torch.no_grad()
def draw_pictures(policy: Policy, trial: Trial, key: Key, prompts: Prompts) -> Tensor:
    """Pictures `[B,3,H,W]` in [0, 1] of one sampling call."""
    schedule = policy.schedule(trial.steps)
    sampler = trial.sampler.drawn(key, schedule) if isinstance(trial.sampler, Window) else trial.sampler
    steps = chain(
        policy, sampler, prompts, key=key, schedule=schedule, guidance=trial.guidance, negative=trial.negative
    )
    *_, last = steps
    return decode(policy, last.cleaner)


def compare(base: dict[str, Tensor], tuned: dict[str, Tensor], prompts: Prompts, seed: int) -> dict[str, Change]:
    """Every score that both have, paired, with bootstrap intervals over prompts."""
    found: dict[str, Change] = {}
    groups = prompts.groups
    for name in base:
        if name not in tuned:
            continue
        before, after = base[name].double().numpy(), tuned[name].double().numpy()
        change = paired(before, after, groups, key=(seed, name))
        scored = base[name].double()[base[name].isfinite()]
        spread = float(scored.std(unbiased=False)) if len(scored) else float("nan")
        found[name] = Change(
            bootstrap(before, groups, key=(seed, name)),
            bootstrap(after, groups, key=(seed, name)),
            change,
            change.mean / spread if spread > 0 else float("nan"),
            win_rate(before, after, groups, key=(seed, name)),
        )
    return found
