"""The chain of algorithms that differentiate the reward: a prefix without a graph, and the rest with one.

Every such algorithm is a value of `Course`: which calls of the network are differentiated, and where the chain ends
(the view of FlowBP, arXiv:2606.11075). The prefix is walked at the sampling batch, and no step that is not
differentiated costs a graph.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from tastemaker.iteration import Iteration
from tastemaker.policy.policy import Conditioning, decode, predict
from tastemaker.process.prediction import Prediction, from_eps, from_velocity
from tastemaker.process.samplers import Sampler, of
from tastemaker.process.transition import draw
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import ContractError, Scores
from tastemaker.rollout import placed


class Course(NamedTuple):
    """What of each picture's chain is differentiated."""

    live: Tensor  # [B,T] bool: the network's call at step i keeps its graph; every row has one such step
    stop: Tensor  # [B] int64: the step whose predicted x0 is the picture; T where the chain is walked to its end

    @property
    def first(self) -> Tensor:
        """[B] the first live step: from there on the picture depends on the weights."""
        return self.live.int().argmax(1)

    def take(self, rows: Tensor) -> Course:
        return Course(self.live[rows], self.stop[rows])


def whole(live: Tensor) -> Course:
    """Chains that are walked to their end."""
    return Course(live, torch.full((len(live),), live.shape[1]))


@dataclass(frozen=True)
class Starts:
    """Items of reward gradients: pictures at their first live step, sorted by it, so that calls begin nearly together.

    x: [M,C,h,w] x[first], fp32 on the host.
    """

    prompts: Prompts
    conditioning: Conditioning
    course: Course
    x: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor) -> Starts:
        return Starts(
            self.prompts.take(rows.tolist()), self.conditioning.take(rows), self.course.take(rows), self.x[rows]
        )


class Live(NamedTuple):
    """A call of the network that kept its graph."""

    i: int
    rows: Tensor  # [m] of the M items
    x: Tensor  # [m,C,h,w] what the network saw
    prediction: Prediction


class Walk(NamedTuple):
    """The rest of some chains."""

    x0: Tensor  # [M,C,h,w] with its graph
    live: list[Live]


def shares(it: Iteration) -> list[Prompts]:
    """This device's prompts of every update of the iteration, cut by group."""
    groups = it.plan.groups // it.plan.updates
    update = [b // it.plan.per_prompt // groups for b in it.prompts.ids]
    return [it.prompts.take([row for row, u in enumerate(update) if u == wanted]) for wanted in range(it.plan.updates)]


def calls(count: int, rows: int) -> Iterator[Tensor]:
    """The places 0 ... count - 1 in calls of at most `rows`."""
    for start in range(0, count, rows):
        yield torch.arange(start, min(start + rows, count))


@torch.no_grad()
def finished(it: Iteration, sampler: Sampler, starts: Starts) -> Tensor:
    """[M,C,h,w] the pictures' clean latents as they are without a graph, on the host."""
    found = [walk(it, sampler, starts.take(rows)).x0.cpu() for rows in calls(len(starts), it.plan.sampling_batch)]
    return torch.cat(found) if found else starts.x


@torch.no_grad()
def prefix(it: Iteration, sampler: Sampler, prompts: Prompts, course: Course) -> Starts:
    """Walks every picture to its first live step, without a graph, `plan.sampling_batch` pictures a call."""
    sampler = placed(it, sampler)
    order = torch.argsort(course.first, stable=True)
    prompts, course = prompts.take(order.tolist()), course.take(order)
    conditioning = it.policy.encode(prompts, it.negative)
    at_noise = torch.zeros(len(prompts), *it.policy.latent_shape)
    starts = Starts(prompts, conditioning, course, at_noise)
    it.progress.begin("sampling", int(course.first.sum()))
    walked = [_to_first(it, sampler, starts.take(rows)) for rows in calls(len(prompts), it.plan.sampling_batch)]
    return replace(starts, x=torch.cat(walked)) if walked else starts


def _to_first(it: Iteration, sampler: Sampler, part: Starts) -> Tensor:
    """[m,C,h,w] x[first] of one call's pictures; those that are there are left out of the call."""
    schedule, first = it.policy.schedule(it.plan.steps), part.course.first
    noise = it.key.noise("x0", 0, part.prompts.ids, it.policy.latent_shape)
    x = noise.to(it.policy.device, schedule.alpha.dtype)
    for i in range(int(first.max())):
        gone = int((first <= i).sum())  # sorted: those in front
        rows = torch.arange(gone, len(part))
        prediction = predict(it.policy, x[gone:], i, schedule, part.conditioning.take(rows), it.plan.guidance)
        x = torch.cat([x[:gone], _stepped(it, sampler, prediction, x[gone:], i, part.prompts.take(rows.tolist()))])
        it.progress.advance(len(rows))
        it.world.poll()
    return x.cpu()


def walk(it: Iteration, sampler: Sampler, starts: Starts, *, detached: bool = False) -> Walk:
    """The rest of the chains, with the graph of their live calls.

    detached: the network's input is cut out of the graph, so that the gradient runs along the chain and never through
    one call of the network into another (DRTune).
    """
    schedule, sampler = it.policy.schedule(it.plan.steps), placed(it, sampler)
    x = starts.x.to(it.policy.device, schedule.alpha.dtype)
    course, first, found = starts.course, starts.course.first, list[Live]()
    for i in range(int(first.min()), len(schedule)):
        under_way = (first <= i) & (course.stop >= i)
        for live in (True, False):
            rows = (under_way & (course.live[:, i] == live)).nonzero().flatten()
            if not len(rows):
                continue
            own = x if len(rows) == len(x) else x[rows.to(x.device)]
            prediction = _predicted(it, own, i, starts.conditioning.take(rows), live, detached)
            if live:
                found.append(Live(i, rows, own, prediction))
            moved = _stepped(it, sampler, prediction, own, i, starts.prompts.take(rows.tolist()))
            ends = course.stop[rows] == i
            if ends.any():
                moved = torch.where(ends.to(x.device).view(-1, *(1,) * (x.ndim - 1)), prediction.x0, moved)
            x = moved if len(rows) == len(x) else x.index_copy(0, rows.to(x.device), moved)
            it.world.poll()
    return Walk(x, found)


def _predicted(it: Iteration, x: Tensor, i: int, conditioning: Conditioning, live: bool, detached: bool) -> Prediction:
    """What the network says of x[i]; where its call or its input is cut off, the path through x itself stays.

    What is held constant there is a flow's velocity, any other model's eps. In a walk with a graph, memory that runs
    out is the trainer's affair even where this call has none: fewer items hold fewer graphs.
    """
    schedule = it.policy.schedule(it.plan.steps)
    ask = it.policy.predict if torch.is_grad_enabled() else partial(predict, it.policy)
    if live and not (detached and x.requires_grad):
        return ask(x, i, schedule, conditioning, it.plan.guidance)
    with torch.set_grad_enabled(live and torch.is_grad_enabled()):
        found = ask(x.detach(), i, schedule, conditioning, it.plan.guidance)
    if schedule.straight:
        return from_velocity(found.velocity, x, *schedule.at(i, x))
    return from_eps(found.eps, x, *schedule.at(i, x))


def _stepped(it: Iteration, sampler: Sampler, prediction: Prediction, x: Tensor, i: int, prompts: Prompts) -> Tensor:
    """x[i + 1] of these samples."""
    sampler = of(sampler, prompts.groups)
    schedule = it.policy.schedule(it.plan.steps)
    p = sampler.transition(prediction, x, i, schedule)
    if not float(sampler.stds(schedule.to("cpu"))[i]) > 0:  # on the host: no accelerator is waited for
        return p.mean
    return draw(p, it.key.noise("chain", i, prompts.ids, it.policy.latent_shape).to(x))


class Judged(NamedTuple):
    """Some pictures and their scores."""

    value: Tensor  # [M] with a graph; 0, without one, where there is no finite score
    reward: Tensor  # [M] without, NaN where there is none
    images: Tensor  # [M,3,H,W] in [0, 1]


def judged(it: Iteration, prompts: Prompts, x0: Tensor) -> Judged:
    """Decodes and scores latents [M,C,h,w], and keeps them for the record.

    A picture without a finite score gives no gradient through its pixels, whatever else is asked of them.
    """
    images = decode(it.policy, x0)
    good = torch.ones(len(x0), dtype=torch.bool, device=images.device)
    if images.requires_grad:
        images.register_hook(  # type: ignore[no-untyped-call]
            lambda slope: torch.where(good.view(-1, 1, 1, 1), slope, 0.0)
        )
    scores = _scores(it, prompts, images)
    finite = scores.value.isfinite()
    good.copy_(finite)
    it.saw(prompts.ids, x0, scores)
    it.notes.extend(note for note, ok in zip(scores.notes, finite.tolist(), strict=False) if note and not ok)
    value = torch.where(finite, scores.value, 0.0).to(images.device)
    finite = finite.to(images.device)
    return Judged(value, torch.where(finite, value, torch.nan).detach(), images)


def _scores(it: Iteration, prompts: Prompts, images: Tensor) -> Scores:
    """The reward's answer with its graph. One that raises is asked once more, and then has no score for these."""
    try:
        return cast(Scores, it.reward(images, prompts))
    except (ContractError, torch.OutOfMemoryError):
        raise
    except Exception:
        try:
            return cast(Scores, it.reward(images, prompts))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            none = images.flatten(1).sum(1) * 0 + torch.nan
            return Scores(none, {}, (traceback.format_exc(),) * len(images))
