"""ReFL: what it refuses, what it costs, from where it goes to the picture, when it is satisfied, and that it learns."""

import pytest
import torch

from tastemaker.algorithms.refl import ReFL
from tastemaker.process.samplers import DDIM
from toy import Toy
from toy_runs import closeness, costs, failing, flat, gradient, improvement, iteration_of, made, signs

SMALL = {"images": 8, "updates": 2, "steps": 6, "guidance": 2.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"first": 0.9, "last": 0.8},
            "first is 0.9 and last 0.8; they are shares of the chain, 0 <= first <= last < 1",
        ),
        ({"last": 1.0}, "first is 0.75 and last 1.0; they are shares of the chain"),
        ({"first": 30, "last": 39}, "first is 30 and last 39; they are shares of the chain"),
        ({"scale": 0.0}, "scale is 0.0; it must be positive"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReFL(**settings)


def test_defaults_are_the_authors() -> None:
    own = ReFL()
    assert (own.steps, own.guidance, own.range(40), own.sampler) == (40, 1.0, (30, 39), DDIM())
    assert (own.threshold, own.scale, own.learning_rate) == (2.0, 1e-3, 1e-5)
    assert own.differentiates and own.begin() == {} and own.epochs == 1


def test_the_step_to_the_picture_is_drawn_for_each_picture_within_the_range() -> None:
    algorithm = ReFL(**SMALL | {"images": 200, "updates": 1}, first=0.4, last=0.8)
    assert algorithm.range(6) == (2, 5) and ReFL(first=0.0, last=0.99).range(4) == (0, 3) and ReFL().range(1) == (0, 0)
    steps = []
    for index in range(2):
        it = iteration_of(algorithm, Toy(), index=index)
        course = made(next(iter(algorithm.iteration(it)))).batch.course
        assert torch.equal(course.first, course.stop) and (course.live.sum(1) == 1).all()
        assert (course.stop.bincount()[2:] > 30).all() and course.stop.min() == 2 and course.stop.max() == 5
        steps.append(course.stop)
    assert not torch.equal(*steps)


@pytest.mark.parametrize("settings", [{"first": 0.5, "last": 0.5}, {"first": 0.0, "last": 0.0}, {}, {"guidance": 1.0}])
def test_an_iteration_costs_what_the_plan_says(settings: dict[str, float]) -> None:
    """The call that goes to the picture has a graph, nothing follows it."""
    algorithm = ReFL(**SMALL | {"images": 200} | settings)
    announced, took = costs(algorithm, Toy(), micro=50, sampling=64)
    assert (took.backward, took.queries) == (announced.backward, announced.queries)
    low, high = algorithm.range(6)
    assert took == announced if low == high else abs(took.forward / announced.forward - 1) < 0.03


def test_what_is_good_enough_gives_no_gradient() -> None:
    found = {}
    for threshold in (-100.0, -3.0, 100.0):
        algorithm = ReFL(**SMALL, threshold=threshold, first=0.5, last=0.8)
        it = iteration_of(algorithm, Toy())
        slopes, stats = gradient(it, next(iter(algorithm.iteration(it))), algorithm)
        r = it.kept["rollout.reward"][:4]
        assert stats["satisfied"] == float((r >= threshold).float().mean())
        assert stats["loss"] == pytest.approx(1e-3 * float(torch.relu(threshold - r).mean()), rel=1e-5)
        found[threshold] = flat(slopes)
    assert not found[-100.0].any() and found[-3.0].any() and not torch.equal(found[-3.0], found[100.0])


def test_a_failed_score_gives_no_gradient_is_not_satisfied_and_in_no_mean() -> None:
    """Also where 0 would be good enough."""
    for threshold in (-2.0, 2.0):
        algorithm = ReFL(**SMALL, threshold=threshold, first=0.5, last=0.8)
        it = iteration_of(algorithm, Toy(), reward=failing(lambda b: b in (1, 2)))
        slopes, stats = gradient(it, next(iter(algorithm.iteration(it))), algorithm)
        r = it.kept["rollout.reward"][:4]
        assert stats["satisfied"] == float((r >= threshold).float().mean())
        assert stats["reward"] == pytest.approx(float(r.nanmean()))
        assert flat(slopes).isfinite().all() and flat(slopes).any()


@pytest.mark.parametrize(
    ("flow", "settings"),
    [
        (False, {}),
        (True, {"guidance": 2.0, "sampler": DDIM(0.0)}),
    ],
)
def test_it_learns(flow: bool, settings: dict[str, object]) -> None:
    """From -3.25, where the base is, toward 0; and not from gradients of random sign, which only make it stray."""
    shared = {"images": 32, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 10, "learning_rate": 0.025}
    algorithm = ReFL(**shared | settings)
    learned, control = (improvement(algorithm, reward, flow=flow) for reward in (closeness, signs(closeness)))
    assert learned > 1.7 and control < 0.75 * learned
