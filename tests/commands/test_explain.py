"""What `tastemaker explain` says of rewards beside their own words; tests/test_cli.py has the rest."""

from __future__ import annotations

import runs
from tastemaker.rewards import DIFFERENTIABLE, TABLE
from tastemaker.rewards.facts import FACTS


def test_a_rewards_page_says_whether_it_has_a_gradient_and_lists_its_settings() -> None:
    for name in TABLE:
        page = runs.call("explain", name).out
        assert ("\nDifferentiable: for " in page) == (name in DIFFERENTIABLE), name
        assert ("\nNot differentiable: for " in page) == (name not in DIFFERENTIABLE), name
    assert "  reward.colour  [red]  a text\n      red, orange, yellow" in runs.call("explain", "colour").out
    assert "or a sum NAME:WEIGHT,NAME:WEIGHT" in runs.call("explain").out


def test_a_rewards_page_says_whose_networks_it_brings_and_on_which_terms() -> None:
    assert FACTS.keys() <= TABLE.keys()
    for name in TABLE:
        page = runs.call("explain", name).out
        for line in ("Weights", "Licence", "Install"):
            assert page.count(f"\n{line}: ") == 1, name
        assert ("\nCite: " in page) == (name in FACTS) == ("\nWeights: none to download.\n" not in page), name
        for one in FACTS[name].networks if name in FACTS else ():
            pin = f", commit {one.revision[:8]}" if one.revision else ""
            assert f"{one.name} ({one.megabytes} MB{pin})" in page
