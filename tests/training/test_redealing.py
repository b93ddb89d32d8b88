"""What processes kept of an iteration, dealt anew to another number of them."""

from __future__ import annotations

import torch

from tastemaker.plan import Plan
from tastemaker.training.redealing import redealt


def plan(devices: int) -> Plan:
    return Plan(1, 8, 2, 1, 1, 5, 1.0, 5, 5, 3, devices=devices)


def kept(ids: list[int], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"rollout.reward": torch.tensor(ids) + 0.5, "renew": torch.tensor(True), **more}


def test_every_picture_goes_to_who_has_it_now() -> None:
    counted = {"queries": 3.0, "rows_forward": 5.0, "s_total": 2.0}
    slower = counted | {"s_total": 7.0}
    watched = {"watch.ids": torch.tensor([6, 3]), "watch.pictures": torch.tensor([[6], [3]])}
    parts = {"rollout.parts.plain": torch.tensor([2.0, 3.0, 6.0, 7.0])}
    two = [  # groups of two pictures: 0 and 2 are the first one's, 1 and 3 the second one's
        {"kept": kept([0, 1, 4, 5]), "record": {"updates": [{"loss": 1.0}], "held_out": {}, "counters": counted}},
        {"kept": kept([2, 3, 6, 7], **watched, **parts), "record": {"updates": [], "held_out": {}, "counters": slower}},
    ]
    alone = redealt(two, plan(1), 0)
    assert alone["kept"]["rollout.reward"].tolist() == [k + 0.5 for k in range(8)]
    assert alone["kept"]["renew"] and not alone["kept"]["renew"].dim()
    assert alone["kept"]["watch.ids"].tolist() == [3, 6] and alone["kept"]["watch.pictures"].tolist() == [[3], [6]]
    plain = alone["kept"]["rollout.parts.plain"]  # which the first one's rewards never had
    assert plain[[2, 3, 6, 7]].tolist() == [2, 3, 6, 7] and plain[[0, 1, 4, 5]].isnan().all()
    assert alone["record"]["counters"] == {"queries": 6, "rows_forward": 10, "s_total": 7}
    assert alone["record"]["updates"] == [{"loss": 1.0}]

    four = [redealt(two, plan(4), rank) for rank in range(4)]
    assert [one["kept"]["rollout.reward"].tolist() for one in four] == [[k + 0.5, k + 1.5] for k in (0, 2, 4, 6)]
    assert [one["kept"]["watch.ids"].tolist() for one in four] == [[], [3], [], [6]]
    assert [one["record"]["counters"]["queries"] for one in four] == [6, 0, 0, 0]


def test_a_device_that_had_nothing_gives_nothing() -> None:
    record = {"updates": [], "held_out": {}, "counters": {}}
    three = [
        {"kept": kept([0, 1]), "record": record},
        {"kept": kept([2, 3]), "record": record},
        {"kept": {"rollout.reward": torch.empty(0), "renew": torch.tensor(False)}, "record": record},
    ]
    small = Plan(1, 4, 2, 1, 1, 5, 1.0, 5, 5, 3)
    assert redealt(three, small, 0)["kept"]["rollout.reward"].tolist() == [0.5, 1.5, 2.5, 3.5]
