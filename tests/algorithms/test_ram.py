"""RAM: what it refuses, what it costs, and that it learns as far as its strength lets it."""

from __future__ import annotations

import pytest

import forward_runs as forward
from tastemaker.algorithms.ram import RAM
from toy_runs import closeness, improvement


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": 0}, "levels is 0; it must be at least 1"),
        ({"strength": 0.0}, "strength is 0.0; it must be positive"),
        ({"advantage_limit": 0.0}, "advantage_limit is 0.0; it must be positive"),
        ({"space": "v"}, "space is 'v'; it is one of x0, eps, velocity"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, object], said: str) -> None:
    forward.refuses(RAM, settings, said)


def test_more_levels_than_steps_are_refused() -> None:
    forward.refuses_more_levels_than_steps(RAM)
    forward.refuses_the_error_of_eps_on_a_flow(RAM)


def test_an_iteration_costs_what_the_plan_says() -> None:
    forward.costs_what_the_plan_says(RAM(**forward.SMALL))


def test_a_failed_score_is_left_out() -> None:
    forward.leaves_failed_scores_out(RAM(**forward.SMALL))


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_it_learns(flow: bool) -> None:
    forward.learns(RAM(**forward.LEARNS), flow=flow, gain=0.5)


def test_a_larger_strength_goes_further() -> None:
    weak, strong = (improvement(RAM(**forward.LEARNS, strength=s), closeness) for s in (0.25, 1.0))
    assert 0 < weak < 0.7 * strong
