"""Flow-GRPO: what it refuses, its groups, its variants, and that it learns. Its gradient: identities/."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.flow_grpo import FlowGRPO
from tastemaker.credit import leave_one_out, per_group
from tastemaker.iteration import Iteration, Silence, Update
from tastemaker.process.flow_samplers import DanceSDE, FlowSDE
from tastemaker.process.samplers import DDIM, Window
from tastemaker.prompts.prompts import Prompts
from tastemaker.training.trainer import descend
from toy import Toy
from toy_runs import Scorer, closeness, costs, failing, gradient, ids_of, improvement, iteration_of, optimizer_of

SMALL = {"images": 16, "per_prompt": 4, "updates": 2, "steps": 5, "guidance": 2.0}


def updates_of(algorithm: FlowGRPO, *, policy: Toy | None = None, **settings: Any) -> tuple[Iteration, list[Update]]:
    it = iteration_of(algorithm, policy or Toy(flow=True), **settings)
    return it, list(algorithm.iteration(it))


def flat_in(*groups: int, reward: Scorer = closeness) -> Scorer:
    """The reward, but the same for all pictures of these groups of four."""

    def scored(images: Tensor, prompts: Prompts) -> Tensor:
        return torch.where(torch.tensor([b // 4 in groups for b in prompts.ids]), 0.7, reward(images, prompts))

    return scored


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"per_prompt": 1},
            "per_prompt is 1, but an advantage is measured within a group .*: use per_prompt=2",
        ),
        ({"kl": -0.1}, "kl is -0.1; it must be at least 0"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
        ({"advantage": "local"}, "advantage is 'local'; it is one of global, group, none"),
        ({"baseline": "median"}, "baseline is 'median'; it is one of mean, leave_one_out"),
        ({"advantage_limit": 0.0}, "advantage_limit is 0.0; it must be positive"),
        ({"timestep_fraction": 0.0}, "timestep_fraction is 0.0; it must be above 0"),
        ({"inner_epochs": 0}, "inner_epochs is 0; it must be at least 1"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FlowGRPO(**settings)


@pytest.mark.parametrize("same_noise", [False, True])
def test_a_deterministic_chain_is_refused_before_any_work(same_noise: bool) -> None:
    with pytest.raises(ValueError, match=r"DDIM\(eta=0.0\) draws nothing at random.*--algorithm.sampler.eta 1"):
        FlowGRPO(sampler=DDIM(0.0), same_noise=same_noise).items(Toy(flow=True).schedule(5))


def test_defaults_are_the_authors() -> None:
    made = FlowGRPO()
    assert (made.images, made.per_prompt, made.updates, made.steps, made.guidance) == (48 * 24, 24, 2, 10, 4.5)
    assert (made.clip, made.kl, made.advantage_limit, made.learning_rate) == (1e-4, 0.04 / 10, 5.0, 3e-4)
    assert (made.advantage, made.baseline) == ("global", "mean")
    assert made.sampler == FlowSDE(0.7) and made.items(Toy(flow=True).schedule(10)) == 10


# ---- groups


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"advantage": "group"}, lambda r, g: per_group(r, g)),
        ({"advantage": "none", "baseline": "leave_one_out"}, leave_one_out),
        ({"advantage": "group", "baseline": "leave_one_out"}, lambda r, g: per_group(r, g) * 4 / 3),
        ({}, lambda r, g: leave_one_out(r, g) * 3 / 4 / (r.double().std(correction=0) + 1e-4)),
    ],
)
def test_advantages_are_measured_inside_the_group_and_cut(settings: dict[str, Any], wanted: Any) -> None:
    it, made = updates_of(FlowGRPO(advantage_limit=1.2, **SMALL | settings))
    A = wanted(it.kept["rollout.reward"], torch.tensor(it.prompts.groups)).float()
    found = torch.cat([update.batch.credit for update in made])[::5]
    torch.testing.assert_close(found, A.clamp(-1.2, 1.2))
    assert A.abs().max() > 1.2


def test_groups_of_equal_rewards_are_left_out_and_counted() -> None:
    """Two of four are equal, and of one all scores but one failed, which leaves nothing to compare."""
    it, made = updates_of(FlowGRPO(**SMALL), reward=failing(lambda b: b in (4, 5, 6, 12), flat_in(0, 2)))
    assert [sorted(set(ids_of(update.batch))) for update in made] == [[], [13, 14, 15]]
    stats = made[1].loss(made[1].batch).stats
    assert stats["zero_std"].tolist() == [3.0] * len(made[1].batch)
    optimizer = optimizer_of(FlowGRPO(), it.policy)
    assert descend(it, optimizer, made[0], Silence()) == {"items": 0.0, "skipped": 1.0}
    assert descend(it, optimizer, made[1], Silence())["zero_std"] == 3.0
    _, made = updates_of(FlowGRPO(**SMALL))
    assert made[0].loss(made[0].batch).stats["zero_std"].max() == 0


def test_the_pictures_of_a_group_may_begin_at_the_same_noise() -> None:
    for same_noise in (False, True):
        it, _ = updates_of(FlowGRPO(same_noise=same_noise, **SMALL))
        start = it.kept["rollout.path"][:, 0].view(4, 4, 4)
        assert bool((start == start[:, :1]).all()) == same_noise and not torch.equal(start[0], start[1])


def test_every_group_has_a_window_of_its_own() -> None:
    algorithm = FlowGRPO(sampler=Window(FlowSDE(), 2, each="group"), **SMALL)
    it, made = updates_of(algorithm)
    assert it.plan.items == 2 and [len(update.batch) for update in made] == [16, 16]
    steps: dict[int, set[int]] = {}
    for update in made:
        for b, i in zip(ids_of(update.batch), update.batch.i.tolist(), strict=True):
            steps.setdefault(b // 4, set()).add(i)
        assert update.loss(update.batch).stats["log_ratio"].max() < 1e-12  # the step under which it was drawn
    assert all(len(own) == 2 and max(own) - min(own) == 1 for own in steps.values())
    assert len({min(own) for own in steps.values()}) > 1


# ---- the ratio, and the base


@pytest.mark.parametrize("sampler", [FlowSDE(), DanceSDE(), Window(FlowSDE(), 2, each="group")], ids=str)
def test_recentred_ratios_begin_at_1_with_the_score_functions_gradient_times_std(sampler: Any) -> None:
    shared = SMALL | {"updates": 1, "kl": 0.0, "sampler": sampler}
    it, (update,) = updates_of(FlowGRPO(recentred=True, **shared))
    assert update.loss(update.batch).stats["log_ratio"].max() < 1e-12
    _, (plain,) = updates_of(FlowGRPO(**shared), policy=it.policy)
    inside = getattr(sampler, "inside", sampler)
    stds = inside.stds(it.policy.schedule(5))[plain.batch.i]
    wanted = torch.autograd.grad((stds * plain.loss(plain.batch).value).sum(), it.policy.parameters())
    found = torch.autograd.grad(update.loss(update.batch).value.sum(), it.policy.parameters())
    assert any(float(slope.abs().max()) > 1e-3 for slope in found)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_in_half_the_digits_a_recentred_ratio_is_1_within_rounding() -> None:
    _, made = updates_of(FlowGRPO(recentred=True, **SMALL), policy=Toy(flow=True, dtype=torch.float32))
    assert made[0].loss(made[0].batch).stats["log_ratio"].max() < 2e-6


def test_the_log_ratio_of_the_first_update_is_exactly_0() -> None:
    _, made = updates_of(FlowGRPO(**SMALL), policy=Toy(flow=True, dtype=torch.float32))
    assert made[0].loss(made[0].batch.take(torch.arange(8))).stats["log_ratio"].max() == 0.0


def test_the_base_has_no_pull_on_itself_and_one_on_what_has_left() -> None:
    algorithm = FlowGRPO(kl=0.5, **SMALL)
    for far in (0.0, 0.1):
        policy = Toy(flow=True)
        for p in policy.parameters():
            p.data = p.data + far
        _, (update, _) = updates_of(algorithm, policy=policy)
        _, (free, _) = updates_of(FlowGRPO(kl=0.0, **SMALL), policy=policy)
        held, plain = update.loss(update.batch), free.loss(free.batch)
        assert "kl" not in plain.stats and (float(held.stats["kl"].max()) > 1e-4) == bool(far)
        slopes = torch.autograd.grad((held.value - plain.value).sum(), policy.parameters())
        assert any(float(slope.abs().max()) > 1e-3 for slope in slopes) == bool(far)


def test_it_costs_what_the_plan_announces() -> None:
    """The base is asked once an item; the one call more finds out whether drawing and learning agree."""
    announced, took = costs(FlowGRPO(sampler=Window(FlowSDE(), 2, each="group"), **SMALL), Toy(flow=True), micro=8)
    assert took == announced._replace(forward=announced.forward + 2 * 8)
    assert announced.forward == 2 * 16 * (5 + 2 + 2) and announced.backward == 2 * 16 * 2


# ---- learning


LEARNING = {"images": 64, "per_prompt": 8, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 15}


@pytest.mark.parametrize(
    ("flow", "settings"),
    [
        (True, {}),
        (False, {"baseline": "leave_one_out", "advantage": "none"}),
        (True, {"sampler": Window(FlowSDE(), 3, each="group"), "advantage": "global"}),
        (True, {"sampler": DanceSDE(0.7), "same_noise": True, "recentred": True, "clip": 0.005}),
    ],
    ids=["flow", "eps", "windows", "dance"],
)
def test_it_learns(flow: bool, settings: dict[str, Any]) -> None:
    algorithm = FlowGRPO(**{"clip": 0.02, "kl": 0.01, "learning_rate": 0.02} | LEARNING | settings)
    learned, control = (improvement(algorithm, closeness, flow=flow, permuted=p) for p in (False, True))
    assert learned > 0.8 and control < learned / 4


def test_an_update_of_half_empty_groups_is_the_mean_of_what_is_left() -> None:
    it, made = updates_of(FlowGRPO(**SMALL), reward=flat_in(3))
    _, stats = gradient(it, made[1], FlowGRPO())
    assert stats["items"] == 4 * 5 and stats["zero_std"] == 1.0
