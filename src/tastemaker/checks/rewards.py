"""The reward on pictures of this model: its contract, and its gradient where the algorithm asks for one."""

from __future__ import annotations

from tastemaker.checks.case import Case
from tastemaker.checks.finding import Finding, Verdict, idle
from tastemaker.rewards import gradient
from tastemaker.rewards.reward import check


def reward(case: Case) -> Finding:
    """One finite number a picture, whatever the order; and a slope to the picture that is finite and not zero."""
    judge, images = case.reward, case.pictures
    bound = "finite numbers"
    if not images.isfinite().all():
        return idle("the pictures hold NaN: see decoding.")
    try:
        check(judge, images, case.prompts)
        if case.algorithm.differentiates:
            bound += ", gradient"
            gradient.needs_gradient(judge, images, case.prompts, algorithm=case.name, others=())
    except ValueError as error:
        return Finding(Verdict.WRONG, judge.name, bound, f"{error}")
    return Finding(Verdict.OK, judge.name, bound)
