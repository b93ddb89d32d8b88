"""Mixes are linear in the change of the weights: compared with the changes themselves, summed in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tastemaker.evaluation.mixing import Member, layers, mixed, numbers, rank_of, reduced

LINEAR, CONV = (16, 12), (8, 6, 3, 3)  # outputs, inputs, and a kernel


def adapter(rank: int, seed: int, *names: str) -> dict[str, Tensor]:
    """Layers `c...` are convolutions."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        out, *rest = CONV if name.startswith("c") else LINEAR
        found[f"{name}.lora_A.weight"] = torch.randn(rank, *rest, generator=random)
        found[f"{name}.lora_B.weight"] = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=random)
    return found


def changes(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """B A of every layer, fp64."""
    return {name: b.double().flatten(1) @ a.double().flatten(1) for name, a, b in layers(adapter)}


def near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    apart = [(found[n] - expected[n]).abs().max() / expected[n].abs().max() for n in expected]
    return found.keys() == expected.keys() and max(apart) < 1e-6


ONE, OTHER, THIRD = adapter(2, 1, "a", "b", "conv"), adapter(5, 2, "b", "conv", "d"), adapter(1, 3, "a", "d")


def test_a_mix_is_the_sum_of_the_changes_over_ranks_layers_and_kinds() -> None:
    weights = (0.3, -0.7, 1.5)
    found = mixed([Member(n, a, w) for n, a, w in zip("xyz", (ONE, OTHER, THIRD), weights, strict=True)])
    expected: dict[str, Tensor] = {}
    for one, weight in zip((ONE, OTHER, THIRD), weights, strict=True):
        for name, change in changes(one).items():
            expected[name] = expected.get(name, 0) + weight * change
    assert set(expected) == {"a", "b", "conv", "d"} and near(changes(found), expected)
    ranks = {len(a) for _, a, _ in layers(found)}
    assert ranks == {7} and rank_of(found) == 7  # b and conv are of both; the others are filled up
    assert found["conv.lora_A.weight"].shape == (7, 6, 3, 3) and found["conv.lora_B.weight"].shape == (8, 7, 1, 1)


def test_both_factors_scaled_would_be_told_apart() -> None:
    """What a soup of factors makes: w^2 of the change, and one's B with the other's A."""
    found = mixed([Member("x", ONE, 0.5)])
    expected = {name: 0.5 * change for name, change in changes(ONE).items()}
    assert near(changes(found), expected)
    soup = {name: 0.5 * tensor for name, tensor in ONE.items()}
    assert not near(changes(soup), expected)
    assert near(changes(soup), {name: change / 2 for name, change in expected.items()})


def test_weight_1_is_the_lora_and_weight_0_is_nothing_bit_for_bit() -> None:
    same = mixed([Member("x", ONE, 1.0), Member("base", {}, 0.4), Member("y", OTHER, 0.0)])
    assert same.keys() == ONE.keys() and all(torch.equal(same[name], ONE[name]) for name in ONE)
    none = mixed([Member("base", {}, 1.0), Member("y", OTHER, 0.0)])
    assert none.keys() == OTHER.keys() and rank_of(none) == 1 and not any(tensor.any() for tensor in none.values())


def test_a_layer_of_another_shape_is_of_another_model() -> None:
    wide = {name: torch.cat([t, t], -1) if "A" in name else t for name, t in OTHER.items() if name.startswith("b.")}
    with pytest.raises(
        ValueError, match=r"x and z are LoRAs of different base models: the layer b is \[16, 12\] in one"
    ):
        mixed([Member("x", ONE, 0.5), Member("z", wide, 0.5)])
    mixed([Member("x", ONE, 0.5), Member("z", wide, 0.0)])  # left out before it is looked at


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_what_cannot_be_mixed_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=f"the weight of x is {weight:g}; a weight is a finite number"):
        mixed([Member("x", ONE, weight)])
    with pytest.raises(ValueError, match="nothing but `base` to mix"):
        mixed([Member("base", {}, 1.0)])
    with pytest.raises(ValueError, match=f"--mix: {weight} is not a finite number"):
        numbers(f"0,{weight}", "--mix")
    with pytest.raises(ValueError, match="--mix: 'half' is not a number"):
        numbers("0,half", "--mix")


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_lower_rank_is_the_nearest_and_its_error_is_told(rank: int) -> None:
    whole = mixed([Member("x", ONE, 0.8), Member("y", OTHER, 0.6)])
    before, (small, lost) = changes(whole), reduced(whole, rank)
    after = changes(small)
    assert rank_of(small) == rank and {len(a) for _, a, _ in layers(small)} == {rank}
    left = {name: float((before[name] - after[name]).norm()) for name in before}
    shares = {name: left[name] / float(before[name].norm()) for name in before}
    total = math.hypot(*left.values()) / math.hypot(*(float(change.norm()) for change in before.values()))
    assert lost.layer == max(shares, key=lambda name: shares[name])
    assert math.isclose(lost.worst, shares[lost.layer], rel_tol=1e-6) and math.isclose(lost.total, total, rel_tol=1e-6)
    for name, change in before.items():  # Eckart and Young: no matrix of this rank is nearer
        best = float(torch.linalg.svdvals(change)[rank:].norm())
        assert math.isclose(left[name], best, rel_tol=1e-4, abs_tol=1e-5 * float(change.norm()))


def test_a_rank_that_is_not_lower_changes_nothing() -> None:
    found, lost = reduced(ONE, 2)
    assert all(found[name] is ONE[name] for name in ONE) and lost.total == lost.worst == 0
    with pytest.raises(ValueError, match="--rank is 0; it is at least 1"):
        reduced(ONE, 0)
    zero = {name: torch.zeros_like(tensor) for name, tensor in ONE.items()}
    assert reduced(zero, 1)[1].total == 0
