"""draw, log_prob and kl against torch.distributions and by their gradients."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tastemaker.process.transition import Transition, draw, kl, log_prob

random = torch.Generator().manual_seed(0)
mean, other, x, noise = torch.randn(4, 3, 2, 4, 4, generator=random, dtype=torch.float64)
STD = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64).view(3, 1, 1, 1)


@pytest.mark.parametrize("std", [STD, STD[1, 0, 0, 0]])
def test_log_prob_is_the_mean_of_the_gaussian_log_density(std: torch.Tensor) -> None:
    found = log_prob(Transition(mean, std), x)
    torch.testing.assert_close(found, Normal(mean, std.expand_as(mean)).log_prob(x).flatten(1).mean(1))


def test_kl_is_the_gaussian_one_also_for_different_deviations() -> None:
    p, q = Transition(mean, STD), Transition(other, 2 * STD)
    wanted = kl_divergence(Normal(mean, STD.expand_as(mean)), Normal(other, (2 * STD).expand_as(mean)))
    torch.testing.assert_close(kl(p, q), wanted.flatten(1).mean(1))


def test_kl_of_one_sampler_is_the_squared_distance_of_the_means() -> None:
    """Also a tiny one: no difference of nearly equal numbers stands in the way."""
    p, q = Transition(mean, STD), Transition(mean + 1e-9, STD)
    torch.testing.assert_close(kl(p, q), (0.5 * (1e-9 / STD) ** 2).flatten(), rtol=1e-5, atol=0)


def test_kl_pulls_off_the_reference_and_not_at_it() -> None:
    moved = mean.clone().requires_grad_()
    kl(Transition(moved, STD), Transition(mean, STD)).sum().backward()
    assert moved.grad is not None and torch.equal(moved.grad, torch.zeros_like(mean))
    assert torch.equal(kl(Transition(mean, STD), Transition(mean, STD)), torch.zeros(3, dtype=torch.float64))
    moved = (mean + 0.1).requires_grad_()
    kl(Transition(moved, STD), Transition(mean, STD)).sum().backward()
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad, (0.1 / STD**2 / mean[0].numel()).expand_as(mean))


def test_the_draw_is_not_differentiated_but_the_mean_is() -> None:
    """d log p / d mean = (x - mean) / std^2, although x was drawn from the same mean."""
    moved = mean.clone().requires_grad_()
    p = Transition(moved, STD)
    drawn = draw(p, noise)
    log_prob(p, drawn).sum().backward()
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad, noise / STD / mean[0].numel())


def test_a_draw_keeps_the_graph_of_its_mean() -> None:
    moved = mean.clone().requires_grad_()
    draw(Transition(moved, STD), noise).sum().backward()
    assert moved.grad is not None and torch.equal(moved.grad, torch.ones_like(mean))
    assert torch.equal(draw(Transition(mean, torch.zeros(())), noise), mean)


def test_half_precision_is_refused() -> None:
    half = Transition(mean.half(), STD.half())
    with pytest.raises(AssertionError, match="fp32"):
        log_prob(half, x.half())
    with pytest.raises(AssertionError, match="fp32"):
        kl(half, half)
