"""Rewards of plain pixels, by hand."""

from __future__ import annotations

import pytest
import torch

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.reward import check

EVEN = torch.stack([torch.full((3, 8, 10), v) for v in (0.0, 0.5, 1.0)])


def test_brightness_is_the_mean_luma() -> None:
    judge = named("brightness")
    torch.testing.assert_close(judge(EVEN, [""] * 3).value, torch.tensor([0.0, 0.5, 1.0]))
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    torch.testing.assert_close(judge(colours, [""] * 3).value, torch.tensor([0.299, 0.587, 0.114]))


def test_smoothness_is_minus_the_difference_of_neighbours() -> None:
    judge = named("smoothness")
    assert judge(EVEN, [""] * 3).value.tolist() == [0, 0, 0]
    across = (torch.arange(10) % 2).float().expand(1, 3, 8, 10)
    slope = (torch.arange(8) * 0.1)[:, None].expand(1, 3, 8, 10)
    found = judge(torch.cat([across, slope]), ["", ""]).value
    assert found.tolist() == pytest.approx([-1, -0.1])


@pytest.mark.parametrize("name", ["brightness", "smoothness", "colour"])
def test_the_contract_dtypes_and_gradients(name: str) -> None:
    images = torch.rand(4, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    check(named(name), images, Prompts.of(["a"] * 4))
    found = named(name)(images, ["a"] * 4).value
    assert len(set(found.tolist())) == 4
    torch.testing.assert_close(named(name)(images.bfloat16(), ["a"] * 4).value, found, atol=2e-2, rtol=0)
    assert named(name)(images.bfloat16(), ["a"] * 4).value.dtype is torch.float32
    assert torch.autograd.gradcheck(lambda x: named(name)(x, ["a"]).value, images[:1].double().requires_grad_())
