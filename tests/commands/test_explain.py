"""What `tastemaker explain` says of rewards beside their own words; tests/test_cli.py has the rest."""

from __future__ import annotations

import runs
from tastemaker.rewards import DIFFERENTIABLE, TABLE


def test_a_rewards_page_says_whether_it_has_a_gradient_and_lists_its_settings() -> None:
    for name in TABLE:
        page = runs.call("explain", name).out
        assert ("\nDifferentiable: for " in page) == (name in DIFFERENTIABLE), name
        assert ("\nNot differentiable: for " in page) == (name not in DIFFERENTIABLE), name
    assert "  reward.colour  [red]  a text\n      red, orange, yellow" in runs.call("explain", "colour").out
    assert "or a sum NAME:WEIGHT,NAME:WEIGHT" in runs.call("explain").out
