"""How many digits log-probabilities have, in units of what the ratio is clipped to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Normal

from tastemaker.algorithms import transitions
from tastemaker.checks.case import NOTHING, Case
from tastemaker.checks.finding import Finding, Verdict, graded, idle
from tastemaker.iteration import Iteration
from tastemaker.policy import controls
from tastemaker.process.samplers import Sampler, of
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import Transitions, placed
from tastemaker.training.trainer import cut

ITEMS = 64  # one step of one picture loses many times the digits that another does
SHARE = transitions.TOLERATED  # of the clip range, for what our own code adds


def arithmetic(case: Case) -> Finding:
    """Change of variables, step and density, against the same in fp64 from the same answer of the network."""
    found = _pairs(case)
    if isinstance(found, Finding):
        return found
    it, sampler, pairs, clip = found
    if it.policy.device.type == "mps":
        return idle("this device has no fp64.")
    ours, exact = _ours(case, it, sampler, pairs), _in_fp64(case, it, sampler, pairs)
    off, most = float((ours.double() - exact).abs().max()), SHARE * clip
    verdict = graded(off, good=most, bearable=most)
    advice = (
        f"a step's log-probability is {off:.1e} off the same in fp64, {off / clip:.2g} times the clip: it is not "
        "computed in fp32, or not for the step that was drawn. Ratios would be noise."
    )
    return Finding(verdict, f"{off:.1e}", f"{most:.0e}, clip / 10", "" if verdict is Verdict.OK else advice)


def network(case: Case) -> Finding:
    """The same steps with the whole model in fp32."""
    found = _pairs(case)
    if isinstance(found, Finding):
        return found
    if case.precision == "fp32":
        return idle("the network computes in fp32.")
    if case.run.quantise is not None:
        return idle(f"--quantise {case.run.quantise}: this network cannot compute in fp32.")
    it, sampler, pairs, clip = found
    ours = _ours(case, it, sampler, pairs)
    with controls.exact(it.policy):
        conditioning = it.policy.encode(pairs.rollout.prompts, it.negative)
        wanted = _ours(case, it, sampler, replace(pairs, rollout=replace(pairs.rollout, conditioning=conditioning)))
    apart = (ours - wanted).abs()
    off = float(apart.max())
    measured, bound = f"{off:.1e}, median {float(apart.median()):.1e}", f"{clip:.0e}, the clip"
    if off <= clip:
        return Finding(Verdict.OK, measured, bound)
    if off != off or off == float("inf"):
        return Finding(
            Verdict.WRONG, measured, bound, f"a log-probability is not finite in {case.precision}: use bf16, or no."
        )
    finer = "--mixed_precision fp16, which has three bits more, or no" if case.precision == "bf16" else "no"
    return Finding(
        Verdict.WARNING,
        measured,
        bound,
        f"rounding the network to {case.precision} moves a log-probability by {off / clip:.2g} times what a ratio may "
        "move. Much of it is the same in drawing and learning, but what is not decides which items are clipped. Try "
        f"{finer}, or a larger --algorithm.clip.",
    )


def _pairs(case: Case) -> tuple[Iteration, Sampler, Transitions, float] | Finding:
    """Some transitions of the first iteration."""
    if case.clip is None:
        return idle(f"{case.name} clips no ratio.")
    it = case.iteration(0, renew=torch.tensor(False))
    update = case.update(it, ITEMS)
    if update is None:
        return Finding(Verdict.WARNING, "", "", NOTHING)
    if not isinstance(update.batch, Transitions):
        return idle(f"the ratio of {case.name} is not one of steps of the chain.")
    return it, placed(it, case.algorithm.training_sampler), update.batch, case.clip


@torch.no_grad()
def _ours(case: Case, it: Iteration, sampler: Sampler, pairs: Transitions) -> Tensor:
    """[M] as training computes it, in its calls."""
    guidance = case.algorithm.learning_guidance
    parts = [
        (transitions.log_probs(it, sampler, part, guidance)[0], own) for part, own in cut(pairs, it.plan.micro_batch)
    ]
    return torch.cat([found[:own] for found, own in parts])


@torch.no_grad()
def _in_fp64(case: Case, it: Iteration, sampler: Sampler, pairs: Transitions) -> Tensor:
    """[M] the density by torch's own normal distribution; latents and grid are the same numbers, wider."""
    device, grid = it.policy.device, it.policy.schedule(it.plan.steps)
    wide, found = Schedule(grid.t, grid.alpha.double(), grid.sigma.double()), []
    for part, own in cut(pairs, it.plan.micro_batch):
        x, x1, i = part.x.to(device).double(), part.x1.to(device).double(), part.i.to(device)
        prediction = it.policy.predict(x, i, wide, part.conditioning, case.algorithm.learning_guidance)
        p = of(sampler, part.groups).transition(prediction, x, i, wide)
        assert p.mean.dtype == torch.float64
        density: Tensor = Normal(p.mean, p.std.expand_as(p.mean)).log_prob(x1)  # type: ignore[no-untyped-call]
        found.append(density.flatten(1).mean(1)[:own])
    return torch.cat(found)
