"""Whether every trainable tensor has a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tastemaker.checks.case import ITEMS, NOTHING, Case, same, stir
from tastemaker.checks.finding import Finding, Verdict
from tastemaker.iteration import Iteration, State, Update
from tastemaker.training.trainer import PATIENCE, descend

NONE = "no tensor has a gradient: the loss does not lead to the weights. Nothing would be learned."
GRAPHLESS = "does not require grad"  # torch's words for a loss without a graph
SHOWN = 3  # names in a message
TRIED = 12  # tensors without a gradient that are moved, to see whether they matter


def gradients(case: Case) -> Finding:
    """Of an update on fresh pictures behind a first one: an adapter's B starts at 0, and until it moves A has none."""
    state: State | None = None
    stats: Mapping[str, float] = {}
    for index in range(2):
        it = case.iteration(index, most=ITEMS, state=state)
        update = case.update(it)
        if update is None:
            return Finding(Verdict.WARNING, "", "", NOTHING)
        try:
            stats = _step(case, it, update)
        except RuntimeError as error:
            if GRAPHLESS not in str(error):
                raise
            return Finding(Verdict.WRONG, "no tensor", "all of them", NONE)
        if stats["skipped"]:
            return _not_finite(case, stats)
        state = it.state
    named = case.policy.named_parameters()
    silent = [name for name, p in named.items() if p.grad is None or not p.grad.any()]
    measured = f"{len(named) - len(silent)} of {len(named)} tensors, norm {stats['grad_norm']:.1e}"
    if not silent:
        return Finding(Verdict.OK, measured, "all of them")
    return _silent(case, named, silent)._replace(measured=measured, bound="all of them")


def _step(case: Case, it: Iteration, update: Update) -> Mapping[str, float]:
    """An optimizer step, tried as often as a run would: fp16's loss scale is found so."""
    for _ in range(PATIENCE):
        stats = descend(it, case.optimizer, update, it.progress)
        if not stats["skipped"]:
            break
    return stats


def _not_finite(case: Case, stats: Mapping[str, float]) -> Finding:
    if not stats.get("items"):
        return Finding(Verdict.WARNING, "", "", NOTHING)
    broken = [name for name, p in case.policy.named_parameters().items() if p.grad is not None and not _finite(p)]
    return Finding(
        Verdict.WRONG,
        f"{len(broken)} tensors not finite",
        "all finite",
        f"no update has a finite gradient in {case.precision}: {_some(broken)}. Use --mixed_precision bf16 or no, and "
        "look at the reward's gradient.",
    )


def _finite(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.isfinite().all())


def _silent(case: Case, named: Mapping[str, nn.Parameter], silent: Sequence[str]) -> Finding:
    """Tensors without a gradient: what the network never asks is harmless, what it asks is cut off."""
    if len(silent) == len(named):
        return Finding(Verdict.WRONG, advice=NONE)
    stir(case.policy)  # an adapter's A has no say while its B is next to nothing
    cut = [name for name in silent[:TRIED] if _matters(case, named[name])]
    if cut:
        return Finding(
            Verdict.WRONG,
            advice=f"{len(silent)} tensors have no gradient, though the picture depends on them: {_some(cut)}. Their "
            "layers are cut out of the graph (a detach, a no_grad, a cast that is kept), and would never learn.",
        )
    return Finding(
        Verdict.WARNING,
        advice=f"{len(silent)} tensors have no gradient, and moving them changes nothing that the network says: "
        f"{_some(silent)}. They only cost memory; with LoRA, leave their layers out of --lora.targets.",
    )


@torch.no_grad()
def _matters(case: Case, parameter: nn.Parameter) -> bool:
    before, own = case.look(), parameter.detach().clone()
    parameter.add_(torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own))
    after = case.look()
    parameter.copy_(own)
    return not same(before, after)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
