"""Rewards of symmetry: pixels by hand, angles against arccos, gradients against finite differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_clip
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.reward import NamedReward, check
from tastemaker.rewards.symmetry import RotationInvariance, Thumbnail, angle, shrunk

NAMES = ("mirror_symmetry", "rotational_symmetry", "rotation_invariance", "thumbnail")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write(tmp_path_factory.mktemp("clip"))


def reward(name: str, folder: Path) -> NamedReward:
    return named(name if name.endswith("symmetry") else {"name": name, "model": str(folder)})


def images(count: int = 4, height: int = 32, width: int = 32) -> Tensor:
    return tiny_clip.pictures(height, width, count)


def test_pixels_by_hand() -> None:
    slope = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]).expand(2, 3, 2, 3).clone()
    slope[1] = slope[1].flip(1) * torch.tensor([[1.0], [0.0]])  # one row falls, the other is black
    mirrored = named("mirror_symmetry")(slope, ["", ""]).value
    torch.testing.assert_close(mirrored, torch.tensor([-2 / 3, -1 / 3]))
    turned = named("rotational_symmetry")(slope, ["", ""]).value
    torch.testing.assert_close(turned, torch.tensor([-2 / 3, -(1 + 0.25) * 2 / 6]))
    even = slope + slope.flip(3)
    assert named("mirror_symmetry")(even, ["", ""]).value.tolist() == [0, 0]
    assert named("rotational_symmetry")(slope + slope.flip(2, 3), ["", ""]).value.tolist() == [0, 0]


def test_angles_are_those_of_arccos(folder: Path) -> None:
    u, v = F.normalize(torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)).double(), dim=2)
    torch.testing.assert_close(angle(u, v), torch.rad2deg((u * v).sum(1).arccos()))
    right = torch.eye(3)[[0, 0, 0]], torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0]])
    torch.testing.assert_close(angle(*right), torch.tensor([0.0, 90, 180]))
    clip = RotationInvariance(model=str(folder))
    seen = [clip.see(images().rot90(turn, (2, 3))) for turn in range(4)]
    want = -sum(torch.rad2deg((seen[0] * other).sum(1).arccos()) for other in seen[1:]) / 3
    torch.testing.assert_close(clip(images(), [""] * 4), want, atol=1e-3, rtol=1e-4)


def test_what_is_even_looks_the_same_turned_and_small(folder: Path) -> None:
    even = torch.tensor([0.2, 0.7])[:, None, None, None].expand(2, 3, 40, 24)
    for one in (RotationInvariance(model=str(folder)), Thumbnail(model=str(folder))):
        pictures = even.clone().requires_grad_()
        value = one(pictures, ["", ""])
        torch.testing.assert_close(value, torch.zeros(2), atol=1e-3, rtol=0)
        (slope,) = torch.autograd.grad(value.sum(), pictures)
        assert slope.isfinite().all()


def test_thumbnails() -> None:
    assert shrunk(images(2, 40, 24), 4).shape == (2, 3, 10, 6) and shrunk(images(2, 40, 24), 100).shape == (2, 3, 1, 1)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(shrunk(ramp, 8)[0, 0, 3, 2:-2], ramp[0, 0, 0].unflatten(0, (8, 8)).mean(1)[2:-2])


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_and_the_gradient(name: str, folder: Path) -> None:
    one, pictures = reward(name, folder), images()
    prompts = Prompts.of(["a"] * 4)
    check(one, pictures, prompts)
    value = one(pictures, prompts).value
    assert value.shape == (4,) and value.dtype is torch.float32 and (value <= 0).all()
    assert len(set(value.tolist())) == 4 and torch.equal(one(pictures, prompts).value, value)
    for row in range(4):
        alone = one(pictures[row : row + 1], ["another prompt"]).value
        torch.testing.assert_close(alone, value[row : row + 1], atol=1e-5, rtol=1e-5)
    wide = one(images(2, 24, 40).bfloat16(), ["", ""]).value
    assert wide.dtype is torch.float32 and wide.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(name: str, folder: Path) -> None:
    one = reward(name, folder)
    if not name.endswith("symmetry"):
        one.network.double()
    pictures = (0.2 + 0.6 * images(2)).double().requires_grad_()
    along = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)).double()

    def total(x: Tensor) -> Tensor:
        return one(x, ["", ""]).value.sum()

    (slope,) = torch.autograd.grad(total(pictures), pictures)
    with torch.no_grad():
        found = (total(pictures + 1e-5 * along) - total(pictures - 1e-5 * along)) / 2e-5
    torch.testing.assert_close((slope * along).sum(), found, atol=1e-7, rtol=1e-4)
