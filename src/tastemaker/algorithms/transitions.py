"""What algorithms on transitions share: which steps are random, log-probabilities, the clipped ratio, the base's KL,
and when old log-probabilities are renewed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, Calls
from tastemaker.iteration import Iteration, Loss
from tastemaker.process.samplers import Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.process.transition import Transition, kl, log_prob
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


def chosen(it: Iteration, batch: Rollout, fraction: float, epoch: int) -> Tensor | None:
    """`[B,K]` which random steps of each picture are learned from in this epoch; None is all."""
    count = batch.old.shape[1]
    kept = subset(count, fraction)
    return None if kept == count else _some(it, batch.prompts.ids, count, kept, epoch)


def _some(it: Iteration, ids: Sequence[int], count: int, kept: int, epoch: int) -> Tensor:
    """`kept` of `count` steps for each sample, drawn by its id."""
    found = torch.zeros(len(ids), count, dtype=torch.bool)
    for row, b in zip(found, ids, strict=True):
        row[it.key.permutation(count, "steps", epoch, b)[:kept]] = True
    return found


def clipped(log_ratio: Tensor, A: Tensor, clip: float) -> Loss:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A) of each item, to be made small (PPO's surrogate)."""
    rho = torch.exp(log_ratio)
    value = -torch.minimum(rho * A, rho.clamp(1 - clip, 1 + clip) * A)
    apart = log_ratio.detach()
    outside = ((rho.detach() - 1).abs() > clip).float()
    return Loss(value, {"log_ratio": apart.abs(), "approx_kl": apart**2 / 2, "clip_fraction": outside})


def log_ratio(p: Transition, pairs: Transitions) -> Tensor:
    """[M] log p(x[i+1]) less the old one, per element of the latent."""
    device = p.mean.device
    return log_prob(p, pairs.x1.to(device)) - pairs.old.to(device)


def recentred(it: Iteration, p: Transition, pairs: Transitions) -> Tensor:
    """[M] mean of z (mean - mean_old), with z the noise that x[i+1] was drawn with: GRPO-Guard's log-ratio.

    It is (log p - log p_old) std + (mean - mean_old)^2 / (2 std), means over the latent, whose expectation under the
    old policy is 0. z comes from the key once more, and mean_old = x[i+1] - std z: nothing has to be kept for it.
    """
    shape, device = it.policy.latent_shape, p.mean.device
    ids, places = pairs.rollout.prompts.ids, zip(pairs.sample.tolist(), pairs.i.tolist(), strict=True)
    z = torch.cat([it.key.noise("chain", i, [ids[row]], shape) for row, i in places]).to(p.mean)
    return (z * (p.mean - (pairs.x1.to(device) - p.std * z))).flatten(1).mean(1)


def with_base(algorithm: Algorithm, schedule: Sized, kl: float) -> Calls:
    """The calls of an algorithm that asks the base of every item, too, where kl is not 0.

    Which steps are random a schedule knows; asked with their number alone, all of them count.
    """
    if not kl:
        return Calls(len(schedule), 1, 1)
    items = algorithm.items(schedule) if isinstance(schedule, Schedule) else len(schedule)
    return Calls(len(schedule) + items * algorithm.epochs, 1, 1)


def base_at(it: Iteration, sampler: Sampler, pairs: Transitions, guidance: float) -> Transition:
    """The base's p(. | x[i], c) of each item. It comes before the learner's, which has a graph."""
    with it.policy.using("base"):
        return transition_at(it, sampler, pairs, guidance)


def held(loss: Loss, p: Transition, base: Transition, beta: float) -> Loss:
    """The loss and beta KL(p || base) of each step, exact, per element of the latent; `kl` is without beta."""
    apart = kl(p, base)
    return Loss(loss.value + beta * apart, loss.stats | {"kl": apart.detach()})


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
