"""Every parameterisation names the same two ends of x."""

import pytest
import torch

from tastemaker.process.prediction import Prediction, from_eps, from_v, from_velocity, from_x0

ANGLE = torch.tensor([0.1, 0.7, 1.4], dtype=torch.float64).view(3, 1, 1)
VARIANCE_PRESERVING = (ANGLE.cos(), ANGLE.sin())
FLOW = (1 - ANGLE / 2, ANGLE / 2)
x0, eps = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(found: Prediction) -> None:
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.eps, eps)
    torch.testing.assert_close(found.velocity, eps - x0)


@pytest.mark.parametrize(("alpha", "sigma"), [VARIANCE_PRESERVING, FLOW])
def test_eps_x0_and_velocity(alpha: torch.Tensor, sigma: torch.Tensor) -> None:
    x = alpha * x0 + sigma * eps
    check(from_eps(eps, x, alpha, sigma))
    check(from_x0(x0, x, alpha, sigma))
    check(from_velocity(eps - x0, x, alpha, sigma))


def test_v() -> None:
    alpha, sigma = VARIANCE_PRESERVING
    check(from_v(alpha * eps - sigma * x0, alpha * x0 + sigma * eps, alpha, sigma))


def test_pure_noise_needs_no_division_by_alpha() -> None:
    """At alpha = 0 a v- or velocity-network still names its picture; an eps-network does not."""
    zero, one = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    check(from_v(-x0, eps, zero, one))
    check(from_velocity(eps - x0, eps, zero, one))
    assert not from_eps(eps, eps, zero, one).x0.isfinite().any()
