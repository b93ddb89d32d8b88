"""Samplers: rules from a prediction about x[i] to the Gaussian of x[i + 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from tastemaker.process.noise import Key
from tastemaker.process.prediction import Prediction
from tastemaker.process.schedule import Schedule, rows
from tastemaker.process.transition import Transition

TABLE = {
    "ddim": "tastemaker.process.samplers:DDIM",
    "flow_sde": "tastemaker.process.flow_samplers:FlowSDE",
    "dance_sde": "tastemaker.process.flow_samplers:DanceSDE",
    "cps": "tastemaker.process.flow_samplers:CPS",
    "window": "tastemaker.process.samplers:Window",
}


class Sampler(Protocol):
    """A rule for one step of the chain; frozen, without state, the same for sampling and learning."""

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        """p(x[i + 1] | x[i]) from what the network says about x [B, ...] at step i, an int or a LongTensor [B]."""

    def stds(self, schedule: Schedule) -> Tensor:
        """[T] the std of every step. It needs no network: which steps are stochastic is known before any work."""


@dataclass(frozen=True)
class DDIM:
    """Song, Meng and Ermon 2021, arXiv:2010.02502, eqs. 12 and 16, for any alpha and sigma.

    std = eta sigma[i+1] sqrt(1 - (alpha[i] sigma[i+1] / (alpha[i+1] sigma[i]))^2)
    mean = alpha[i+1] x0 + sqrt(sigma[i+1]^2 - std^2) eps

    For every eta the marginals are the forward process's. The last step of a chain that ends at sigma = 0 has std 0.
    """

    eta: float = 1.0  # 0 is the probability-flow ODE (for flows: Euler), 1 is ancestral sampling (DDPM).

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta of ddim is {self.eta}; it lies between 0 (deterministic) and 1 (as random as DDPM).")

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        schedule = schedule.to(x.device)
        alpha, _ = schedule.at(i + 1, x)
        # The square root of sigma^2 - std^2 in a form that subtracts no two nearly equal numbers.
        kept = schedule.sigma[1:] * torch.sqrt(1 - self.eta**2 * schedule.renewed)
        return Transition(alpha * prediction.x0 + rows(kept, i, x) * prediction.eps, rows(self.stds(schedule), i, x))

    def stds(self, schedule: Schedule) -> Tensor:
        return self.eta * schedule.sigma[1:] * torch.sqrt(schedule.renewed)


@dataclass(frozen=True)
class Window:
    """`size` consecutive random steps, all others the ODE (Flow-GRPO-Fast; MixGRPO, Li et al. 2025, arXiv:2507.21802).

    Only the window's transitions have a density, are kept and are learned from. Where it stands is drawn with `drawn`,
    once an iteration or for each group; before that a Window only counts (`stds`: as many random steps as any has).
    """

    inside: Sampler
    size: int  # steps in the window.
    first: int = 0  # the window begins at this step or later; step 0 is the noisiest.
    last: int | None = None  # and ends at this step or earlier; null is the last step that is random.
    each: Literal["iteration", "group"] = "iteration"  # what has a window of its own; a group is a prompt's pictures.

    def __post_init__(self) -> None:
        if isinstance(self.inside, Window):
            raise ValueError(
                "inside is a window, but the steps of a window need a sampler that is none: give it another, such as "
                "ddim, and lower size where fewer steps are meant."
            )
        if self.size < 1:
            raise ValueError(f"size of window is {self.size}; a window has at least 1 step.")
        if self.first < 0:
            raise ValueError(f"first of window is {self.first}; steps are counted from 0.")
        if self.last is not None and self.last - self.first + 1 < self.size:
            raise ValueError(
                f"window: no {self.size} steps (size) fit between first = {self.first} and last = {self.last}."
            )

    def drawn(self, key: Key, schedule: Schedule) -> FixedWindow | GroupWindows:
        """The windows of this iteration, the same on every device and after a restart."""
        starts = self._starts(schedule)
        if self.each == "group":
            return GroupWindows(replace(self, each="iteration"), key, tuple(starts))
        return FixedWindow(self.inside, self.size, key.random("window").choice(starts))

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        raise RuntimeError("a Window stands nowhere until it is drawn: use window.drawn(key, schedule) as the sampler.")

    def stds(self, schedule: Schedule) -> Tensor:
        return FixedWindow(self.inside, self.size, self._starts(schedule)[0]).stds(schedule)

    def _starts(self, schedule: Schedule) -> list[int]:
        """Where a window of `size` steps that are all random can begin."""
        random = (self.inside.stds(schedule) > 0).tolist()
        stop = len(random) if self.last is None else min(self.last + 1, len(random))
        starts = [s for s in range(self.first, stop - self.size + 1) if all(random[s : s + self.size])]
        if not starts:
            where = f"between step {self.first} and step {stop - 1} of {len(random)}"
            raise ValueError(
                f"window: there are no {self.size} consecutive random steps (size) {where} under {self.inside}; "
                "lower size or first, raise last or steps, or give `inside` a sampler with noise."
            )
        return starts


@dataclass(frozen=True)
class GroupWindows:
    """A window for each group, drawn by the key and the group's number alone: the same on every device."""

    window: Window
    key: Key
    starts: tuple[int, ...]

    def of(self, groups: Sequence[int]) -> FixedWindow:
        """The windows of samples of these groups [B], one a row."""
        places = {group: self.key.random("window", group).choice(self.starts) for group in sorted(set(groups))}
        start = torch.tensor([places[group] for group in groups], dtype=torch.long)
        return FixedWindow(self.window.inside, self.window.size, start)

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        raise RuntimeError("windows of groups stand nowhere until the rows' groups are known: use samplers.of.")

    def stds(self, schedule: Schedule) -> Tensor:
        return self.window.stds(schedule)


@dataclass(frozen=True)
class FixedWindow:
    """`inside` on the steps start ... start + size - 1, the ODE on all others."""

    inside: Sampler
    size: int
    start: int | Tensor  # of all rows, or [B] of each

    def transition(self, prediction: Prediction, x: Tensor, i: int | Tensor, schedule: Schedule) -> Transition:
        ode = DDIM(eta=0.0)
        if isinstance(i, int) and isinstance(self.start, int):
            sampler = self.inside if self.start <= i < self.start + self.size else ode
            return sampler.transition(prediction, x, i, schedule)
        step, start = torch.as_tensor(i, device=x.device), torch.as_tensor(self.start, device=x.device)
        within = ((step >= start) & (step < start + self.size)).view(-1, *(1,) * (x.ndim - 1))
        p, q = self.inside.transition(prediction, x, i, schedule), ode.transition(prediction, x, i, schedule)
        return Transition(torch.where(within, p.mean, q.mean), torch.where(within, p.std, q.std))

    def stds(self, schedule: Schedule) -> Tensor:
        """[T]; with a start for each row, a step has a std if it is random in any of them."""
        stds = torch.zeros_like(schedule.sigma[1:])
        starts = torch.unique(self.start).tolist() if isinstance(self.start, Tensor) else [self.start]
        for start in starts:
            window = slice(start, start + self.size)
            stds[window] = self.inside.stds(schedule)[window]
        return stds


def of(sampler: Sampler, groups: Sequence[int]) -> Sampler:
    """The sampler of samples of these groups [B]: windows of groups are brought to their rows, all else is itself."""
    return sampler.of(groups) if isinstance(sampler, GroupWindows) else sampler


def random_rows(sampler: Sampler, schedule: Schedule, rows: int) -> Tensor:
    """[rows, K] the steps that have a density, of each row; as many in all."""
    if isinstance(sampler, FixedWindow) and isinstance(sampler.start, Tensor):
        return sampler.start[:, None] + torch.arange(sampler.size)
    return (sampler.stds(schedule) > 0).nonzero().flatten().cpu().expand(rows, -1)
