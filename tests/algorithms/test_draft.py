"""DRaFT: what it refuses, what it costs, what each of its settings does, and that it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tastemaker.algorithms.draft import DRaFT
from tastemaker.iteration import Silence
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import ContractError, Scores
from tastemaker.training.trainer import descend
from toy import Toy
from toy_runs import (
    apart,
    closeness,
    costs,
    failing,
    gradient,
    improvement,
    iteration_of,
    made,
    metrics,
    optimizer_of,
    plan_of,
    run_of,
    same,
    signs,
)

SMALL = {"images": 8, "updates": 2, "steps": 6, "guidance": 2.0}


def first(algorithm: DRaFT, reward: Any = closeness, index: int = 0, **calls: int) -> dict[str, Tensor]:
    """The gradient of the first update."""
    policy = Toy()
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, **calls), reward=reward, index=index)
    return gradient(it, next(iter(algorithm.iteration(it))), algorithm)[0]


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"copies": -1}, "copies is -1; it must be at least 0"),
        ({"kl": -0.1}, "kl is -0.1; it must be at least 0"),
        ({"diversity": -0.1}, "diversity is -0.1; it must be at least 0"),
        ({"k": 3, "copies": 2}, "k is 3 and copies 2: copies are made of the last step alone, k=1"),
        ({"diversity": 0.1}, "diversity is 0.1, but per_prompt is 1: .* Use per_prompt=2 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DRaFT(**settings)


def test_more_live_steps_than_the_chain_has_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="k is 9, but the chain has 8 steps: lower k, or raise steps"):
        DRaFT(k=9).items(Toy().schedule(8))
    assert DRaFT(k=8).items(Toy().schedule(8)) == 1
    assert DRaFT(k=1, copies=3).items(Toy().schedule(8)) == 3


def test_defaults_are_nemo_aligners_without_its_kl() -> None:
    own = DRaFT()
    assert (own.k, own.kl, own.copies, own.guidance, own.steps, own.sampler) == (1, 0.0, 0, 7.5, 50, DDIM(0.0))
    assert own.differentiates and own.given == frozenset() and own.begin() == {} and own.epochs == 1


# ---- what it costs


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"k": 3},
        {"k": 6},
        {"kl": 0.1},
        {"k": 3, "kl": 0.1},
        {"copies": 2},
        {"copies": 2, "kl": 0.1, "diversity": 0.1, "per_prompt": 2},
        {"k": 2, "diversity": 0.1, "per_prompt": 2},
    ],
    ids=str,
)
def test_an_iteration_costs_what_the_plan_says(settings: dict[str, float], guidance: float) -> None:
    announced, took = costs(DRaFT(**SMALL | {"guidance": guidance} | settings), Toy(), micro=4, sampling=3)
    assert took == announced


def test_a_batch_is_drawn_when_its_turn_comes_and_of_as_many_items_as_announced() -> None:
    algorithm = DRaFT(**SMALL, copies=3)
    it = iteration_of(algorithm, Toy())
    updates = list(algorithm.iteration(it))
    assert it.policy.rows.forward == 0 and [len(update.batch) for update in updates] == [12, 12]
    drawn = made(updates[1]).batch
    assert len(drawn) == 12 and drawn.starts.prompts.ids == tuple(b for b in range(4, 8) for _ in range(3))
    assert len(drawn.starts.x.flatten(1).unique(dim=0)) == 12


# ---- the reward's dropout


class Judge:
    """A network whose score moves with its dropout."""

    name = "judge"

    def __init__(self, share: float = 0.5) -> None:
        random = torch.Generator().manual_seed(0)
        layers = [nn.Linear(4, 32), nn.Dropout(share), nn.Linear(32, 1)]
        self.network = nn.Sequential(*layers).double().requires_grad_(False).eval()
        for p in self.network.parameters():
            p.copy_(torch.randn(p.shape, generator=random))
        self.seen: list[bool] = []

    def __call__(self, images: Tensor, prompts: Prompts) -> Tensor:
        self.seen.append(self.network[1].training)
        return self.network(images.flatten(1)).squeeze(1)


def test_dropout_is_refused_where_there_is_none() -> None:
    dropping = DRaFT(reward_dropout=True)
    for reward in (closeness, nn.Sequential(nn.Linear(4, 1))):
        with pytest.raises(
            ValueError, match="reward_dropout has no effect on the reward `.*`, .*dropout.*: leave it out"
        ):
            dropping.check_reward(Recorded(reward if reward is closeness else WithNetwork(reward)))
    dropping.check_reward(Recorded(Judge()))
    DRaFT().check_reward(Recorded(closeness))


class WithNetwork:
    name = "plain"

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, images: Tensor, prompts: Prompts) -> Tensor:
        return self.network(images.flatten(1)).squeeze(1)


def test_dropout_is_drawn_by_the_key_and_on_only_while_the_reward_is_differentiated() -> None:
    dropping, judge, other = DRaFT(**SMALL, reward_dropout=True), Judge(), Judge()
    state = torch.get_rng_state()
    once, twice = first(dropping, judge), first(dropping, other)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's stream is touched
    assert same(once, twice)
    assert judge.seen == [True] and not judge.network[1].training and not judge.network.training
    plain = Judge()
    assert apart(once, first(DRaFT(**SMALL), plain)) > 0.1 and plain.seen == [False]
    assert same(first(dropping, Judge(0.0)), first(DRaFT(**SMALL), Judge(0.0)))
    assert apart(first(dropping, Judge(), index=1), first(dropping, Judge(), index=2)) > 0.1


def test_dropout_ends_with_an_error_too() -> None:
    class Failing(Judge):
        def __call__(self, images: Tensor, prompts: Prompts) -> Tensor:
            raise ContractError("no")

    judge = Failing()
    with pytest.raises(ContractError, match="no"):
        first(DRaFT(**SMALL, reward_dropout=True), judge)
    assert not judge.network[1].training


# ---- scores that fail


def weighed(lost: set[int]) -> Any:
    """The reward, its lost scores multiplied by 0."""

    def scored(images: Tensor, prompts: Prompts) -> Tensor:
        return closeness(images, prompts) * torch.tensor([float(b not in lost) for b in prompts.ids])

    return scored


@pytest.mark.parametrize("settings", [{}, {"k": 3}, {"copies": 2}], ids=str)
def test_a_failed_score_gives_no_gradient_and_the_others_theirs(settings: dict[str, float]) -> None:
    algorithm = DRaFT(**SMALL, **settings)
    lost = {0, 2, 5}
    found = first(algorithm, failing(lambda b: b in lost), micro=3)
    absent = {name: slope * (4 / 2) for name, slope in first(algorithm, weighed(lost), micro=3).items()}
    assert apart(found, absent) < 1e-12  # the mean is that of two of four pictures
    assert apart(found, first(algorithm, micro=3)) > 0.01


def test_where_all_scores_failed_nothing_else_is_learned_either() -> None:
    """Their distance to the base is none of a picture that counts, and weights do not decay without a step."""
    policy, algorithm = Toy(), DRaFT(**SMALL | {"weight_decay": 0.1}, k=2, kl=0.1)
    before = {name: p.detach().clone() for name, p in policy.named_parameters().items()}
    it = iteration_of(algorithm, policy, reward=failing(lambda b: True))
    told = descend(it, optimizer_of(algorithm, policy), made(next(iter(algorithm.iteration(it)))), Silence())
    assert told == {"items": 0.0, "skipped": 1.0}
    assert same(before, {name: p.detach() for name, p in policy.named_parameters().items()})


def test_failed_scores_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    algorithm = DRaFT(**SMALL, iterations=1)
    assert run_of(tmp_path, algorithm, Toy(), reward=failing(lambda b: b in (0, 1, 2, 3, 6)), max_failed=0.7).train()
    (row,) = metrics(tmp_path)
    kept, updates = row["reward"], row["updates"]
    assert (kept["failed"], row["images"], row["queries"]) == (5, 8, 2 * 8)  # both updates' calls are filled up
    assert "reward" not in updates[0] and updates[1]["reward"] == pytest.approx(kept["mean"])


def test_a_reward_that_raises_is_asked_once_more_and_then_has_no_score(tmp_path: Path) -> None:
    calls: list[int] = []

    def hiccup(images: Tensor, prompts: Prompts) -> Tensor:
        calls.append(len(images))
        if len(calls) in (1, 3, 4):
            raise RuntimeError("no answer")
        return closeness(images, prompts)

    run = run_of(tmp_path, DRaFT(**SMALL | {"updates": 1}, iterations=1), Toy(), reward=hiccup, micro=4)
    assert run.train()
    (row,) = metrics(tmp_path)
    assert calls == [4, 4, 4, 4]  # the first once more; the second twice in vain
    assert row["reward"]["failed"] == 4 and row["updates"][0]["grad_norm"] > 0


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_too_many_failed_scores_stop_the_run_with_a_checkpoint(share: float, tmp_path: Path) -> None:
    def reward(images: Tensor, prompts: Prompts) -> Scores:
        scores = failing(lambda b: b < 6)(images, prompts)
        return scores._replace(notes=("the judge is asleep",) * len(prompts))

    run = run_of(tmp_path, DRaFT(**SMALL, iterations=2), Toy(), reward=reward, max_failed=share)
    if share == 0.75:
        assert run.train()
        return
    with pytest.raises(
        ValueError, match=r"6 of 8 scores of iteration 0 failed.*The last one said: the judge is asleep"
    ):
        run.train()
    assert run.checkpoints.latest().path.name == "checkpoint-1"
    assert [row["iteration"] for row in metrics(tmp_path)] == [0]
    again = run_of(tmp_path, DRaFT(**SMALL, iterations=2), Toy())
    assert again.train(again.checkpoints.latest())
    assert [row["reward"]["failed"] for row in metrics(tmp_path)] == [6, 0]


# ---- learning


def test_the_distance_to_the_base_holds_the_weights_back() -> None:
    """After the same run with a large weight the predictions are nearer to the base's."""
    far = {}
    for kl in (0.0, 30.0):
        algorithm = DRaFT(**SMALL | {"images": 32}, kl=kl, iterations=10, learning_rate=0.02)
        policy = Toy(spread=0.0)
        for index in range(algorithm.iterations):
            it = iteration_of(algorithm, policy, index=index)
            for update in algorithm.iteration(it):
                descend(it, optimizer_of(algorithm, policy), made(update), Silence())
        probe = DRaFT(**SMALL | {"images": 32}, kl=1.0)
        it = iteration_of(probe, policy, index=99)
        batch = made(next(iter(probe.iteration(it)))).batch
        far[kl] = float(probe.loss(it, batch).stats["kl"].mean())
    assert 0 < far[30.0] < far[0.0] / 3


@pytest.mark.parametrize(
    ("flow", "settings"),
    [
        (False, {}),
        (True, {}),
        (False, {"k": 3, "kl": 0.01, "guidance": 2.0}),
        (True, {"copies": 2}),
    ],
)
def test_it_learns(flow: bool, settings: dict[str, object]) -> None:
    """From -3.25, where the base is, toward 0; and not from gradients of random sign, which only make it stray."""
    shared = {"images": 32, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 10, "learning_rate": 0.025}
    algorithm = DRaFT(**shared | settings)
    learned, control = (improvement(algorithm, reward, flow=flow) for reward in (closeness, signs(closeness)))
    assert learned > 1.7 and control < 0.75 * learned
