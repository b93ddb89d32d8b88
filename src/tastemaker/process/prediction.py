"""The one change of variables: what any network says about x[i], as (x0, eps).

A network predicts the noise (eps), the picture (x0), a mixture (v, Salimans and Ho 2022, arXiv:2202.00512) or a flow's
velocity (eps - x0). Each is turned once, at the border, into both ends of x[i] = alpha x0 + sigma eps; nothing inside
knows which it was. alpha and sigma are those of `Schedule.at(i, x)`; everything else is [B, ...].
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What a network believes about x[i] = alpha x0 + sigma eps; both [B, ...]."""

    x0: Tensor
    eps: Tensor

    @property
    def velocity(self) -> Tensor:
        """eps - x0, the velocity of a flow from picture to noise."""
        return self.eps - self.x0


def from_eps(eps: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """x0 = (x - sigma eps) / alpha. There is no x0 where alpha is 0 (zero terminal SNR)."""
    return Prediction((x - sigma * eps) / alpha, eps)


def from_x0(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """eps = (x - alpha x0) / sigma."""
    return Prediction(x0, (x - alpha * x0) / sigma)


def from_v(v: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """v = alpha eps - sigma x0, where alpha^2 + sigma^2 = 1."""
    return Prediction(alpha * x - sigma * v, alpha * v + sigma * x)


def from_velocity(velocity: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """velocity = eps - x0; the sum alpha + sigma is 1 for a flow."""
    total = alpha + sigma
    return Prediction((x - sigma * velocity) / total, (x + alpha * velocity) / total)
