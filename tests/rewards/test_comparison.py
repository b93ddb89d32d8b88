"""Scores of an iteration beside each other: against the formulas written out, and on the way to the algorithms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import Recorded, Sum, named
from tastemaker.rewards.comparison import Comparison, Rule
from tastemaker.rewards.reward import Scores
from tastemaker.rollout import collect
from toy import Toy
from toy_runs import closeness, iteration_of, plan_of

N, GROUPS = 12, torch.arange(3).repeat_interleave(4)
SCORES = torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1.0, 0.01])


def worth(*rules: Rule, standardise: str | None = None, s: Tensor = SCORES, groups: Tensor = GROUPS) -> Tensor:
    return Comparison(tuple("abc"[: len(rules)]), rules, standardise).worth(s, groups)


def z(g: np.ndarray[Any, Any], measured: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    """The formula of one set."""
    by = g if measured is None else measured
    found: np.ndarray[Any, Any] = (g - g.mean()) / (by.std() + 1e-4 * np.sqrt((by**2).mean()))
    return found


@pytest.mark.parametrize("within", ["group", "iteration"])
def test_standardised_terms_are_the_formula(within: str) -> None:
    rules = (Rule(0.5), Rule(2.0, clip=(-0.01, None)), Rule(3.0, at_least=0.2))
    s = torch.cat([SCORES, SCORES[:, :1]], 1)
    a, b = SCORES.numpy().T
    expected = np.zeros(N)
    for rows in np.split(np.arange(N), 3 if within == "group" else 1):
        missing = np.minimum(a[rows] - 0.2, 0)
        expected[rows] = 0.5 * z(a[rows]) + 2 * z(np.maximum(b[rows], -0.01)) + 3 * z(missing, a[rows])
    torch.testing.assert_close(worth(*rules, standardise=within, s=s), torch.tensor(expected).float())


def test_a_term_counts_alike_whatever_its_scale_and_origin() -> None:
    rules, shifted = (Rule(1.0), Rule(1.0)), SCORES * torch.tensor([1.0, 5000.0])
    expected = worth(*rules, standardise="group")
    torch.testing.assert_close(worth(*rules, standardise="group", s=shifted), expected)
    far = worth(*rules, standardise="group", s=SCORES + torch.tensor([3.0, 0.0]))  # the rms is a guard, no more
    assert float((far - expected).abs().max()) < 1e-3
    plain = worth(*rules)
    apart = [float(torch.corrcoef(torch.stack([by, SCORES[:, 1].float()]))[0, 1]) for by in (plain, expected)]
    assert apart[0] < 0.2 and apart[1] > 0.5  # in the plain sum it is drowned


def test_equal_scores_say_exactly_nothing() -> None:
    same = torch.stack([torch.full((N,), 0.1), SCORES[:, 1]], 1)
    alone = worth(Rule(), standardise="group", s=same[:, 1:])
    assert torch.equal(worth(Rule(7.0), Rule(), standardise="group", s=same), alone)
    assert worth(Rule(), standardise="group", s=torch.zeros(N, 1)).tolist() == [0.0] * N
    assert worth(Rule(at_least=-9.0), standardise="group", s=SCORES[:, :1]).tolist() == [0.0] * N  # all hold
    noise = 0.3 + 1e-8 * SCORES[:, :1]  # rounding is not blown up to a score
    assert float(worth(Rule(), standardise="group", s=noise).abs().max()) < 1e-2
    assert worth(Rule(), standardise="group", s=SCORES[:1, :1], groups=GROUPS[:1]).tolist() == [0.0]


@pytest.mark.parametrize("rules", [(Rule(0.5), Rule(2.0)), (Rule(0.5, floor=0.0), Rule(at_least=0.001))])
@pytest.mark.parametrize("within", ["group", "iteration", None])
def test_a_failed_score_leaves_its_picture_out_and_nothing_else(rules: tuple[Rule, ...], within: str | None) -> None:
    holed, kept = SCORES.clone(), torch.ones(N, dtype=torch.bool)
    for row, term, what in ((1, 0, torch.nan), (6, 1, torch.inf), (7, 0, torch.nan)):
        holed[row, term], kept[row] = what, False
    found = worth(*rules, standardise=within, s=holed)
    assert torch.equal(found.isfinite(), kept)
    assert torch.equal(found[kept], worth(*rules, standardise=within, s=SCORES[kept], groups=GROUPS[kept]))
    assert worth(*rules, standardise=within, s=holed * torch.nan).isnan().all()
    assert worth(*rules, standardise=within, s=holed[:0], groups=GROUPS[:0]).shape == (0,)


def test_below_a_floor_is_below_all_that_hold() -> None:
    s = torch.tensor([[9.0, 0.1], [2.0, 0.7], [1.0, 0.5], [8.0, 0.4], [3.0, 0.9]], dtype=torch.float64)
    found = worth(Rule(), Rule(0.0, floor=0.5), s=s, groups=torch.zeros(5)).double()
    scale = s[:, 1].std(correction=0) + 1e-4 * s[:, 1].square().mean().sqrt()
    spread = s[:, 0].std(correction=0)
    assert found[[1, 2, 4]].tolist() == [2.0, 1.0, 3.0]  # what holds is what it was, on the floor too
    expected = 1 - spread * torch.tensor([0.4, 0.1], dtype=torch.float64) / scale
    torch.testing.assert_close(found[[0, 3]], expected, atol=1e-6, rtol=1e-6)
    two = worth(Rule(floor=2.0), Rule(0.0, floor=0.5), s=s, groups=torch.zeros(5))
    assert two.argsort(descending=True).tolist()[:2] == [4, 1] and two[2] < two[1]


def test_floors_that_all_hold_change_nothing_and_that_none_holds_are_climbed() -> None:
    assert torch.equal(worth(Rule(floor=-99.0), Rule()), worth(Rule(), Rule()))
    none = worth(Rule(floor=99.0), Rule())
    assert torch.equal(none.argsort(), SCORES[:, 0].argsort())
    same = torch.full((N, 1), 2.0)
    assert len(set(worth(Rule(floor=3.0), s=same).tolist())) == 1  # nothing to choose between


def test_rules_count_and_report() -> None:
    s = torch.tensor([-1.0, 0.5, 2.0, torch.nan, torch.inf])
    assert Rule(2.0).parts(s) == {} and torch.equal(Rule().counted(s[:3]), s[:3])
    clipped = Rule(clip=(0.0, 1.0)).parts(s)["counted"]
    assert clipped[:3].tolist() == [0.0, 0.5, 1.0] and clipped[3:].isnan().all()
    short = Rule(at_least=0.5, floor=-2.0).parts(s)
    assert short["counted"][:3].tolist() == [-1.5, 0.0, 0.0] and short["counted"][3:].isnan().all()
    assert short["holds"][:3].tolist() == [0.0, 1.0, 1.0] and math.isnan(short["holds"][3])


# ---- on the way to an algorithm


def size(images: Tensor, prompts: Any) -> Tensor:
    return 1e-3 * images.flatten(1).square().mean(1)


def test_a_rollout_learns_from_what_everyones_scores_make_and_keeps_what_they_were() -> None:
    calls: list[int] = []

    def failing(images: Tensor, prompts: Prompts) -> Tensor:
        calls.append(len(images))
        value = closeness(images, prompts)
        return value.index_fill(
            0, torch.tensor([k for k, b in enumerate(prompts.ids) if b in (2, 9)]).long(), torch.nan
        )

    algorithm, policy = DDPO(images=16, per_prompt=4, updates=2, steps=5, guidance=2.0), Toy()
    reward = Sum([(failing, 1), (size, {"weight": 2, "floor": 5e-4})], standardise="group")
    found = []
    for sampling in (16, 3):
        it = iteration_of(algorithm, policy, plan_of(algorithm, policy, sampling=sampling), reward=reward)
        rollout = collect(it, algorithm.sampler)
        assert it.worth(it.kept["rollout.reward"], rollout.parts).isnan().nonzero().flatten().tolist() == [2, 9]
        found.append((rollout.reward, it.kept["rollout.reward"]))
        again = collect(it, algorithm.sampler)  # as after an interruption: from what was kept
        assert torch.equal(again.reward.nan_to_num(), rollout.reward.nan_to_num())
    assert calls[0] == 16 and max(calls[1:]) == 3
    torch.testing.assert_close(found[0][0], found[1][0], equal_nan=True)
    s = torch.stack([rollout.parts["failing"], rollout.parts["size"]], 1)
    expected = worth(Rule(), Rule(2.0, floor=5e-4), standardise="group", s=s, groups=torch.tensor(it.prompts.groups))
    assert torch.equal(rollout.reward.nan_to_num(), expected.nan_to_num())
    torch.testing.assert_close(found[1][1], s[:, 0] + 2 * s[:, 1], equal_nan=True)  # the record has the plain sum


def test_a_call_that_raised_has_no_parts() -> None:
    def broken(images: Tensor, prompts: Prompts) -> Tensor:
        if 5 in prompts.ids:
            raise ConnectionError("the judge is down")
        return closeness(images, prompts)

    algorithm, policy = DDPO(images=8, per_prompt=4, updates=2, steps=5), Toy()
    reward = Sum([(broken, 1), (size, 1)], standardise="iteration")
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, sampling=2), reward=reward)
    assert collect(it, algorithm.sampler).reward.isnan().nonzero().flatten().tolist() == [4, 5]
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, sampling=8), reward=reward)
    assert collect(it, algorithm.sampler).reward.isnan().all()  # no part at all is known


def test_only_sums_that_compare_have_a_comparison() -> None:
    class Plain:
        def __call__(self, images: Tensor, prompts: Any) -> Scores:
            return Scores(images.mean((1, 2, 3)))

    assert named(Plain()).comparison is None and Recorded(Sum("brightness:1,smoothness:2")).comparison is None
    assert Recorded(Sum("brightness:1,smoothness{floor: 1}")).comparison is not None
    found = named({"name": "brightness:1,smoothness", "standardise": "group"}).comparison
    assert found is not None and found.parts == ("brightness", "smoothness") and found.standardise == "group"
