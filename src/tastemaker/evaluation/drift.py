"""Drift: how far the tuned model has gone from its base, asked of the base at a small share of an iteration's steps.

    drift = mean |eps - eps_base|^2     over elements, at states of this iteration's chains; of a flow, of its velocity
    kl    = mean KL(p || p_base)        of the same steps, per element, where a step is random

Noise has variance 1, so a drift of 1 is as if the tuned model believed in unrelated noise. Both are of the guided
prediction that draws the pictures. Algorithms that keep the states of their chains are asked at these; of others the
finished pictures are noised again, at as many places.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tastemaker.iteration import Iteration
from tastemaker.policy.policy import predict
from tastemaker.process.noise import Key
from tastemaker.process.samplers import Sampler, of
from tastemaker.process.transition import kl
from tastemaker.rollout import placed


class States(NamedTuple):
    """Places that are asked: this device's, of those chosen over all devices."""

    numbers: list[int]  # of the choice, the same on all devices
    rows: list[int]  # of this device's pictures
    i: Tensor  # [n] int64 the step
    x: Tensor  # [n,C,h,w] x[i]
    random: bool  # whether the steps have a density


@torch.no_grad()
def drift(it: Iteration, sampler: Sampler, share: float) -> dict[str, float]:
    """`drift`, and `kl` where there is one, at this share of the steps, at least one; empty where nothing was drawn.

    A collective: all devices call it. The choice is the key's, so it does not depend on their number.
    """
    found = _states(it, share)
    if found is None:
        return {}
    rows = range(0, len(found.rows), it.plan.sampling_batch)
    parts = [_apart(it, sampler, found, slice(first, first + it.plan.sampling_batch)) for first in rows]
    own = torch.cat(parts) if parts else torch.zeros(0, 2)
    values = it.world.everyone(own.double().cpu(), ids=found.numbers)
    values = values[values.isfinite().all(1)] if len(values) else values.reshape(0, 2)
    if not len(values):
        return {}
    means = dict(zip(("drift", "kl"), values.mean(0).tolist(), strict=True))
    return means if found.random else {"drift": means["drift"]}


def _states(it: Iteration, share: float) -> States | None:
    x0, steps = it.kept.get("rollout.x0"), it.kept.get("rollout.steps")
    if x0 is None:
        return None
    random = steps is not None and steps.shape[1] > 0
    each = steps.shape[1] if steps is not None and random else it.plan.steps
    chosen = places(it.key, it.plan.images, each, share)
    place = {b: row for row, b in enumerate(it.prompts.ids)}
    own = [number for number in chosen if number // each in place]
    rows = [place[number // each] for number in own]
    columns = torch.tensor([number % each for number in own], dtype=torch.long)
    if steps is None or not random:
        return States(own, rows, columns, _noised(it, x0[rows], rows, columns), False)
    i = steps[rows, columns]
    at = torch.searchsorted(it.kept["rollout.times"][rows], i[:, None]).flatten()
    return States(own, rows, i, it.kept["rollout.path"][rows, at], True)


def places(key: Key, pictures: int, each: int, share: float) -> list[int]:
    """This share of an iteration's steps, at least one, each as `picture * each + step`: pictures in a random order,
    steps evenly along the chain from a random one on, for steps differ much in what a change of weights does there."""
    count = max(1, int(share * pictures * each))
    order, turn = key.permutation(pictures, "drift"), key.permutation(each, "drift", "step")[0]
    return [order[k % pictures] * each + (k * each // count + turn) % each for k in range(count)]


def _noised(it: Iteration, x0: Tensor, rows: list[int], i: Tensor) -> Tensor:
    """alpha x0 + sigma eps, eps by the key."""
    if not rows:
        return x0
    ids, schedule = it.prompts.ids, it.policy.schedule(it.plan.steps).to("cpu")
    eps = [it.key.noise("drift", k, [ids[row]], tuple(x0.shape[1:])) for k, row in zip(i.tolist(), rows, strict=True)]
    alpha, sigma = schedule.at(i, x0)
    return alpha * x0 + sigma * torch.cat(eps).to(x0)


def _apart(it: Iteration, sampler: Sampler, found: States, part: slice) -> Tensor:
    """[n,2] both numbers of some of the places; the KL is 0 where there is none."""
    prompts, device = it.prompts.take(found.rows[part]), it.policy.device
    schedule, conditioning = it.policy.schedule(it.plan.steps), it.policy.encode(prompts, it.negative)
    x, i = found.x[part].to(device), found.i[part].to(device)
    ours = predict(it.policy, x, i, schedule, conditioning, it.plan.guidance)
    with it.policy.using("base"):
        base = predict(it.policy, x, i, schedule, conditioning, it.plan.guidance)
    away = ours.velocity - base.velocity if schedule.straight else ours.eps - base.eps
    distance = away.square().flatten(1).mean(1)
    if not found.random:
        return torch.stack([distance, torch.zeros_like(distance)], 1)
    own = of(placed(it, sampler), prompts.groups)
    p, q = (own.transition(prediction, x, i, schedule) for prediction in (ours, base))
    return torch.stack([distance, kl(p, q).to(distance)], 1)
