"""One step of the chain as a Gaussian, and all that reinforcement learning asks of it: draw, log_prob, kl."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Transition(NamedTuple):
    """p(x[i + 1] | x[i]) = N(mean, std^2 I).

    mean [B, ...]; std is 0-dim or [B, 1, ...] and broadcasts. It is 0 where the step is deterministic: there is no
    density, so log_prob and kl are not finite in such rows and have no gradient worth following.
    """

    mean: Tensor
    std: Tensor


def draw(p: Transition, noise: Tensor) -> Tensor:
    """x[i + 1] = mean + std noise, [B, ...]; keeps the graph of the mean."""
    return p.mean + p.std * noise


def log_prob(p: Transition, x: Tensor) -> Tensor:
    """log p(x) per element of the latent, [B]: the mean, not the sum, as in Black et al.'s code (arXiv:2305.13301).

    The mean makes the ratio of two policies tame (its logarithm is a 16,384th of the true one for 4x64x64), so clip
    ranges are small, such as 1e-4. x is what was drawn, so no gradient flows through it.
    """
    assert p.mean.dtype in (torch.float32, torch.float64), f"log-probs are taken in fp32 or fp64, not {p.mean.dtype}"
    z = (x.detach() - p.mean) / p.std
    return (-0.5 * z**2 - torch.log(p.std) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def kl(p: Transition, q: Transition) -> Tensor:
    """KL(p || q) per element of the latent, [B].

    log(q.std / p.std) + (p.std^2 - q.std^2 + (p.mean - q.mean)^2) / (2 q.std^2), which for two policies of one sampler
    is (p.mean - q.mean)^2 / (2 std^2). The gradient is that of both arguments: hold the reference under no_grad.
    """
    assert p.mean.dtype in (torch.float32, torch.float64), f"KL is taken in fp32 or fp64, not {p.mean.dtype}"
    spread = p.std / q.std
    apart = ((p.mean - q.mean) / q.std) ** 2 / 2
    return (apart + ((spread**2 - 1) / 2 - torch.log(spread))).flatten(1).mean(1)
