"""Grad-copy: what it refuses, what it costs, where it moves which velocities, and that it learns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.grad_copy import GradCopy, Targets
from tastemaker.iteration import Iteration
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from toy import Toy
from toy_runs import (
    Scorer,
    apart,
    closeness,
    costs,
    failing,
    gradient,
    improvement,
    iteration_of,
    made,
    metrics,
    plan_of,
    run_of,
    same,
    signs,
)

SMALL = {"images": 8, "updates": 2, "steps": 6, "guidance": 2.0}


def targets(
    algorithm: GradCopy, reward: Scorer = closeness, index: int = 0, sampling: int = 3
) -> tuple[Iteration, Targets]:
    """Those of the first update."""
    policy = Toy()
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, sampling=sampling), reward=reward, index=index)
    return it, made(next(iter(algorithm.iteration(it)))).batch


def slopes(algorithm: GradCopy, reward: Scorer = closeness) -> tuple[dict[str, Tensor], dict[str, float]]:
    it = iteration_of(algorithm, Toy(), reward=reward)
    return gradient(it, next(iter(algorithm.iteration(it))), algorithm)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chosen": -1}, "chosen is -1; it must be at least 0"),
        ({"scale": 0.0}, "scale is 0.0; it must be positive"),
        ({"guidance": -1.0}, "guidance is -1.0; it must be at least 0"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GradCopy(**settings)


def test_more_steps_than_the_chain_has_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="chosen is 9, but the chain has 8 steps: lower it, or raise steps"):
        GradCopy(chosen=9).items(Toy().schedule(8))
    assert [GradCopy(chosen=n).items(Toy().schedule(8)) for n in (0, 3, 8)] == [8, 3, 8]


def test_defaults() -> None:
    own = GradCopy()
    assert (own.images, own.updates, own.steps, own.guidance, own.learning_rate) == (64, 4, 40, 1.0, 3e-5)
    assert (own.chosen, own.scale, own.sampler) == (0, 0.1, DDIM(0.0))
    assert own.differentiates and own.begin() == {} and own.epochs == 1


@pytest.mark.parametrize(
    "settings", [{}, {"chosen": 2}, {"guidance": 1.0}, {"chosen": 5, "sampler": DDIM(0.7)}], ids=str
)
def test_an_iteration_costs_what_the_plan_says(settings: dict[str, object]) -> None:
    """No picture more than its whole chain without a graph, each item one call with one."""
    announced, took = costs(GradCopy(**SMALL | settings), Toy(), micro=4, sampling=3)
    assert took == announced


def test_the_steps_are_drawn_for_each_picture() -> None:
    found = []
    for index in range(2):
        _, batch = targets(GradCopy(**SMALL | {"images": 60}, chosen=2), index=index)
        rows = batch.step.view(30, 2)
        assert batch.sample.tolist() == [b for b in range(30) for _ in range(2)]
        assert (rows[:, 1] > rows[:, 0]).all() and set(rows.flatten().tolist()) == set(range(6))
        assert len(rows.unique(dim=0)) > 8
        found.append(rows)
    assert not torch.equal(*found)
    _, batch = targets(GradCopy(**SMALL))
    assert batch.step.tolist() == [*range(6)] * 4


def test_velocities_are_moved_by_the_scale_on_average_whatever_the_rewards_unit() -> None:
    """At the weights that drew, the loss is the square of the move: scale^2, and its gradient grows with the scale."""

    def large(images: Tensor, prompts: Prompts) -> Tensor:
        return 1000 * closeness(images, prompts) + 7

    some, stats = slopes(GradCopy(**SMALL, scale=0.1))
    assert stats["loss"] == pytest.approx(0.01, rel=1e-9)
    assert apart(slopes(GradCopy(**SMALL, scale=0.1), large)[0], some) < 1e-9
    assert apart(slopes(GradCopy(**SMALL, scale=0.3))[0], {name: 3 * slope for name, slope in some.items()}) < 1e-9


def test_a_flat_reward_moves_nothing() -> None:
    found, stats = slopes(GradCopy(**SMALL), lambda images, prompts: 0 * images.mean((1, 2, 3)))
    assert stats["loss"] < 1e-20 and all(slope.abs().max() < 1e-10 for slope in found.values())


def test_how_pictures_are_drawn_and_judged_does_not_change_the_targets() -> None:
    found = [targets(GradCopy(**SMALL, chosen=3), sampling=sampling)[1] for sampling in (1, 3, 8)]
    for other in found[1:]:
        for name in ("x", "velocity", "reward"):
            torch.testing.assert_close(getattr(other, name), getattr(found[0], name), rtol=1e-9, atol=1e-12)
        assert torch.equal(other.step, found[0].step) and torch.equal(other.sample, found[0].sample)
        assert not other.x.requires_grad and not other.velocity.requires_grad


@pytest.mark.parametrize("chosen", [0, 2])
def test_a_picture_without_a_score_is_left_out(chosen: int) -> None:
    """The others are moved as far as if it had never been drawn."""
    algorithm = GradCopy(**SMALL, chosen=chosen, scale=0.5)
    it, batch = targets(algorithm, failing(lambda b: b in (1, 2)))
    _, whole = targets(algorithm)
    assert len(batch) == 2 * (chosen or 6) and set(batch.sample.tolist()) == {0, 3}
    kept = torch.isin(whole.sample, torch.tensor([0, 3]))
    assert torch.equal(batch.x, whole.x[kept]) and torch.equal(batch.reward, whole.reward[kept])
    loss = algorithm.loss(it, batch)
    assert float(loss.value.detach().mean()) == pytest.approx(0.25, rel=1e-9)
    everyone = torch.cat([algorithm.loss(it, whole).value.detach()])[kept]
    torch.testing.assert_close(loss.value.detach() / loss.value.detach().sum(), everyone / everyone.sum())


def test_an_update_without_any_score_changes_no_weight(tmp_path: Path) -> None:
    policy, start = Toy(), Toy().state()
    assert run_of(
        tmp_path, GradCopy(**SMALL, iterations=1), policy, reward=failing(lambda b: True), max_failed=1
    ).train()
    assert same(policy.state(), start)
    (row,) = metrics(tmp_path)
    assert row["updates"] == [{"items": 0.0, "skipped": 1.0}] * 2 and row["reward"]["failed"] == 8


def test_too_many_failed_scores_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = run_of(tmp_path, GradCopy(**SMALL, iterations=2), Toy(), reward=failing(lambda b: b < 6))
    with pytest.raises(ValueError, match="6 of 8 scores of iteration 0 failed, more than max_failed=0.5 allows"):
        run.train()
    assert run.checkpoints.latest().path.name == "checkpoint-1"


@pytest.mark.parametrize(
    ("flow", "settings"),
    [
        (False, {}),
        (True, {"chosen": 3, "guidance": 2.0}),
    ],
)
def test_it_learns(flow: bool, settings: dict[str, object]) -> None:
    """From -3.25, where the base is, toward 0; and not from gradients of random sign, which only make it stray."""
    shared = {"images": 32, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 10, "learning_rate": 0.025}
    algorithm = GradCopy(**shared | settings)
    learned, control = (improvement(algorithm, reward, flow=flow) for reward in (closeness, signs(closeness)))
    assert learned > 1.7 and control < 0.75 * learned
