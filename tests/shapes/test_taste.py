"""The taste that is written down: each part is what its page says, whatever the caption asks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shapes.pictures import fresh
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.reward import check
from tastemaker.shapes.taste import taste


def square(side: int, *, at: tuple[int, int] = (32, 32), colour: tuple[float, ...] = (0.9, 0.45, 0.0)) -> Tensor:
    """A picture [1,3,64,64] of a square on mid grey; `at` is its middle, x and y."""
    x = torch.full((1, 3, 64, 64), 0.5)
    left, top = at[0] - side // 2, at[1] - side // 2
    x[..., top : top + side, left : left + side] = torch.tensor(colour)[:, None, None]
    return x


def parts(images: Tensor) -> dict[str, float]:
    return {name: float(part) for name, part in taste(images).parts.items()}


def test_the_parts_are_what_they_are_called() -> None:
    whole = {"full": 400 / 4096 / 0.35, "vivid": 1.0, "centred": 1.0, "plain": 1.0}
    assert parts(square(20)) == pytest.approx(whole, abs=1e-5)
    assert float(taste(square(20)).value) == pytest.approx(1 + 9 * sum(whole.values()) / 4, abs=1e-4)
    assert parts(square(40))["full"] == 1.0
    assert parts(square(20, colour=(0.8, 0.2, 0.3)))["vivid"] == pytest.approx(0.15 / 0.45, abs=1e-5)
    assert parts(square(20, at=(32, 44)))["centred"] == pytest.approx(1 - 12 / 20, abs=1e-5)
    assert parts(square(20, at=(20, 16)))["centred"] == pytest.approx(0, abs=1e-5)
    striped = square(20)
    striped[..., :4] = 0.0
    assert 0 < parts(striped)["plain"] < 0.7


def test_an_empty_picture_has_a_plain_background_and_nothing_else() -> None:
    assert parts(torch.full((1, 3, 64, 64), 0.5)) == pytest.approx({"full": 0, "vivid": 0, "centred": 0, "plain": 1})
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert taste(noise).value.isfinite().all() and taste(noise * torch.nan).value.isfinite().all()


def test_it_asks_for_something_else_than_captions_do() -> None:
    images, prompts = fresh(400)
    value = taste(images).value
    of = {colour: value[[colour in text.split() for text in prompts]].mean() for colour in ("orange", "green")}
    assert 4 < value.mean() < 7 and 0.8 < value.std() < 2 and of["orange"] > of["green"] + 1


def test_it_keeps_the_contract_of_rewards() -> None:
    images, prompts = fresh(400)
    check(named("shapes_taste"), images[:4], Prompts.of(prompts[:4]))
    large = torch.nn.functional.interpolate(images[:4], (128, 128), mode="nearest")
    torch.testing.assert_close(taste(large).value, taste(images[:4]).value)
