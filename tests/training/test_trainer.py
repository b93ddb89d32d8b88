"""The trainer: one optimizer step whatever the calls it is made of, and when it gives up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.credit import whiten
from tastemaker.iteration import Iteration, Loss, Silence, Update
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM
from tastemaker.rollout import collect
from tastemaker.training.checkpoint import Checkpoints, Cursor
from tastemaker.training.trainer import cut, descend
from toy import Toy
from toy_runs import apart, closeness, failing, gradient, iteration_of, metrics, optimizer_of, plan_of, run_of, same

SMALL = DDPO(images=12, per_prompt=2, updates=2, steps=4, guidance=2.0, iterations=3, learning_rate=0.01, clip=0.2)


class Strained(Toy):
    """Runs out of memory in calls of more than `most` items that need a gradient."""

    def __init__(self, most: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.most, self.calls = most, [0]

    def predict(self, x, i, schedule, conditioning, guidance) -> Prediction:
        if torch.is_grad_enabled():
            self.calls.append(len(x))
            if len(x) > self.most:
                raise torch.OutOfMemoryError("out of memory")
        return super().predict(x, i, schedule, conditioning, guidance)


class Spoiled(Toy):
    """Gives NaN in the learning calls with these numbers."""

    def __init__(self, spoils: Callable[[int], bool]) -> None:
        super().__init__()
        self.spoils, self.calls = spoils, 0

    def predict(self, x, i, schedule, conditioning, guidance) -> Prediction:
        found = super().predict(x, i, schedule, conditioning, guidance)
        self.calls += torch.is_grad_enabled()
        spoiled = torch.is_grad_enabled() and self.spoils(self.calls)
        return Prediction(found.x0 * float("nan"), found.eps) if spoiled else found


def first(policy: Toy, *, micro: int = 8) -> tuple[Iteration, Update]:
    it = iteration_of(SMALL, policy, plan_of(SMALL, policy, micro=micro))
    return it, next(iter(SMALL.iteration(it)))


def weights(policy: Toy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state().items()}


# ---- the calls of one update


@pytest.mark.parametrize(("rows", "own"), [(4, [4, 4, 2]), (10, [10]), (16, [10]), (3, [3, 3, 3, 1]), (1, [1] * 10)])
def test_calls_have_equal_rows_and_every_item_counts_once(rows: int, own: list[int]) -> None:
    class Numbers:
        def __init__(self, values: Tensor) -> None:
            self.values = values

        def __len__(self) -> int:
            return len(self.values)

        def take(self, rows: Tensor) -> "Numbers":
            return Numbers(self.values[rows])

    parts = list(cut(Numbers(torch.arange(10)), rows))
    assert [count for _, count in parts] == own and all(len(part) == rows for part, _ in parts)
    assert torch.cat([part.values[:count] for part, count in parts]).tolist() == list(range(10))
    assert list(cut(Numbers(torch.arange(0)), rows)) == []


@pytest.mark.parametrize("micro", [1, 5, 24, 100])
def test_the_gradient_is_that_of_the_mean_over_all_items(micro: int) -> None:
    it, update = first(Toy(), micro=micro)
    loss = update.loss(update.batch)
    names = it.policy.named_parameters()
    slopes = torch.autograd.grad(loss.value.mean(), names.values())
    found, stats = gradient(it, update, SMALL)
    assert apart(found, dict(zip(names, slopes, strict=True))) < 1e-12
    assert stats["items"] == len(update.batch) == 24
    assert stats["loss"] == pytest.approx(float(loss.value.detach().mean()), abs=1e-12)
    assert stats["grad_norm"] == pytest.approx(float(torch.cat([s.flatten() for s in slopes]).norm()))


def test_statistics_are_means_and_largest_over_the_items() -> None:
    it, update = first(Toy(), micro=7)
    old = update.batch.rollout.old
    old[0, 0] += 0.5
    old[1, 1] -= 0.1
    _, stats = gradient(it, update, SMALL)
    assert stats["log_ratio"] == pytest.approx(0.5)
    assert stats["approx_kl"] == pytest.approx((0.5**2 + 0.1**2) / 2 / 24)
    assert stats["clip_fraction"] == pytest.approx(1 / 24)


# ---- out of memory


def test_out_of_memory_halves_the_calls_and_gives_the_same_weights(tmp_path: Path) -> None:
    """The same bits as calls of that size from the start: each update begins again with nothing of the failed one."""
    strained, plain = Strained(most=4), Toy()
    with pytest.warns(RuntimeWarning, match=r"out of memory with \d+ items a call: trying [84]") as said:
        assert run_of(tmp_path / "a", SMALL, strained, micro=16, sampling=4).train()
    assert len(said) == 2 * 3 * 2  # 16 -> 8 -> 4 in each of six updates
    assert run_of(tmp_path / "b", SMALL, plain, micro=4).train()
    assert same(strained.state(), plain.state())


def test_memory_that_runs_out_in_a_later_call_leaves_nothing_behind() -> None:
    class Later(Strained):
        def predict(self, x, i, schedule, conditioning, guidance) -> Prediction:
            self.most = 16 if len(self.calls) < 2 else 8
            return super().predict(x, i, schedule, conditioning, guidance)

    (it, update), (other, wanted) = first(Later(0), micro=16), first(Toy(), micro=8)
    with pytest.warns(RuntimeWarning, match="trying 8"):
        found, _ = gradient(it, update, SMALL)
    assert same(found, gradient(other, wanted, SMALL)[0])
    assert it.policy.calls == [0, 16, 16, 8, 8, 8]


def test_memory_for_not_even_one_item_is_an_error_that_names_the_way_out() -> None:
    it, update = first(Strained(most=0), micro=2)
    before = weights(it.policy)
    with pytest.warns(RuntimeWarning, match="trying 1"), pytest.raises(ValueError, match="--gradient_checkpointing"):
        descend(it, optimizer_of(SMALL, it.policy), update, Silence())
    assert same(before, it.policy.state())


# ---- what an algorithm hands over


@pytest.mark.parametrize("shape", ["scalar", "column", "mean of one call"])
def test_a_loss_that_is_not_one_number_an_item_is_refused(shape: str) -> None:
    it, update = first(Toy())

    def reduced(part: Any) -> Loss:
        value = update.loss(part).value
        return Loss({"scalar": value.mean(), "column": value[:, None]}.get(shape, value.mean()[None]), {})

    with pytest.raises(ValueError, match=r"a loss of 8 items must be \[8\], one number each; found \["):
        descend(it, optimizer_of(SMALL, it.policy), Update(update.batch, reduced), Silence())


def test_an_update_of_no_items_is_passed_over() -> None:
    it, update = first(Toy())
    before, optimizer = weights(it.policy), optimizer_of(SMALL, it.policy)
    nothing = update.batch.take(torch.arange(0))
    assert descend(it, optimizer, Update(nothing, update.loss), Silence()) == {"items": 0.0, "skipped": 1.0}
    assert same(before, it.policy.state()) and (optimizer.updates, optimizer.consecutive_skips) == (0, 0)


# ---- gradients that are not finite


def test_a_gradient_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    """Update 2 of 6 has a bad call: its step is left out, its row says so, and all others are made."""
    policy = Spoiled(lambda call: call == 5)  # 24 items an update in calls of 8
    run = run_of(tmp_path, SMALL, policy)
    seen = []
    run.record.update = lambda *args, keep=run.record.update: seen.append(weights(policy)) or keep(*args)
    assert run.train()
    rows = [update for row in metrics(tmp_path) for update in row["updates"]]
    assert [row["skipped"] for row in rows] == [0, 1, 0, 0, 0, 0]
    assert rows[1]["grad_norm"] is None  # JSON has no NaN
    assert same(seen[0], seen[1]) and not same(seen[1], seen[2])
    assert run.optimizer.updates == 6 and run.optimizer.skipped == 1
    assert all(tensor.isfinite().all() for tensor in policy.state().values())


def test_five_in_a_row_end_the_run_with_the_last_good_weights(tmp_path: Path) -> None:
    policy = Spoiled(lambda call: call > 3)
    run, seen = run_of(tmp_path, SMALL, policy), []
    run.record.update = lambda *args, keep=run.record.update: seen.append(weights(policy)) or keep(*args)
    with pytest.raises(ValueError, match=r"no finite gradient in 5 updates in a row \(iteration 2\).*--learning_rate"):
        run.train()
    assert len(seen) == 6 and same(seen[0], policy.state())
    latest = run.checkpoints.latest()
    assert latest is not None and latest.data["optimizer"]["counts"]["consecutive_skips"] == 5
    assert same(seen[0], {name.removeprefix("policy/"): t for name, t in latest.tensors.items() if "policy/" in name})
    straight, again = Toy(), Toy()
    assert run_of(tmp_path / "straight", SMALL, straight).train()  # nothing happened to its gradients
    more = run_of(tmp_path, SMALL, again)
    assert latest.cursor == (2, 2) and more.train(latest) and same(seen[0], again.state())  # the rest is recorded
    assert (
        [len(row["updates"]) for row in metrics(tmp_path)]
        == [2, 2, 2]
        == [len(row["updates"]) for row in metrics(tmp_path / "straight")]
    )


# ---- failed scores


def test_failed_scores_leave_the_batch_as_if_their_pictures_were_absent() -> None:
    """The gradient is that of the mean over the others, whose credit is whitened among themselves."""
    lost = (1, 2, 9)
    policy = Toy()
    it = iteration_of(SMALL, policy, plan_of(SMALL, policy, micro=5), reward=failing(lambda b: b in lost))
    update = next(iter(SMALL.iteration(it)))
    whole = collect(iteration_of(SMALL, Toy()), DDIM())
    present = whole.take(torch.tensor([b for b in range(12) if b not in lost]))
    present = present.credited(whiten(present.reward))
    early = present.take(torch.tensor([row for row, b in enumerate(present.prompts.ids) if b < 6]))
    wanted = Update(early.transitions(), update.loss)
    assert len(update.batch) == len(wanted.batch) == 4 * 4
    found = gradient(it, update, SMALL)[0]
    other = iteration_of(SMALL, Toy())
    wanted = Update(wanted.batch, lambda pairs: SMALL.loss(other, DDIM(), pairs))
    assert apart(found, gradient(other, wanted, SMALL)[0]) < 1e-12


def test_too_many_failed_scores_end_the_run_with_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """The reward breaks in iteration 1; mended, the resumed run is the one that never broke."""
    straight, broken, mended = Toy(), Toy(), Toy()
    assert run_of(tmp_path / "straight", SMALL, straight, max_failed=0.25).train()
    scored = []

    def breaks(images: Tensor, prompts: Any) -> Tensor:
        scored.append(len(images))
        if sum(scored) > 12 + 8:
            raise RuntimeError("the judge is out")
        return closeness(images, prompts)

    run = run_of(tmp_path / "broken", SMALL, broken, reward=breaks, max_failed=0.25)
    with pytest.raises(
        ValueError, match=r"4 of 12 scores of iteration 1 failed, more than max_failed=0.25.*judge is out"
    ):
        run.train()
    again = run_of(tmp_path / "broken", SMALL, mended, max_failed=0.25)
    start = again.checkpoints.latest()
    assert start is not None and start.cursor == Cursor(1, 0)
    assert again.train(start)
    assert same(straight.state(), mended.state())
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "broken")


def test_a_judge_that_has_a_hiccup_costs_no_picture(tmp_path: Path) -> None:
    """Its second answer counts, and both calls count as asked."""
    calls: list[int] = []

    def hiccups(images: Tensor, prompts: Any) -> Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise TimeoutError("no answer")
        return closeness(images, prompts)

    plain, policy = Toy(), Toy()
    assert run_of(tmp_path / "plain", SMALL, plain).train()
    assert run_of(tmp_path / "run", SMALL, policy, reward=hiccups, max_failed=0.0).train()
    assert same(plain.state(), policy.state()) and calls[:3] == [8, 4, 4]
    rows = metrics(tmp_path / "run")
    assert [row["queries"] for row in rows] == [12 + 4, 12, 12] and not any(row["reward"]["failed"] for row in rows)
    assert metrics(tmp_path / "run", "queries") == metrics(tmp_path / "plain", "queries")


@pytest.mark.parametrize("inside", [False, True], ids=["between", "inside"])
def test_what_was_loaded_is_let_go_though_the_caller_holds_it(inside: bool, tmp_path: Path) -> None:
    run = run_of(tmp_path, SMALL, Toy(), save=1)
    if inside:
        keep = run.record.update
        run.record.update = lambda *given: keep(*given) or run.world.request_stop()  # type: ignore[func-returns-value,method-assign]
    assert run.train() is not inside
    place = tmp_path / "checkpoints" / ("checkpoint-0-1" if inside else "checkpoint-1")
    start, left = Checkpoints.open(place), []

    def scored(images: Tensor, prompts: Any) -> Tensor:
        left.append(len(start.tensors) + sum(len(one) for one in start.per_rank))
        return closeness(images, prompts)

    assert start.tensors and bool(start.per_rank) is inside
    assert run_of(tmp_path, SMALL, Toy(), reward=scored).train(start) and set(left) == {0}


def test_as_many_as_are_allowed_may_fail(tmp_path: Path) -> None:
    run = run_of(tmp_path, SMALL, Toy(), reward=failing(lambda b: b in (0, 5, 11)), max_failed=0.25)
    assert run.train()
    rows = metrics(tmp_path)
    assert [row["reward"]["failed"] for row in rows] == [3] * 3
    assert [[update["items"] for update in row["updates"]] for row in rows] == [[16.0, 20.0]] * 3
    assert all(row["reward"]["parts"]["half"] == pytest.approx(row["reward"]["mean"] / 2) for row in rows)
