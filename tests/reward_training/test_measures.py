"""Rank correlation and accuracy against what they are by hand, and their intervals against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tastemaker.reward_training.measures import accuracy, ranks, spearman


def test_ranks_share_their_mean() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_rank_correlation_is_that_of_the_formula_without_ties() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1))"""
    a, b = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([10.0, 30, 20, 50, 40])
    found = spearman(a, b)
    assert found.mean == pytest.approx(1 - 6 * 4 / (5 * 24))
    middle, reach = math.atanh(0.8), 1.959964 * math.sqrt((1 + 0.32) / 2)
    assert (found.low, found.high) == pytest.approx((math.tanh(middle - reach), math.tanh(middle + reach)))


def test_only_order_counts() -> None:
    a = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert spearman(a, a.exp()).mean == pytest.approx(1) and spearman(a, -(a**3)).mean == pytest.approx(-1)
    assert math.isnan(spearman(a, torch.zeros(50)).mean)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator, truth, held = torch.Generator().manual_seed(1), 0.7, 0
    for _ in range(400):
        a = torch.randn(60, generator=generator)
        b = truth * a + math.sqrt(1 - truth**2) * torch.randn(60, generator=generator)
        found = spearman(a, b)
        held += found.low < 6 / math.pi * math.asin(truth / 2) < found.high  # Pearson's r of normal numbers in ranks
    assert 0.92 <= held / 400 <= 0.98


def test_accuracy_leaves_ties_of_voters_out_and_halves_ties_of_values() -> None:
    margins, shares = torch.tensor([1.0, -1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 0.0, 0.5])
    assert accuracy(margins, shares, ["a", "b", "c", "d"]).mean == pytest.approx(0.5)
    assert accuracy(torch.tensor([1.0, -1.0]), torch.tensor([0.9, 0.2]), ["a", "b"]).mean == 1
