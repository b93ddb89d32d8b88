"""DRTune: what it refuses, what it costs, which steps are active, and that it learns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from tastemaker.algorithms.drtune import DRTune
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from toy import Toy
from toy_runs import apart, closeness, costs, failing, flat, gradient, improvement, iteration_of, made, signs

SMALL = {"images": 8, "updates": 2, "steps": 6, "guidance": 2.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"active": 0}, "active is 0; it must be at least 1"),
        ({"early": 0}, "early is 0; it must be at least 1"),
        ({"updates": 0}, "updates is 0; it must be at least 1"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DRTune(**settings)


@pytest.mark.parametrize("name", ["active", "early"])
def test_more_steps_than_the_chain_has_are_refused_before_any_work(name: str) -> None:
    algorithm = DRTune(**{"active": 2, "early": 2, name: 7})
    with pytest.raises(ValueError, match=f"{name} is 7, but the chain has 6 steps: lower it, or raise steps"):
        algorithm.items(Toy().schedule(6))
    assert algorithm.calls(range(6)).depth >= 1  # asked for before that


def test_defaults() -> None:
    own = DRTune()
    assert (own.active, own.early, own.guidance, own.steps, own.sampler) == (5, 1, 7.5, 50, DDIM(0.0))
    assert own.differentiates and own.begin() == {} and own.epochs == 1


@pytest.mark.parametrize(
    ("steps", "active", "early"), [(6, 2, 1), (6, 3, 5), (7, 3, 2), (6, 6, 1), (6, 1, 6), (5, 4, 5)]
)
def test_active_steps_are_evenly_spread_up_to_where_the_chain_stops(steps: int, active: int, early: int) -> None:
    algorithm = DRTune(**SMALL | {"images": 300, "updates": 1, "steps": steps}, active=active, early=early)
    it = iteration_of(algorithm, Toy())
    course = made(next(iter(algorithm.iteration(it)))).batch.course
    assert set(course.stop.tolist()) == set(range(steps - early, steps))
    begins = set()
    for live, stop in zip(course.live, course.stop.tolist(), strict=True):
        own = live.nonzero().flatten().tolist()
        assert 1 <= len(own) <= active and own[-1] <= stop
        assert {b - a for a, b in zip(own, own[1:], strict=False)} <= {steps // active}
        if len(own) < active and own != [stop]:
            assert own[-1] + steps // active > stop  # as many as there is room for
        begins.add(own[0])
    assert set(range(steps - (steps // active) * (active - 1))) <= begins


@pytest.mark.parametrize(("active", "early"), [(2, 1), (6, 1), (1, 1), (3, 5), (1, 6)])
def test_an_iteration_costs_what_the_plan_says(active: int, early: int) -> None:
    algorithm = DRTune(**SMALL | {"images": 400}, active=active, early=early)
    announced, took = costs(algorithm, Toy(), micro=50, sampling=64)
    assert took.queries == announced.queries == 400
    if early == 1:
        assert took == announced
    assert abs(took.forward / announced.forward - 1) < 0.08 and abs(took.backward / announced.backward - 1) < 0.08


def test_a_failed_score_gives_no_gradient_and_the_others_theirs() -> None:
    lost = {0, 2, 5}

    def weighed(images: Tensor, prompts: Prompts) -> Tensor:
        return closeness(images, prompts) * torch.tensor([float(b not in lost) for b in prompts.ids])

    algorithm, found = DRTune(**SMALL, active=2, early=3), []
    for reward in (failing(lambda b: b in lost), weighed, closeness):
        it = iteration_of(algorithm, Toy(), reward=reward)
        found.append(gradient(it, next(iter(algorithm.iteration(it))), algorithm)[0])
    absent = {name: slope * (4 / 2) for name, slope in found[1].items()}  # the mean is that of two of four pictures
    assert apart(found[0], absent) < 1e-12 and apart(found[0], found[2]) > 0.01


def test_pure_noise_at_the_first_step_is_no_obstacle_to_a_model_that_predicts_v(tmp_path: Path) -> None:
    """Zero terminal SNR: alpha is 0 there, so x0 cannot be told from eps."""
    noisy = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = tiny.save(tmp_path, prediction_type="v_prediction", scheduler=noisy)
    policy = load(str(folder), lora=LoRA(rank=2))
    algorithm = DRTune(images=2, steps=3, active=3)
    assert policy.schedule(3).alpha[0] == 0
    it = iteration_of(algorithm, policy, reward=lambda images, prompts: images.mean((1, 2, 3)))
    slopes, _ = gradient(it, next(iter(algorithm.iteration(it))), algorithm)
    assert flat(slopes).isfinite().all() and flat(slopes).any()


@pytest.mark.parametrize(
    ("flow", "settings"),
    [
        (False, {"active": 3}),
        (True, {"active": 2, "early": 3, "guidance": 2.0}),
    ],
)
def test_it_learns(flow: bool, settings: dict[str, object]) -> None:
    """From -3.25, where the base is, toward 0; and not from gradients of random sign, which only make it stray."""
    shared = {"images": 32, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 10, "learning_rate": 0.025}
    algorithm = DRTune(**shared | settings)
    learned, control = (improvement(algorithm, reward, flow=flow) for reward in (closeness, signs(closeness)))
    assert learned > 1.7 and control < 0.75 * learned
