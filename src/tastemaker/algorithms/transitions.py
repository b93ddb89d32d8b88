"""What algorithms on transitions share: which steps are random, log-probabilities, when the old ones are renewed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tastemaker.iteration import Iteration
from tastemaker.process.samplers import Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.process.transition import log_prob
from tastemaker.rollout import Rollout, Transitions, transition_at

TOLERATED = 0.1  # of the clip range: log-ratios before the first update above this are renewed


def random_steps(sampler: Sampler, schedule: Schedule) -> int:
    """How many steps of the chain have a density; none is refused."""
    count = int((sampler.stds(schedule) > 0).sum())
    if count == 0:
        raise ValueError(
            f"sampler {sampler} draws nothing at random in {len(schedule)} steps, so no step has a probability to "
            "learn from. Use a sampler with noise, such as --algorithm.sampler.eta 1."
        )
    return count


def subset(count: int, fraction: float) -> int:
    """That share of `count` steps, rounded down, at least one."""
    return max(1, int(count * fraction))


def log_probs(it: Iteration, sampler: Sampler, pairs: Transitions, guidance: float) -> tuple[Tensor, Tensor, Tensor]:
    """New and old log-probability and credit of each item, `[M]`, on the policy's device."""
    new = log_prob(transition_at(it, sampler, pairs, guidance), pairs.x1.to(it.policy.device))
    return new, pairs.old.to(new.device), pairs.credit.to(new.device)


def with_old(it: Iteration, sampler: Sampler, rollout: Rollout, clip: float, guidance: float) -> Rollout:
    """The rollout with log-probabilities that the learning layout gives at the old weights.

    Those of the sampling are good enough where both layouts agree, which one call of the first iteration shows. The
    decision is in the state, the renewed numbers are in `it.kept`: replay after a restart makes neither anew.
    """
    if "old" not in it.kept:
        if "renew" not in it.kept:
            first = it.key.iteration == 0
            renew = _disagrees(it, sampler, rollout, clip, guidance) if first else it.state["renew"]
            it.kept["renew"] = torch.tensor(renew)
        if it.kept["renew"]:
            it.kept["old"] = _renewed(it, sampler, rollout, guidance)
    it.state["renew"] = bool(it.kept["renew"])
    return replace(rollout, old=it.kept["old"]) if it.state["renew"] else rollout


def _disagrees(it: Iteration, sampler: Sampler, rollout: Rollout, clip: float, guidance: float) -> bool:
    """Whether any device's first call of transitions is off by more than a tenth of `clip`."""
    calls = _calls(rollout, it.plan.micro_batch)
    apart = 0.0
    for pairs, count in calls:
        with torch.no_grad():
            new, old, _ = log_probs(it, sampler, pairs, guidance)
        apart = float((new - old)[:count].abs().max())
        break
    return it.world.maximum(int(not apart <= TOLERATED * clip)) > 0


def _renewed(it: Iteration, sampler: Sampler, rollout: Rollout, guidance: float) -> Tensor:
    """`[B,K]` log-probabilities at the old weights, in calls of `micro_batch` items."""
    old = rollout.old.clone()
    it.progress.begin("old log-probs", old.numel())
    for pairs, count in _calls(rollout, it.plan.micro_batch):
        with torch.no_grad():
            new, _, _ = log_probs(it, sampler, pairs, guidance)
        old[pairs.sample[:count], pairs.step[:count]] = new[:count].to(old)
        it.progress.advance(count)
        it.world.poll()
    return old


def _calls(rollout: Rollout, rows: int) -> Iterator[tuple[Transitions, int]]:
    """All transitions in calls of `rows`, the last filled up, each with the number of its own items."""
    pairs = rollout.transitions()
    for start in range(0, len(pairs), rows):
        yield pairs.take(torch.arange(start, start + rows).clamp(max=len(pairs) - 1)), min(rows, len(pairs) - start)
