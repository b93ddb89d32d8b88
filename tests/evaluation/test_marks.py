"""Marks of gaming on pictures: waves of known size, colours at their ends, pictures that are alike."""

import math

import pytest
import torch
from torch import Tensor

from shapes.pictures import fresh
from tastemaker.evaluation import marks

LATENT = (16, 8, 8)  # of pictures of 64 pixels: a stride of 8


def wave(period: float, amplitude: float, *, size: int = 64, along: int = 1) -> Tensor:
    """Grey with a wave along the columns, or the rows."""
    values = 0.5 + amplitude * torch.cos(2 * math.pi * torch.arange(size) / period)
    grid = values.expand(size, size) if along else values[:, None].expand(size, size)
    return grid.expand(1, 3, size, size)


def found(images: Tensor, latent: tuple[int, ...] = LATENT) -> float:
    return marks.periodicity(marks.comb(images, latent))


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("period", [16, 8, 4, 16 / 3])
def test_a_wave_of_the_grid_has_its_closed_form(period: float, along: int) -> None:
    """Its squared amplitude over that of one grey step; nothing lies beside it."""
    amplitude = 0.05
    expected = math.log10((amplitude**2 + marks.GREY**2) / marks.GREY**2)
    assert found(wave(period, amplitude, along=along)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("period", [10.0, 64 / 7, 64 / 13])
def test_a_wave_of_another_period_is_none(period: float) -> None:
    assert found(wave(period, 0.05)) < 0.3


def test_a_checkerboard_is_found_and_flat_pictures_and_one_grey_step_are_not() -> None:
    row, column = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = 0.5 + 0.05 * (1 - 2 * ((row // 8 + column // 8) % 2).float()).expand(1, 3, 64, 64)
    assert found(board) > 1.5
    assert found(torch.full((2, 3, 64, 64), 0.7)) == pytest.approx(0)
    assert found(wave(8, marks.GREY / 4)) < 0.05


def test_pictures_have_no_pattern_until_one_is_laid_over_them() -> None:
    pictures = fresh(32)[0]
    assert found(pictures) < 0.35
    assert found((pictures + 0.04 * (wave(8, 1.0) - 0.5)).clamp(0, 1)) > found(pictures) + 0.5


def test_what_cannot_hold_a_grid_has_no_number() -> None:
    assert math.isnan(found(torch.rand(2, 4, 1, 1), (4, 1, 1)))
    assert math.isnan(found(torch.rand(2, 3, 16, 16), (4, 2, 2)))
    assert math.isnan(marks.periodicity(torch.zeros(0)))


def test_two_sides_may_differ() -> None:
    picture = wave(16, 0.05, size=128)[:, :, :64]
    assert found(picture, (4, 8, 16)) > 1


def test_saturation_counts_both_ends() -> None:
    images = torch.tensor([[0.0, 1.0, 0.5, 0.001], [0.3, 0.3, 0.3, 0.3]]).view(2, 1, 2, 2)
    assert marks.saturation(images).tolist() == [0.75, 0.0]


def test_spread_is_the_mean_squared_difference_over_pairs() -> None:
    assert marks.spread(torch.full((5, 3, 2, 2), 0.3)) == 0 and math.isnan(marks.spread(torch.rand(1, 3, 2, 2)))
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pairs = [(images[i] - images[k]).square().mean() for i in range(6) for k in range(i)]
    assert marks.spread(images) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)


def test_the_error_of_a_ratio_is_that_of_many_draws() -> None:
    draw = torch.Generator().manual_seed(0)
    below = 1 + 0.3 * torch.rand(2000, 40, generator=draw, dtype=torch.float64)
    above = 0.6 * below + 0.1 * torch.randn(2000, 40, generator=draw, dtype=torch.float64)
    ratios = above.sum(1) / below.sum(1)
    errors = torch.tensor([marks.ratio_error(one, other) for one, other in zip(above, below, strict=True)])
    assert float(errors.mean()) == pytest.approx(float(ratios.std()), rel=0.05)
    assert marks.ratio_error(0.6 * below[0], below[0]) == pytest.approx(0, abs=1e-12)
    assert math.isnan(marks.ratio_error(torch.ones(1), torch.ones(1)))
