"""The ratio of new to old probabilities before the first step: 1, for nothing was learned yet."""

from __future__ import annotations

import torch

from tastemaker.algorithms.transitions import TOLERATED
from tastemaker.checks.case import NOTHING, Case
from tastemaker.checks.finding import Finding, Verdict, idle
from tastemaker.iteration import Iteration, Update
from tastemaker.training.trainer import cut


def ratio(case: Case) -> Finding:
    """The largest |log rho| of an update, as a run reports it as `mismatch`; in the run's calls and precision."""
    if case.clip is None:
        return idle(f"{case.name} clips no ratio.")
    found = _largest(case, renew=False)
    if found is None:
        return Finding(Verdict.WARNING, "", "", NOTHING)
    most = TOLERATED * case.clip
    measured, bound = f"{found:.1e}", f"{most:.0e}, clip / 10"
    if found <= most:
        return Finding(Verdict.OK, measured, bound)
    again = _largest(case, renew=True)
    if again is not None and again <= most:
        calls = f"calls of {case.plan.sampling_batch} pictures and of {case.plan.micro_batch} items"
        other = "--mixed_precision fp16 or no" if case.precision == "bf16" else "--mixed_precision no"
        return Finding(
            Verdict.WARNING,
            measured,
            bound,
            f"drawing and learning ({calls}, {case.precision}) disagree. A run sees it and takes old log-probabilities "
            "anew in each iteration, one more pass without a gradient. Equal --plan.micro_batch and "
            f"--plan.sampling_batch{'' if case.precision == 'fp32' else f', or {other},'} may save that.",
        )
    worse = "not a number" if again is None or again != again else f"{again:.1e}"
    return Finding(
        Verdict.WRONG,
        measured,
        bound,
        f"the same weights give the same step another probability when it is learned from, and taking it anew does not "
        f"help ({worse}): the network answers differently from call to call, or with a gradient and without one. Look "
        "for dropout, random layers, --attention_backend, --compile; a run would clip at random.",
    )


def _largest(case: Case, *, renew: bool) -> float | None:
    it = case.iteration(0, renew=torch.tensor(renew))
    update = case.update(it)
    return None if update is None else _log_ratio(it, update)


def _log_ratio(it: Iteration, update: Update) -> float:
    """Graph and all, as the training call computes it."""
    found = []
    for part, own in cut(update.batch, it.plan.micro_batch):
        found.append(update.loss(part).stats["log_ratio"][:own].detach().abs())
    return float(torch.cat(found).max())
