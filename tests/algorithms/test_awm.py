"""AWM: what it refuses, what it costs, its clip, and that it learns."""

from __future__ import annotations

import pytest

import forward_runs as forward
from tastemaker.algorithms.awm import AWM
from toy import Toy
from toy_runs import gradient, iteration_of


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": 0}, "levels is 0; it must be at least 1"),
        ({"kl": -0.1}, "kl is -0.1; it must be at least 0"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
        ({"space": "v"}, "space is 'v'; it is one of x0, eps, velocity"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, object], said: str) -> None:
    forward.refuses(AWM, settings, said)


def test_more_levels_than_steps_are_refused() -> None:
    forward.refuses_more_levels_than_steps(AWM)
    forward.refuses_the_error_of_eps_on_a_flow(AWM)


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_an_iteration_costs_what_the_plan_says(kl: float) -> None:
    forward.costs_what_the_plan_says(AWM(**forward.SMALL, kl=kl))


def test_a_failed_score_is_left_out() -> None:
    forward.leaves_failed_scores_out(AWM(**forward.SMALL))


def test_the_ratio_is_one_before_the_first_update_and_is_clipped_after_it() -> None:
    algorithm = AWM(**forward.SMALL | {"learning_rate": 0.1}, clip=1e-6, kl=0.0)
    it = iteration_of(algorithm, Toy(sets=("base", "old")))
    stats = [gradient(it, update, algorithm)[1] for update in algorithm.iteration(it)]
    assert stats[0]["log_ratio"] == 0.0 and stats[0]["clip_fraction"] == 0.0
    assert stats[1]["log_ratio"] > 0.0 and stats[1]["clip_fraction"] == 1.0
    it = iteration_of(algorithm, it.policy, index=1)  # the old weights are now those that draw
    assert gradient(it, next(iter(algorithm.iteration(it))), algorithm)[1]["log_ratio"] == 0.0


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_it_learns(flow: bool) -> None:
    forward.learns(AWM(**forward.LEARNS | {"iterations": 10}), flow=flow, gain=1.2)
