"""Samplers that were made for flows, on any (alpha, sigma).

A state x = alpha x0 + sigma eps is a flow's state but for the factor alpha + sigma: with

    x~ = x / (alpha + sigma),   s~ = sigma / (alpha + sigma),   x~ = (1 - s~) x0 + s~ eps.

So the rescaled state is stepped as a flow's, and mean and std are scaled by alpha' + sigma' afterwards. The velocity
eps - x0 is the same in both. Where alpha + sigma is 1 this is the papers' formula itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker.process.prediction import Prediction
from tastemaker.process.schedule import Schedule, rows
from tastemaker.process.transition import Transition

PURE = 1e-3  # a state with less picture in it than this has none


@dataclass(frozen=True)
class FlowSDE:
    """Flow-GRPO, Liu et al. 2025, arXiv:2505.05470: the flow's SDE whose noise grows toward the noisy end.

    s = a sqrt(s~ / (1 - s~)), and with dt = s~' - s~ < 0
    mean = x~ (1 + s^2 / (2 s~) dt) + v (1 + s^2 (1 - s~) / (2 s~)) dt,   std = s sqrt(-dt).

    The marginals become the flow's as steps grow; with few of them some variance is lost, less than by the ODE. The
    noise of the last step, of std a s~ / sqrt(1 - s~) where sigma' = 0, stays in the picture, and the step is learned
    from: what is judged is what was drawn. A `window` whose `last` lies before it ends in a deterministic step.

    Departs from yifan123/flow_grpo:
    1. 1 - s~ is that of step 1 where s~[0] is within 1e-3 of 1, not at 1 alone: some tables stop just short.
    2. The last step is an item like any other; there it is drawn with noise too, and left out of the loss.
    """

    a: float = 0.7  # level of the noise; above 0.

    def __post_init__(self) -> None:
        _check_level("a", "flow_sde", self.a)

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        return _stepped(prediction, x, i, schedule, self._rate(schedule.to(x.device)))

    def stds(self, schedule: Schedule) -> Tensor:
        return _sde(schedule, self._rate(schedule))[1].to(schedule.sigma.dtype)

    def _rate(self, schedule: Schedule) -> Tensor:
        if len(schedule) == 1:
            raise ValueError("flow_sde has no noise level for a chain of 1 step: use 2 steps or more, or dance_sde.")
        sigma = _flow(schedule)[0][:-1]
        short = torch.cat([torch.where(sigma[:1] > 1 - PURE, sigma[1], sigma[:1]), sigma[1:]])
        return self.a * torch.sqrt(sigma / (1 - short))


@dataclass(frozen=True)
class DanceSDE:
    """DanceGRPO, Xue et al. 2025, arXiv:2505.07818: `FlowSDE` with s = eta at every step.

    The last step's noise, eta sqrt(s~), stays in the picture as there.
    """

    eta: float = 0.3  # level of the noise; above 0.

    def __post_init__(self) -> None:
        _check_level("eta", "dance_sde", self.eta)

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        return _stepped(prediction, x, i, schedule, self._rate(schedule.to(x.device)))

    def stds(self, schedule: Schedule) -> Tensor:
        return _sde(schedule, self._rate(schedule))[1].to(schedule.sigma.dtype)

    def _rate(self, schedule: Schedule) -> Tensor:
        return torch.full_like(_flow(schedule)[0][:-1], self.eta)


@dataclass(frozen=True)
class CPS:
    """Coefficients-preserving sampling, as Flow-GRPO's code has it (arXiv:2505.05470).

    std = sigma' sin(eta pi / 2),   mean = alpha' x0 + sqrt(sigma'^2 - std^2) eps.

    Every state has the right share of noise, but the share that is drawn anew does not shrink with the steps: what is
    drawn tends to the mean of the pictures that x[i] may become. Of N(1, 0.25) with the exact velocity a variance of
    0.125 is left after 10 steps, 0.145 after 40, 0.159 after 100, of 0.25 (`flow_sde`: 0.225, 0.246, 0.246). So
    training pictures are less diverse than those of an evaluation; it is here to compare with. The last step of a
    chain that ends at sigma = 0 has std 0.
    """

    eta: float = 0.8  # share of a right angle; 0 is the probability-flow ODE, at 1 all noise is drawn anew.

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta of cps is {self.eta}; it lies between 0 (deterministic) and 1 (all noise is new).")

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        schedule = schedule.to(x.device)
        alpha, sigma = schedule.at(i + 1, x)
        kept = math.cos(self.eta * math.pi / 2) * sigma
        return Transition(alpha * prediction.x0 + kept * prediction.eps, rows(self.stds(schedule), i, x))

    def stds(self, schedule: Schedule) -> Tensor:
        return math.sin(self.eta * math.pi / 2) * schedule.sigma[1:]


def _check_level(name: str, sampler: str, level: float) -> None:
    if not level > 0:
        raise ValueError(f"{name} of {sampler} is {level}; it must be above 0. Without noise: ddim with eta 0.")


def _flow(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """s~ and alpha + sigma, both [T + 1]; in fp64 where the device has it, for s~ near 1 and steps near 0."""
    wide = torch.float32 if schedule.alpha.device.type == "mps" else torch.float64
    alpha, sigma = schedule.alpha.to(wide), schedule.sigma.to(wide)
    return sigma / (alpha + sigma), alpha + sigma


def _sde(schedule: Schedule, s: Tensor) -> tuple[Tensor, Tensor]:
    """[T] what is left of eps in the mean, and the std, of the SDE at the rates s [T].

    In place of x~ and v the mean is written with their parts: x~ + (1 - s~) v = eps and x~ + v dt = (1 - s~') x0 + s~'
    eps, so it is (1 - s~') x0 + (s~' + s^2 dt / (2 s~)) eps. Scaled, x0 has the factor alpha'.
    """
    sigma, total = _flow(schedule)
    dt = (sigma[1:] - sigma[:-1]).clamp(max=0)
    return total[1:] * (sigma[1:] + s**2 * dt / (2 * sigma[:-1])), total[1:] * s * torch.sqrt(-dt)


def _stepped(prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule, s: Tensor) -> Transition:
    schedule = schedule.to(x.device)
    alpha, _ = schedule.at(i + 1, x)
    kept, std = _sde(schedule, s)
    return Transition(alpha * prediction.x0 + rows(kept, i, x) * prediction.eps, rows(std, i, x))
