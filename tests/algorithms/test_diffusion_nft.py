"""DiffusionNFT: what it refuses, what it costs, its old weights, and that it learns."""

from __future__ import annotations

import pytest
import torch

import forward_runs as forward
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.diffusion_nft import DiffusionNFT
from toy import Toy
from toy_runs import gradient, iteration_of


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": 0}, "levels is 0; it must be at least 1"),
        ({"kl": -0.1}, "kl is -0.1; it must be at least 0"),
        ({"beta": 0.0}, "beta is 0.0; it must be positive"),
        ({"keep_most": 1.5}, "keep_most is 1.5; it is a share between 0 and 1"),
        ({"keep_most": 0.0, "ramp": 0.1}, "ramp has no effect at keep_most=0, .* leave it out, or raise keep_most"),
        ({"ramp": 0.0, "keep_most": 0.3}, "keep_most has no effect at ramp=0, .* leave it out, or raise ramp"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, object], said: str) -> None:
    forward.refuses(DiffusionNFT, settings, said)


def test_one_of_two_zeros_may_stand_alone() -> None:
    for settings in ({"keep_most": 0.0}, {"ramp": 0.0}, {"keep_most": 0.0, "ramp": 0.0}):
        assert DiffusionNFT(**settings).given == settings.keys()


def test_more_levels_than_steps_are_refused() -> None:
    forward.refuses_more_levels_than_steps(DiffusionNFT)


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_an_iteration_costs_what_the_plan_says(kl: float) -> None:
    forward.costs_what_the_plan_says(DiffusionNFT(**forward.SMALL, kl=kl))


def test_a_failed_score_is_left_out() -> None:
    forward.leaves_failed_scores_out(DiffusionNFT(**forward.SMALL))


def test_pictures_are_drawn_by_the_old_weights_which_follow_slowly() -> None:
    algorithm, policy = DiffusionNFT(**forward.SMALL, ramp=0.25, keep_most=0.4), Toy(sets=("base", "old"))
    state = algorithm.begin()
    for done, keep in enumerate((0.0, 0.25, 0.4, 0.4)):
        old = [p.clone() for p in policy._sets["old"]]
        for p in policy.parameters():
            p.data += 0.1  # away from the old weights
        it = iteration_of(algorithm, policy, index=done)
        it.state = state
        twin = Toy(sets=("base", "old"))  # whose own weights are the old ones, for an algorithm that draws by its own
        for p, kept in zip(twin.parameters(), old, strict=True):
            p.data = kept
        other = AWM(**forward.SMALL)
        wanted = [update.batch.rollout.x0 for update in other.iteration(iteration_of(other, twin, index=done))]
        for update, x0 in zip(algorithm.iteration(it), wanted, strict=True):
            assert torch.equal(update.batch.rollout.x0, x0)
            gradient(it, update, algorithm)
        for before, now, p in zip(old, policy._sets["old"], policy.parameters(), strict=True):
            torch.testing.assert_close(now, keep * before + (1 - keep) * p.detach())


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_it_learns(flow: bool) -> None:
    forward.learns(DiffusionNFT(**forward.LEARNS, beta=0.3), flow=flow, gain=1.5)
