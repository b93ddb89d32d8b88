"""The time grid of a denoising chain: how much picture and how much noise each x[i] holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """x[i] = alpha[i] x0 + sigma[i] eps, with i = 0 the noise and i = T the clean latent.

    t [T] is what the network is told at step i (from x[i] to x[i + 1]); alpha and sigma are [T + 1]. Two schedules are
    equal only when they are the same object, so that one can be the key of a cache.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    _moved: dict[torch.device, Schedule] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        steps = len(self.t)
        if steps < 1 or self.alpha.shape != (steps + 1,) or self.sigma.shape != (steps + 1,):
            found = f"t {list(self.t.shape)}, alpha {list(self.alpha.shape)}, sigma {list(self.sigma.shape)}"
            raise ValueError(
                f"a schedule of T >= 1 steps needs t [T], alpha [T + 1] and sigma [T + 1], but got {found}."
            )

    def __len__(self) -> int:
        return len(self.t)

    def at(self, i: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha[i] and sigma[i] in the dtype and on the device of `like` [B, ...], against which they broadcast.

        i is an int or a LongTensor [B]. Nothing waits for an accelerator: the first call with a `like` on another
        device copies the three small tables there, and the copy is kept.
        """
        here = self.to(like.device)
        return rows(here.alpha, i, like), rows(here.sigma, i, like)

    def to(self, device: torch.device | str) -> Schedule:
        """The same schedule on another device; copied once per device."""
        device = torch.device(device)
        if device == self.alpha.device:
            return self
        if device not in self._moved:
            self._moved[device] = Schedule(self.t.to(device), self.alpha.to(device), self.sigma.to(device))
        return self._moved[device]

    @cached_property
    def straight(self) -> bool:
        """Whether this is a flow's schedule: alpha + sigma is 1 everywhere."""
        return torch.allclose(self.alpha + self.sigma, torch.ones_like(self.alpha))

    @cached_property
    def renewed(self) -> Tensor:
        """[T] the share of x[i + 1]'s noise variance that a Markov noising chain adds between x[i + 1] and x[i].

        It is 1 - (alpha[i] sigma[i + 1] / (alpha[i + 1] sigma[i]))^2. Where alpha^2 + sigma^2 = 1 this equals
        (1 - alpha[i]^2 / alpha[i + 1]^2) / sigma[i]^2, whose difference of nearly equal squares loses digits at low
        noise; the ratio does not, and it holds for flows (alpha + sigma = 1) too.
        """
        wide = torch.float32 if self.alpha.device.type == "mps" else torch.float64
        alpha, sigma = self.alpha.to(wide), self.sigma.to(wide)
        ratio = (alpha[:-1] * sigma[1:]) / (alpha[1:] * sigma[:-1])
        return (1 - ratio**2).clamp(min=0).to(self.alpha.dtype)


def rows(table: Tensor, i: int | Tensor, like: Tensor) -> Tensor:
    """table[i] in the dtype of `like` [B, ...], shaped to broadcast against it; i is an int or a LongTensor [B].

    An int gives a 0-dim view. A tensor index is never read on the host, so an accelerator is not waited for.
    """
    if isinstance(i, int):
        if i < 0:
            raise IndexError(f"step {i} is before the noise: i runs from 0 (noise) to T (clean).")
        return table[i].to(like)
    picked = table[i.to(table.device).reshape(-1)]
    return picked.to(like).view(-1, *(1,) * (like.ndim - 1))


def from_alphas_cumprod(alphas_cumprod: Tensor, timesteps: Sequence[int], final_alpha_cumprod: float) -> Schedule:
    """The schedule of a variance-preserving model: alpha = sqrt(alphas_cumprod), sigma = sqrt(1 - alphas_cumprod).

    alphas_cumprod [1000] is the model's own table and timesteps the T descending ones of the chain; x[T] lies at
    final_alpha_cumprod (1, or the table's first entry where the model's scheduler says so). Step i goes from
    timesteps[i] to timesteps[i + 1]. Computed in fp64, kept in the dtype of alphas_cumprod.

    Departs from diffusers' DDIMScheduler: 1. there step i ends at timesteps[i] - 1000 // T, which is the grid's next
    timestep for "leading" spacing and wherever T divides 1000 with "trailing", and is off the grid elsewhere
    ("linspace", "trailing" with 30 steps), where the network would be told a noise level its input does not have.
    """
    grid = [int(t) for t in timesteps]
    if not grid or any(later >= sooner for sooner, later in pairwise(grid)):
        raise ValueError(f"timesteps must descend from noise to picture, at least one of them, but got {grid}.")
    if grid[-1] < 0 or grid[0] >= len(alphas_cumprod):
        raise ValueError(
            f"timesteps {grid[0]} ... {grid[-1]} leave the {len(alphas_cumprod)} the model was trained on "
            f"(0 ... {len(alphas_cumprod) - 1}); use fewer steps."
        )
    table = alphas_cumprod.detach().to("cpu", torch.float64)
    squares = torch.cat([table[grid], torch.tensor([final_alpha_cumprod], dtype=torch.float64, device=table.device)])
    if not bool((squares[1:] >= squares[:-1]).all()) or squares[0] < 0 or squares[-1] > 1:
        raise ValueError("alphas_cumprod must fall from at most 1 (clean) to at least 0 (noise) as the timestep grows.")
    kept = alphas_cumprod.dtype
    t = torch.tensor(grid, dtype=torch.float32, device=table.device)
    return Schedule(t, squares.sqrt().to(kept), (1 - squares).sqrt().to(kept))


def from_sigmas(t: Tensor, sigma: Tensor) -> Schedule:
    """The schedule of a flow, x = (1 - sigma) x0 + sigma eps: sigma [T + 1] falls to 0; t [T] is for the network.

    sigma may begin at 1, where x is noise alone. Errors: ValueError where it does not fall from at most 1 to 0.
    """
    table = sigma.detach().to("cpu")
    if not bool((table[1:] < table[:-1]).all()) or not 0 < float(table[0]) <= 1 or float(table[-1]) != 0:
        some = ", ".join(f"{value:.4g}" for value in table[:4].tolist())
        raise ValueError(
            f"the sigmas of a flow fall from at most 1 (noise) to 0 (clean), and {len(t)} steps of this scheduler are "
            f"{some}, ...: use another number of steps, or mend scheduler_config.json."
        )
    return Schedule(t.detach().float(), 1 - sigma.detach(), sigma.detach())
