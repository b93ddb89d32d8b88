"""DPOK: what it refuses, what holds it, what it costs, and that it learns. Its gradient: identities/."""

from typing import Any

import pytest
import torch

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.iteration import Update
from tastemaker.process.samplers import DDIM
from toy import Toy
from toy_runs import closeness, costs, failing, gradient, ids_of, improvement, iteration_of, plan_of, same

SMALL = {"images": 12, "updates": 2, "steps": 4, "guidance": 2.0}


def moved(policy: Toy, far: float = 0.1) -> Toy:
    random = torch.Generator().manual_seed(5)
    for p in policy.parameters():
        p.data = p.data + far * torch.randn(p.shape, generator=random, dtype=p.dtype)
    return policy


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl": -0.1}, "kl is -0.1; it must be at least 0"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
        ({"reward_weight": 0.0}, "reward_weight is 0.0; it must be positive"),
        ({"timestep_fraction": 1.5}, "timestep_fraction is 1.5; it must be above 0 and at most 1"),
        ({"inner_epochs": 0}, "inner_epochs is 0; it must be at least 1"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DPOK(**settings)


def test_a_deterministic_sampler_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"DDIM\(eta=0.0\) draws nothing at random.*--algorithm.sampler.eta 1"):
        DPOK(sampler=DDIM(0.0)).items(Toy().schedule(5))


def test_defaults_are_the_authors_for_a_single_prompt() -> None:
    """10 pictures, 5 updates of 48 transitions; their command and their parser."""
    made = DPOK()
    assert (made.images, made.updates, made.steps, made.guidance, made.iterations) == (10, 5, 50, 7.5, 10_000 // 5)
    assert (made.reward_weight, made.kl, made.clip) == (10.0, 0.01, 1e-4)
    assert (made.learning_rate, made.weight_decay, made.sampler) == (1e-5, 0.0, DDIM(1.0))
    policy = Toy()
    assert made.items(policy.schedule(50)) == 24 and plan_of(made, policy).effective_batch * 24 == 48


def updates_of(algorithm: DPOK, policy: Toy, **settings: Any) -> list[Update]:
    return list(algorithm.iteration(iteration_of(algorithm, policy, **settings)))


def test_the_base_holds_only_what_has_left_it() -> None:
    """The divergence has no gradient at the base, and one off it; nothing but it is added."""
    shared = SMALL | {"timestep_fraction": 1.0}
    for policy, off in ((Toy(), False), (moved(Toy()), True)):
        (weak, _), (strong, _) = (updates_of(DPOK(kl=kl, **shared), policy) for kl in (1e-9, 1e6))
        plain, held = weak.loss(weak.batch), strong.loss(strong.batch)
        found = (held.value - plain.value).sum()
        slope = max(float(s.abs().max()) for s in torch.autograd.grad(found, policy.parameters()))
        assert (float(held.stats["kl"].max()) > 1e-4) == off and (slope > 1.0) == off
        torch.testing.assert_close(held.value - plain.value, (1e6 - 1e-9) * held.stats["kl"], rtol=1e-9, atol=1e-9)


def test_without_kl_and_weight_it_is_ddpo() -> None:
    shared = SMALL | {
        "clip": 0.02,
        "timestep_fraction": 0.5,
        "inner_epochs": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
    }
    found = []
    for algorithm in (DPOK(kl=0.0, reward_weight=1.0, **shared), DDPO(advantage_limit=9.0, **shared)):
        it = iteration_of(algorithm, Toy(), reward=failing(lambda b: b == 3))
        found.append([gradient(it, update, algorithm) for update in algorithm.iteration(it)])
    for (ours, stats), (theirs, others) in zip(*found, strict=True):
        assert same(ours, theirs) and stats == others


def test_a_picture_without_a_score_is_left_out() -> None:
    updates = updates_of(DPOK(**SMALL), Toy(), reward=failing(lambda b: b in (0, 7)))
    assert set().union(*(ids_of(update.batch) for update in updates)) == set(range(12)) - {0, 7}


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_it_costs_what_the_plan_announces(kl: float) -> None:
    """The base is asked once an item; the one call more finds out whether drawing and learning agree."""
    algorithm = DPOK(kl=kl, timestep_fraction=0.5, inner_epochs=2, **SMALL)
    announced, took = costs(algorithm, Toy(), micro=6)
    assert took == announced._replace(forward=announced.forward + 2 * 6)
    assert announced.backward == 2 * 12 * 2 * 2
    assert announced.forward == 2 * 12 * (4 + 4 * (2 if kl else 1))


@pytest.mark.parametrize("flow", [False, True])
def test_it_learns(flow: bool) -> None:
    shared = {"images": 64, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 15, "learning_rate": 0.02}
    algorithm = DPOK(clip=0.02, kl=0.1, timestep_fraction=1.0, **shared)
    learned, control = (improvement(algorithm, closeness, flow=flow, permuted=p) for p in (False, True))
    assert learned > 1.0 and control < learned / 4


def test_a_stronger_hold_keeps_it_nearer_to_the_base() -> None:
    shared = {"images": 64, "updates": 2, "steps": 6, "guidance": 1.0, "iterations": 12, "learning_rate": 0.02}
    free, held = (improvement(DPOK(clip=0.02, kl=kl, **shared), closeness) for kl in (0.0, 300.0))
    assert 0 < held < free / 2
