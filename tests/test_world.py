"""Ranks in step: alone, in this process; and two gloo processes, started once for all cases (world_ranks.py)."""

import json
from typing import Any

import pytest
import torch

import world_ranks
from tastemaker.world import Stop, World
from two_ranks import left_by
from world_ranks import BIG, Update, parameters


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each case returned on rank 0 and on rank 1."""
    folder = left_by(world_ranks.__file__, tmp_path_factory, seconds=60)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


Ranks = list[dict[str, Any]]


def test_two_ranks_count_together(ranks: Ranks) -> None:
    assert [rank["numbers"] for rank in ranks] == [[r, 2, 21, 10, 2 * BIG**2] for r in range(2)]


def test_rows_are_gathered_by_id_and_given_back(ranks: Ranks) -> None:
    order = [0, 3, 7, BIG - 1, BIG]  # in fp32 the last two are one
    total = [sum(2 * other for other in order if other <= sample) for sample in order]
    for rank, ids in zip(ranks, ([BIG, 3, BIG - 1], [7, 0]), strict=True):
        found = rank["ragged"]
        assert found["whole"] == [2 * sample for sample in order]
        assert found["real"] == [sample / 7 for sample in order]
        assert found["dtypes"] == ["torch.int64", "torch.float64", "torch.bool"]
        assert found["own"] == [total[order.index(sample)] for sample in ids]
        assert found["dtype"] == "torch.int64"
    assert [rank["empty_share"] for rank in ranks] == [[2], [0]]


def test_gradients_are_added_and_missing_ones_are_zeros(ranks: Ranks) -> None:
    wanted = [[[3.0] * 3] * 2, [k / 3 for k in range(4)], [0.0] * 5, torch.arange(8.0).view(1, 2, 2, 2).tolist()]
    assert [rank["gradients"] for rank in ranks] == [wanted, wanted]
    for rank in ranks:
        assert (
            rank["other_weights"]
            == "RuntimeError: ranks train different weights: rank 0: 10, rank 1: 15 numbers of them."
        )


def test_only_equally_many_updates_are_made(ranks: Ranks) -> None:
    assert [rank["equal_updates"] for rank in ranks] == [[3, 0], [3, 2]]
    for rank in ranks:
        message, made = rank["unequal_updates"]
        assert message.startswith("RuntimeError: only ranks [1] have one more update, ranks [0] have none.")
        assert made == 2
        assert rank["out_of_step"] == "RuntimeError: ranks are out of step: rank 0: sum, rank 1: barrier."


def test_all_stop_when_one_is_asked(ranks: Ranks) -> None:
    stopped = "Stop: the run was asked to stop."
    (first, waited), (second, calls) = (rank["stop_in_a_rollout"] for rank in ranks)
    assert first == second == stopped
    assert calls == 3
    assert waited < 300  # it looked, long before the end of its rollout
    for rank in ranks:
        assert rank["stop_before_a_collective"] == stopped
        assert rank["stop_at_an_update"] == [stopped, 2]
        assert rank["stop_after_the_last_update"] == ["cursor of rank 0", 2, stopped]
        assert rank["afterwards"] == 2


def test_rank_0_must_have_a_text(ranks: Ranks) -> None:
    assert all(rank["no_text"] == "ValueError: broadcast_text needs a text on rank 0, but got None." for rank in ranks)


def test_alone_everything_is_its_own() -> None:
    world = World.here()
    assert (world.rank, world.size, world.sum(3), world.maximum(4), world.broadcast_text("a")) == (0, 1, 3, 4, "a")
    world.barrier()
    world.close()


def test_alone_too_rows_go_in_the_order_of_their_ids() -> None:
    """So that a sum over everyone, or a history, is the same on any number of devices."""
    found = World().over_all(lambda r: r.cumsum(0), torch.tensor([1.0, 10.0, 100.0]), ids=[9, BIG, 2])
    assert found.tolist() == [101, 111, 100]
    with pytest.raises(ValueError, match="one result a row, 2, but the function gave 1"):
        World().over_all(lambda r: r[:1], torch.ones(2), ids=[0, 1])
    with pytest.raises(AssertionError, match="same id"):
        World().over_all(lambda r: r, torch.ones(2), ids=[1, 1])


def test_alone_too_a_missing_gradient_becomes_zeros() -> None:
    """Else an optimizer would leave the weight alone on one device and decay it on two."""
    weights = parameters()
    weights[0].grad = torch.ones(2, 3)
    World().add_gradients(weights)
    assert [float(weight.grad.sum()) for weight in weights if weight.grad is not None] == [6, 0, 0, 0]


def test_alone_a_request_stops_the_next_poll_or_collective_once() -> None:
    world = World()
    world.poll()
    for place in (world.poll, lambda: world.sum(1), lambda: next(world.lockstep(iter([Update(range(1))])))):
        world.request_stop()
        with world.uninterrupted():
            world.poll()
        world.barrier()
        with pytest.raises(Stop):
            place()
        world.poll()
    world.request_stop()
    assert list(world.lockstep(iter([]))) == []
    with pytest.raises(Stop):
        world.poll()
