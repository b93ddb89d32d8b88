"""The denoising loop: the only code that runs one. `chain` for everybody, `collect` for ratio algorithms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tastemaker.iteration import Iteration
from tastemaker.policy.policy import Conditioning, Policy, decode, predict
from tastemaker.process.noise import Key
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import Sampler, Window, of, random_rows
from tastemaker.process.schedule import Schedule
from tastemaker.process.transition import Transition, draw, log_prob
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.scoring import Result, Scoring


class Step(NamedTuple):
    """One step of a chain: from x[i] to x[i + 1]."""

    i: int
    x: Tensor  # [B,C,h,w]
    prediction: Prediction
    transition: Transition
    cleaner: Tensor  # x[i + 1], [B,C,h,w]


def chain(
    policy: Policy,
    sampler: Sampler,
    prompts: Prompts,
    *,
    key: Key,
    schedule: Schedule,
    guidance: float,
    negative: str = "",
    conditioning: Conditioning | None = None,
    x: Tensor | None = None,
    first: int = 0,
    grad: bool = False,
) -> Iterator[Step]:
    """The steps from x[first] to x[T]; x[0] is keyed noise unless `x` is given, conditioning the prompts' unless it is.

    Every sample's noise depends on (key, step, prompts.ids) alone. A step whose std is 0 draws none. Latents are of the
    schedule's precision, fp32 or wider.
    """
    sampler = of(sampler, prompts.groups)
    conditioning = policy.encode(prompts, negative) if conditioning is None else conditioning
    shape = policy.latent_shape
    random = (sampler.stds(schedule) > 0).tolist()
    dtype = schedule.alpha.dtype
    x = key.noise("x0", 0, prompts.ids, shape).to(policy.device, dtype) if x is None else x
    for i in range(first, len(schedule)):
        noise = key.noise("chain", i, prompts.ids, shape).to(policy.device, dtype) if random[i] else None
        with torch.set_grad_enabled(grad):
            prediction = predict(policy, x, i, schedule, conditioning, guidance)
            p = sampler.transition(prediction, x, i, schedule)
            cleaner = p.mean if noise is None else draw(p, noise)
        yield Step(i, x, prediction, p, cleaner)
        x = cleaner


def padded(prompts: Prompts, rows: int) -> Prompts:
    """The prompts, the last one repeated up to `rows`: every network call has the same rows."""
    return prompts.take(_filled(0, rows, len(prompts)))


def placed(it: Iteration, sampler: Sampler) -> Sampler:
    """The sampler of this iteration: windows are drawn to their places, everything else is itself."""
    if isinstance(sampler, Window):
        return sampler.drawn(it.key, it.policy.schedule(it.plan.steps))
    return sampler


@dataclass(frozen=True)
class Transitions:
    """Items of ratio algorithms: pairs (sample, random step) of a rollout, which hold no tensor of latents twice."""

    rollout: Rollout
    sample: Tensor  # [M] int64, rows of the rollout
    step: Tensor  # [M] int64, columns of its random steps

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: Tensor) -> Transitions:
        return replace(self, sample=self.sample[rows], step=self.step[rows])

    @property
    def i(self) -> Tensor:
        """[M] the step in the chain."""
        return self.rollout.steps[self.sample, self.step]

    @property
    def x(self) -> Tensor:
        """[M,C,h,w] x[i]."""
        return self._state(self.i)

    @property
    def x1(self) -> Tensor:
        """[M,C,h,w] x[i + 1]."""
        return self._state(self.i + 1)

    @property
    def old(self) -> Tensor:
        """[M] log-probability of x[i + 1] under the weights that drew it."""
        return self.rollout.old[self.sample, self.step]

    @property
    def credit(self) -> Tensor:
        """[M] the sample's credit."""
        assert self.rollout.credit is not None
        return self.rollout.credit[self.sample]

    @property
    def conditioning(self) -> Conditioning:
        """The prompts, encoded, a row for each item."""
        return self.rollout.conditioning.take(self.sample)

    @property
    def groups(self) -> list[int]:
        """The group of each item's picture."""
        return [self.rollout.prompts.groups[row] for row in self.sample.tolist()]

    def _state(self, i: Tensor) -> Tensor:
        place = torch.searchsorted(self.rollout.times[self.sample], i[:, None]).flatten()
        return self.rollout.path[self.sample, place]


@dataclass(frozen=True)
class Rollout:
    """This device's pictures of one iteration and, of their random steps, what ratio algorithms need; fp32 on the host.

    prompts, conditioning: B rows.
    steps: [B,K] the random steps of each.  times: [B,N] the states x[i] that are kept.
    path: [B,N,C,h,w].  old: [B,K] log-probabilities.  x0: [B,C,h,w].  reward: [B] `Iteration.worth`, NaN without score.
    """

    prompts: Prompts
    conditioning: Conditioning
    steps: Tensor
    times: Tensor
    path: Tensor
    old: Tensor
    x0: Tensor
    reward: Tensor
    parts: dict[str, Tensor]
    credit: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def credited(self, credit: Tensor) -> Rollout:
        """The same with a credit `[B]` for each picture; pictures without a finite one are not learned from."""
        return replace(self, credit=credit)

    def take(self, rows: Tensor) -> Rollout:
        picked = {name: getattr(self, name)[rows] for name in ("steps", "times", "path", "old", "x0", "reward")}
        credit = None if self.credit is None else self.credit[rows]
        parts = {name: part[rows] for name, part in self.parts.items()}
        prompts, conditioning = self.prompts.take(rows.tolist()), self.conditioning.take(rows)
        return replace(self, prompts=prompts, conditioning=conditioning, parts=parts, credit=credit, **picked)

    def updates(self, it: Iteration, epoch: int) -> list[Rollout]:
        """The pictures of each optimizer step, cut by group.

        Epoch 0 takes the dealt order; later epochs permute rows of `plan.row` groups whole, so every number of devices
        that divides a row has equal shares.
        """
        groups, row = it.plan.groups // it.plan.updates, it.plan.row
        rows = it.plan.groups // row
        order = it.key.permutation(rows, "epoch", epoch) if epoch else list(range(rows))
        place = torch.empty(rows, dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(rows)
        group = torch.tensor(self.prompts.ids, dtype=torch.long) // it.plan.per_prompt
        update = place[group // row] * row // groups
        return [self.take((update == u).nonzero().flatten()) for u in range(it.plan.updates)]

    def transitions(self, chosen: Tensor | None = None) -> Transitions:
        """The items of the pictures that have a credit: all random steps, or those where `chosen [B,K]` holds."""
        assert self.credit is not None, "credit comes before transitions"
        wanted = self.credit.isfinite()[:, None].expand_as(self.steps)
        sample, step = (wanted if chosen is None else wanted & chosen).nonzero(as_tuple=True)
        return Transitions(self, sample, step)

    def tensors(self) -> dict[str, Tensor]:
        """All but the prompts, which the key gives again."""
        named = {name: getattr(self, name) for name in ("steps", "times", "path", "old", "x0", "reward")}
        return named | {f"parts.{name}": part for name, part in self.parts.items()}


def collect(it: Iteration, sampler: Sampler, *, same_noise: bool = False) -> Rollout:
    """Draw and score this device's pictures, once an iteration; scoring runs beside the sampling.

    same_noise: the pictures of a group begin at the same x[0]. Sampling stops for a stop request between two network
    calls. The result is in `it.kept`.
    """
    prefix = "rollout."
    kept = {name.removeprefix(prefix): value for name, value in it.kept.items() if name.startswith(prefix)}
    conditioning = it.policy.encode(it.prompts, it.negative)
    if not kept:
        kept = _collected(it, sampler, conditioning, same_noise).tensors()
        it.kept.update({prefix + name: value for name, value in kept.items()})
    parts = {name.removeprefix("parts."): kept.pop(name) for name in list(kept) if name.startswith("parts.")}
    return Rollout(it.prompts, conditioning, parts=parts, **kept | {"reward": it.worth(kept["reward"], parts)})


def _collected(it: Iteration, sampler: Sampler, conditioning: Conditioning, same_noise: bool) -> Rollout:
    schedule = it.policy.schedule(it.plan.steps)
    steps = random_rows(of(sampler, it.prompts.groups), schedule, len(it.prompts)).contiguous()
    times = torch.stack([torch.unique(torch.cat([own, own + 1])) for own in steps])
    traces: list[tuple[Tensor, Tensor, Tensor]] = []
    it.progress.begin("sampling", len(it.prompts) * it.plan.steps)
    with Scoring(it.reward, poll=it.world.poll) as scoring:
        for start in range(0, len(it.prompts), it.plan.sampling_batch):
            rows = _filled(start, it.plan.sampling_batch, len(it.prompts))
            part = it.prompts[start : start + it.plan.sampling_batch]
            kept = [table[start : start + len(part)] for table in (steps, times)]
            trace = _trace(it, sampler, rows, kept, conditioning, same_noise)
            it.world.poll()
            with torch.no_grad():
                images = decode(it.policy, trace[2].to(it.policy.device))
            scoring.submit(part, images)
            traces.append(trace)
            it.progress.advance(0, f"{scoring.waiting} rewards waiting" if scoring.waiting else "")
        scores = scoring.results()
    it.notes.extend(note for name, note in scoring.notes.items() if math.isnan(scores[name][0]))
    paths, olds, x0s = zip(*traces, strict=True) if traces else ((), (), ())
    reward, parts = _scores(scores, it.prompts.ids)
    return Rollout(
        it.prompts, conditioning, steps, times, torch.cat(paths), torch.cat(olds), torch.cat(x0s), reward, parts
    )


def _filled(start: int, rows: int, count: int) -> list[int]:
    """`rows` places from `start` on; behind the last of `count` it is repeated, so that calls have equal rows."""
    return [min(row, count - 1) for row in range(start, start + rows)]


def _trace(
    it: Iteration, sampler: Sampler, rows: list[int], kept: list[Tensor], conditioning: Conditioning, same_noise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Path `[m,N,C,h,w]`, log-probabilities `[m,K]` and x0 `[m,C,h,w]` of one sampling call's pictures, on the host.

    kept: their random steps [m,K] and the states to keep [m,N].
    """
    schedule, shape, prompts = it.policy.schedule(it.plan.steps), it.policy.latent_shape, it.prompts.take(rows)
    dtype, (random, times) = schedule.alpha.dtype, kept
    path, old = torch.empty(*times.shape, *shape, dtype=dtype), torch.empty(random.shape, dtype=dtype)
    start, x0 = it.key.noise("x0 of a group", 0, prompts.groups, shape) if same_noise else None, torch.empty(0)
    steps = chain(
        it.policy,
        sampler,
        prompts,
        key=it.key,
        schedule=schedule,
        guidance=it.plan.guidance,
        conditioning=conditioning.take(rows),
        x=None if start is None else start.to(it.policy.device, dtype),
    )
    for step in steps:
        if step.i == 0:
            _put(path, times == 0, step.x)
        if (random == step.i).any():
            _put(old, random == step.i, log_prob(step.transition, step.cleaner))
        _put(path, times == step.i + 1, step.cleaner)
        x0 = step.cleaner
        it.progress.advance(len(random))
        it.world.poll()
    return path, old, x0.detach().to("cpu")[: len(random)]


def _put(table: Tensor, places: Tensor, values: Tensor) -> None:
    """Row b of the values to the place in row b of the table, where there is one in `places [m, columns]`."""
    row, column = places.nonzero(as_tuple=True)
    if len(row):
        table[row, column] = values.detach().to("cpu")[row]


def _scores(scores: dict[int, Result], ids: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards `[B]` fp32 and their named parts, in the order of the ids."""
    reward = torch.tensor([scores[b][0] for b in ids], dtype=torch.float32)
    names = sorted({name for b in ids for name in scores[b][1]})
    parts = {name: torch.tensor([scores[b][1].get(name, float("nan")) for b in ids]) for name in names}
    return reward, parts


def transition_at(it: Iteration, sampler: Sampler, pairs: Transitions, guidance: float | None = None) -> Transition:
    """p_theta(. | x[i], c) of each item, on the policy's device."""
    device, sampler = it.policy.device, of(sampler, pairs.groups)
    schedule = it.policy.schedule(it.plan.steps)
    x, i = pairs.x.to(device), pairs.i.to(device)
    guidance = it.plan.guidance if guidance is None else guidance
    return sampler.transition(predict(it.policy, x, i, schedule, pairs.conditioning, guidance), x, i, schedule)
