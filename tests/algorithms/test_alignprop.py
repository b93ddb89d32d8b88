"""AlignProp: what it refuses, what it costs, its losses, and that it learns."""

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.process.samplers import DDIM
from tastemaker.process.truncation import Fixed, Gaussian, PerStep, Truncation, Uniform
from tastemaker.prompts.prompts import Prompts
from toy import Toy
from toy_runs import apart, closeness, costs, failing, flat, gradient, improvement, iteration_of, made, signs

SMALL = {"images": 8, "updates": 2, "steps": 6, "guidance": 2.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": 0.0, "loss_form": "target"}, "scale is 0.0; it must be positive"),
        ({"coefficient": -1.0}, "coefficient is -1.0; it must be positive"),
        ({"target": 10.0}, "target has no effect with loss_form=negative: use loss_form=target"),
        (
            {"scale": 2.0, "loss_form": "one_minus"},
            "scale has no effect with loss_form=one_minus: use loss_form=target",
        ),
        ({"images": 0}, "images is 0; it must be at least 1"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AlignProp(**settings)


def test_more_live_steps_than_the_chain_has_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="k is 9, but the chain has 8 steps"):
        AlignProp(truncation=Fixed(9)).items(Toy().schedule(8))


def test_defaults_are_the_authors() -> None:
    own = AlignProp()
    assert (own.images, own.updates, own.guidance, own.steps) == (256, 2, 7.5, 50)
    assert (own.truncation, own.loss_form, own.sampler) == (Uniform(), "negative", DDIM(0.0))
    assert own.differentiates and own.begin() == {} and own.epochs == 1


@pytest.mark.parametrize(
    "rule", [Fixed(), Fixed(6), Uniform(), Uniform(0.5, 0.5), Gaussian(0.6, 0.2), PerStep()], ids=repr
)
def test_an_iteration_costs_what_the_plan_says(rule: Truncation) -> None:
    """Every picture its whole chain; how much of it has a graph, on average."""
    algorithm = AlignProp(**SMALL | {"images": 400}, truncation=rule)
    announced, took = costs(algorithm, Toy(), micro=50, sampling=64)
    assert (took.forward, took.queries) == (announced.forward, announced.queries) == (400 * 6 * 2, 400)
    settled = rule.expected(6)[0] == rule.expected(6)[1]
    assert took.backward == announced.backward if settled else abs(took.backward / announced.backward - 1) < 0.08


def test_losses() -> None:
    r = torch.tensor([-1.0, 4.0, 12.0])
    assert AlignProp(coefficient=2.0).of(r).tolist() == [2.0, -8.0, -24.0]
    assert AlignProp(coefficient=2.0, loss_form="one_minus").of(r).tolist() == [4.0, -6.0, -22.0]
    aimed = AlignProp(coefficient=0.5, loss_form="target", target=10.0, scale=3.0)
    assert aimed.of(r).tolist() == [16.5, 9.0, 3.0]


def test_it_tells_how_many_steps_were_live() -> None:
    algorithm = AlignProp(**SMALL)
    it = iteration_of(algorithm, Toy())
    update = made(next(iter(algorithm.iteration(it))))
    loss = update.loss(update.batch)
    assert torch.equal(loss.stats["live_steps"], update.batch.course.live.sum(1).float())
    assert torch.equal(loss.stats["reward"], -loss.value.detach() / algorithm.coefficient)


@pytest.mark.parametrize("form", ["negative", "target", "one_minus"])
def test_a_failed_score_gives_no_gradient_and_the_others_theirs(form: str) -> None:
    lost = {0, 2, 5}

    def silent(images: Tensor, prompts: Prompts) -> Tensor:
        value = closeness(images, prompts)
        return torch.where(torch.tensor([b in lost for b in prompts.ids]), value.detach(), value)

    algorithm, found = AlignProp(**SMALL, truncation=PerStep(), loss_form=form), []
    for reward in (failing(lambda b: b in lost), silent, closeness):
        it = iteration_of(algorithm, Toy(), reward=reward)
        slopes, stats = gradient(it, next(iter(algorithm.iteration(it))), algorithm)
        found.append(slopes)
        if reward is not closeness and reward is not silent:
            assert stats["reward"] == pytest.approx(float(it.kept["rollout.reward"].nanmean()))
    absent = {name: slope * (4 / 2) for name, slope in found[1].items()}  # the mean is that of two of four pictures
    assert apart(found[0], absent) < 1e-12 and apart(found[0], found[2]) > 0.01
    assert flat(found[0]).isfinite().all()


@pytest.mark.parametrize(
    ("flow", "settings"),
    [
        (False, {}),
        (True, {}),
        (False, {"truncation": Gaussian(), "loss_form": "target", "target": 0.0}),
        (True, {"truncation": PerStep()}),
    ],
)
def test_it_learns(flow: bool, settings: dict[str, object]) -> None:
    """From -3.25, where the base is, toward 0; and not from gradients of random sign, which only make it stray."""
    shared = {"images": 32, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 10, "learning_rate": 0.025}
    algorithm = AlignProp(**shared | settings)
    learned, control = (improvement(algorithm, reward, flow=flow) for reward in (closeness, signs(closeness)))
    assert learned > 1.7 and control < 0.75 * learned
