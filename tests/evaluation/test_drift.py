"""Drift from the base on the toy policy, whose prediction can be moved by a known vector."""

import pytest
import torch

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.flow_grpo import FlowGRPO
from tastemaker.evaluation.drift import drift, places
from tastemaker.iteration import Iteration
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM, Window
from toy import Toy
from toy_runs import gradient, iteration_of, plan_of

SMALL = {"images": 12, "per_prompt": 2, "updates": 1, "steps": 5, "guidance": 2.0}
ALGORITHMS = [
    DDPO(clip=0.2, **SMALL),
    FlowGRPO(clip=0.2, sampler=Window(DDIM(), 2, each="group"), **SMALL),
    AWM(levels=2, **SMALL),
    DRaFT(**SMALL),
]
MOVED = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)


def rolled(algorithm: Algorithm, policy: Toy) -> Iteration:
    """An iteration that has drawn its pictures; its one update was made with a learning rate of nothing."""
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy))
    before = [p.detach().clone() for p in policy.parameters()]
    for update in algorithm.iteration(it):
        gradient(it, update, algorithm)
    for p, value in zip(policy.parameters(), before, strict=True):
        p.data.copy_(value)
    return it


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: type(one).__name__)
def test_it_is_zero_at_the_base_and_a_shift_is_its_square(algorithm: Algorithm) -> None:
    policy = Toy(sets=algorithm.sets)
    it = rolled(algorithm, policy)
    assert set(drift(it, algorithm.training_sampler, 1.0).values()) == {0.0}
    policy.parameters()[3].data += MOVED
    found = drift(it, algorithm.training_sampler, 0.3)
    assert found["drift"] == pytest.approx(float(MOVED.square().mean()), rel=1e-6)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_the_kl_is_that_of_two_gaussians(share: float) -> None:
    """Of DDIM: x[i+1] = alpha' (x - sigma eps) / alpha + sqrt(sigma'^2 - std^2) eps + std z."""
    algorithm, policy = DDPO(clip=0.2, **SMALL), Toy()
    it = rolled(algorithm, policy)
    policy.parameters()[3].data += MOVED
    schedule = policy.schedule(5)
    alpha, sigma, std = schedule.alpha, schedule.sigma, algorithm.sampler.stds(schedule)
    by_eps = (sigma[1:] ** 2 - std**2).clamp(min=0).sqrt() - alpha[1:] * sigma[:-1] / alpha[:-1]
    each = by_eps**2 * MOVED.square().mean() / (2 * std**2)
    steps = it.kept["rollout.steps"][0]
    chosen = places(it.key, 12, len(steps), share)
    expected = torch.stack([each[steps[number % len(steps)]] for number in chosen]).mean()
    assert drift(it, algorithm.training_sampler, share)["kl"] == pytest.approx(float(expected), rel=1e-6)


def test_only_random_steps_have_a_kl_and_what_was_not_drawn_has_neither() -> None:
    algorithm, policy = AWM(levels=2, **SMALL), Toy(sets=("base", "old"))
    assert set(drift(rolled(algorithm, policy), algorithm.training_sampler, 0.5)) == {"drift"}
    given = DiffusionDPO(images=4, updates=1, steps=5, pairs="given")
    assert drift(iteration_of(given, policy, plan_of(given, policy)), given.training_sampler, 0.5) == {}


def test_a_flow_is_compared_by_its_velocity() -> None:
    algorithm, policy = AWM(levels=2, **SMALL), Toy(sets=("base", "old"), flow=True)
    it = rolled(algorithm, policy)
    policy.parameters()[3].data += MOVED
    assert drift(it, algorithm.training_sampler, 1.0)["drift"] == pytest.approx(float(MOVED.square().mean()), rel=1e-6)


def test_it_asks_the_base_of_the_share_and_no_more() -> None:
    algorithm, policy = DDPO(clip=0.2, **SMALL), Toy()
    it = rolled(algorithm, policy)
    before = policy.rows.forward
    drift(it, algorithm.training_sampler, 0.1)
    assert policy.rows.forward - before == 2 * 2 * int(0.1 * 12 * it.kept["rollout.steps"].shape[1])  # guidance, both


@pytest.mark.parametrize(("pictures", "each", "share"), [(32, 10, 0.02), (8, 50, 0.02), (3, 200, 0.02), (7, 6, 1.0)])
def test_places_are_spread_evenly_along_the_chain(pictures: int, each: int, share: float) -> None:
    firsts = set()
    for iteration in range(20):
        found = places(Key(0, iteration), pictures, each, share)
        assert len(set(found)) == len(found) == int(share * pictures * each) and 0 <= min(found)
        assert max(found) < pictures * each
        steps = sorted(number % each for number in found)
        gaps = [(after - before) % each for before, after in zip(steps, [*steps[1:], steps[0] + each], strict=True)]
        assert len(found) >= each or max(gaps) - min(gaps) <= 1
        firsts.add(found[0])
    assert len(firsts) > 5
