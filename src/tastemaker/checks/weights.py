"""Weights that are exchanged for others and back: the base, and the sets that the algorithm keeps."""

from __future__ import annotations

from contextlib import suppress

import torch

from tastemaker.checks.case import Case, same, stir
from tastemaker.checks.finding import Finding, Verdict
from tastemaker.policy import controls
from tastemaker.process.prediction import Prediction

BOUND = "bit for bit"


class Interruption(Exception):
    """Whatever may be raised while weights are exchanged."""


def exchanged(case: Case) -> Finding:
    """`base` is the model without its adapter, the others what was copied into them; and the tuned ones come back."""
    policy, base = case.policy, case.untrained
    stir(policy)
    if case.run.lora is not None:
        with controls.bare(policy):
            base = case.look()
    if same(case.look(), base):
        why = "moving every trainable tensor changes nothing that the network says: what is trained is not in use."
        return Finding(Verdict.WRONG, "no effect", BOUND, why)
    wanted = {"base": base}
    for name in dict.fromkeys((*case.algorithm.sets, *(("ema",) if case.run.ema is not None else ()))):
        if name != "base":
            policy.blend(name, 0.0)
            wanted[name] = case.look()
    stir(policy)
    for name, prediction in wanted.items():
        if problem := _problem(case, name, prediction):
            return Finding(Verdict.WRONG, name, BOUND, problem)
    return Finding(Verdict.OK, ", ".join(wanted), BOUND)


def _problem(case: Case, name: str, wanted: Prediction) -> str:
    """What is wrong with a set; nothing where nothing is."""
    policy, tuned = case.policy, case.look()
    with policy.using(name):
        inside = case.look()
    if not same(inside, wanted):
        off = float((inside.x0 - wanted.x0).abs().max())
        what = "the model without what was trained" if name == "base" else "the weights that were copied into it"
        return f"`{name}` is not {what}: predictions are off by {off:.1e}. What is held to it would be held to another."
    if not torch.is_grad_enabled():
        return f"gradients are off after `{name}` was used: nothing would be learned behind it."
    if not same(case.look(), tuned):
        return f"after `{name}` was used the tuned weights are not back: every step behind it would learn from others."
    with suppress(Interruption), policy.using(name):
        raise Interruption
    if not same(case.look(), tuned):
        return f"after an error while `{name}` was in use the tuned weights are not back."
    return ""
