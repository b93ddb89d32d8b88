"""What the tests of all algorithms of the forward process ask."""

from __future__ import annotations

from typing import Any

import pytest

from tastemaker.algorithms.algorithm import Algorithm
from toy import Toy
from toy_runs import closeness, costs, failing, gradient, improvement, iteration_of

SMALL: dict[str, Any] = {"images": 8, "per_prompt": 2, "updates": 2, "steps": 6, "guidance": 2.0, "levels": 3}
LEARNS: dict[str, Any] = {"images": 32, "per_prompt": 1, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 25}
LEARNS |= {"levels": 4, "learning_rate": 0.02}


def refuses(kind: type[Algorithm], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**settings)


def refuses_more_levels_than_steps(kind: type[Algorithm]) -> None:
    with pytest.raises(ValueError, match="levels is 7, but the chain has 6 steps: lower it, or raise steps"):
        kind(**SMALL | {"levels": 7}).items(Toy().schedule(6))


def refuses_the_error_of_eps_on_a_flow(kind: type[Algorithm]) -> None:
    with pytest.raises(ValueError, match="space is eps, but the chain begins at pure noise.*: use space=velocity"):
        kind(**SMALL, space="eps").items(Toy(flow=True).schedule(6))


def costs_what_the_plan_says(algorithm: Algorithm, micro: int = 12) -> None:
    announced, took = costs(algorithm, Toy(sets=algorithm.sets), micro=micro, sampling=8)
    assert took == announced


def leaves_failed_scores_out(algorithm: Algorithm) -> None:
    """No item of theirs is in the batch, and they are in no mean."""
    lost = {0, 5}
    it, learned = iteration_of(algorithm, Toy(sets=algorithm.sets), reward=failing(lambda b: b in lost)), set()
    for update in algorithm.iteration(it):
        assert update.batch.credit.isfinite().all()
        assert gradient(it, update, algorithm)[1]["grad_norm"] > 0
        learned |= {update.batch.rollout.prompts.ids[row] for row in update.batch.sample.tolist()}
    assert learned == set(range(8)) - lost


def learns(algorithm: Algorithm, *, flow: bool, gain: float) -> None:
    """From -3.25, where the base is, toward 0; with permuted rewards it does not."""
    learned = improvement(algorithm, closeness, flow=flow)
    control = improvement(algorithm, closeness, flow=flow, permuted=True)
    assert learned > gain and control < gain / 2
