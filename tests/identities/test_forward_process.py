"""The gradient of every algorithm of the forward process is that of plain autograd over diffusers' noising.

And at theta = old those of DiffusionNFT, AWM and advantage-weighted regression are one, but for a known factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.diffusion_nft import DiffusionNFT
from tastemaker.algorithms.noising import Noised
from tastemaker.algorithms.ram import RAM
from tastemaker.algorithms.rwr import RWR
from tastemaker.iteration import Iteration
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.rollout import Rollout
from toy import Toy
from toy_runs import SEED, apart, closeness, gradient, iteration_of

STEPS, LEVELS, KEY = 6, 2, Key(SEED, 0)
SMALL: dict[str, Any] = {"images": 8, "per_prompt": 2, "updates": 1, "steps": STEPS, "levels": LEVELS, "guidance": 2.0}
Belief = Callable[[Toy, Tensor, int, Tensor], Tensor]


def policies(flow: bool, sets: tuple[str, ...]) -> tuple[Toy, Toy, Toy]:
    """The learner, and policies whose weights are those of its old and of its base set."""
    made = Toy(flow=flow, sets=sets), Toy(flow=flow), Toy(flow=flow)
    random = torch.Generator().manual_seed(5)
    for policy, sigma in zip(made, (0.0, 0.05, 0.1), strict=True):
        for p in policy.parameters():
            p.data += sigma * torch.randn(p.shape, generator=random, dtype=p.dtype)
    for name, other in zip(("old", "base"), made[1:], strict=True):
        if name in sets:
            made[0]._sets[name] = [p.detach().clone() for p in other.parameters()]
    return made


def noising(policy: Toy) -> Callable[[Tensor, Tensor, int], Tensor]:
    """x of a picture and its noise at a level, by diffusers."""
    schedule = policy.schedule(STEPS)
    if policy.flow:
        flow = FlowMatchEulerDiscreteScheduler()
        flow.sigmas, flow.timesteps = schedule.sigma, schedule.t
        return lambda x0, eps, i: flow.scale_noise(x0, schedule.t[i : i + 1], eps)
    scheduler = DDIMScheduler(num_train_timesteps=STEPS)
    scheduler.alphas_cumprod = schedule.alpha[:-1].flip(0) ** 2
    return lambda x0, eps, i: scheduler.add_noise(x0, eps, torch.tensor([STEPS - 1 - i]))


def output(policy: Toy, x: Tensor, i: int, text: Any, guidance: float) -> Tensor:
    said = policy.predict(x, i, policy.schedule(STEPS), text, guidance)
    return said.velocity if policy.flow else said.eps


def x0_of(policy: Toy, x: Tensor, i: int, out: Tensor) -> Tensor:
    """What an output says of the picture, for eps models and for flows as their papers write it."""
    if policy.flow:
        return x - policy.schedule(STEPS).sigma[i] * out
    kept = policy.schedule(STEPS).alpha[i] ** 2
    return (x - (1 - kept).sqrt() * out) / kept.sqrt()


def mean(x: Tensor) -> Tensor:
    return x.square().mean()


def reference(
    it: Iteration, a: Algorithm, three: tuple[Toy, Toy, Toy], credit: Sequence[float], drawn_by: Toy
) -> Tensor:
    """The mean loss over (picture, level) items, one by one."""
    losses, noise = [], noising(drawn_by)
    for b, A in zip(it.prompts.ids, credit, strict=True):
        text = drawn_by.encode([it.prompts.texts[it.prompts.ids.index(b)]])
        x0 = picture(it, a, drawn_by, b, text)
        random = KEY.random("levels", 0, b)
        for k in range(LEVELS):
            i = random.randrange(STEPS * k // LEVELS, STEPS * (k + 1) // LEVELS)
            eps = torch.randn(4, 1, 1, generator=KEY.generator("noised", 0, i, b))[None].double()
            x = noise(x0, eps, i)
            outs = [output(policy, x, i, text, a.learning_guidance) for policy in three]
            losses.append(one(a, A, x0, eps, [x0_of(drawn_by, x, i, out) for out in outs], outs, drawn_by))
    return torch.stack(losses).mean()


@torch.no_grad()
def picture(it: Iteration, a: Algorithm, policy: Toy, b: int, text: Any) -> Tensor:
    """x0 of the ODE by diffusers' step; Euler's for a flow."""
    schedule = policy.schedule(STEPS)
    scheduler = DDIMScheduler(num_train_timesteps=STEPS, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = schedule.alpha[:-1].flip(0) ** 2, schedule.alpha[-1] ** 2
    x = KEY.noise("x0", 0, [b], Toy.latent_shape).double()
    for i in range(STEPS):
        out = output(policy, x, i, text, a.guidance)
        if policy.flow:
            x = x - out / STEPS
        else:
            x = scheduler.step(out, STEPS - 1 - i, x, 0.0, return_dict=False)[0]
    return x


def one(
    a: Algorithm, A: float, x0: Tensor, eps: Tensor, beliefs: list[Tensor], outs: list[Tensor], policy: Toy
) -> Tensor:
    """What one item costs, as the papers write it: of new, old and base."""
    new, old, base = beliefs
    v = [out if policy.flow else out - belief for out, belief in zip(outs, beliefs, strict=True)]
    old, base, v_old, v_base = old.detach(), base.detach(), v[1].detach(), v[2].detach()
    if isinstance(a, RWR):
        noise = outs[0] + new if policy.flow else outs[0]  # of a flow: v + x0
        return A * mean({"eps": noise - eps, "x0": new - x0, "velocity": v[0] - (eps - x0)}[a.space])
    if isinstance(a, RAM):
        target = v_base + a.strength * A * ((eps - x0) - v[0].detach())
        return mean(v[0] - target)
    kl = a.kl * mean(v[0] - v_base)
    if isinstance(a, AWM):
        rho = torch.exp(mean(v_old - (eps - x0)) - mean(v[0] - (eps - x0)))
        return torch.maximum(-A * rho, -A * rho.clamp(1 - a.clip, 1 + a.clip)) + kl
    assert isinstance(a, DiffusionNFT)
    r, total = (A / a.advantage_limit + 1) / 2, torch.zeros(())
    for share, sign in ((r, 1), (1 - r, -1)):
        mixed = old + sign * a.beta * (new - old)
        total = total + share * mean(mixed - x0) / (mixed - x0).detach().abs().mean()
    return a.advantage_limit * total / a.beta + kl


FULL = [
    RWR(**SMALL | {"per_prompt": 1}, temperature=0.7, inner_epochs=1, sampler=DDIM(0.0)),
    RWR(**SMALL, guidance_in_loss=False, space="velocity", inner_epochs=1, sampler=DDIM(0.0)),
    DiffusionNFT(**SMALL, beta=0.7, kl=0.3),
    DiffusionNFT(**SMALL | {"per_prompt": 1}, kl=0.0),
    AWM(**SMALL, clip=0.3, kl=0.2),
    RAM(**SMALL, strength=0.6),
]


def credits(it: Iteration, a: Algorithm, rewards: Tensor) -> list[float]:
    """Weights or advantages, written out."""
    r = rewards.double()
    if isinstance(a, RWR):
        weights = torch.exp((r - r.mean()) / (r.std(correction=0) + 1e-6) / a.temperature)
        return list((weights / weights.mean()).tolist())
    groups = r.view(-1, a.per_prompt) if a.per_prompt > 1 else r.view(1, -1)
    floor = 1e-4 if a.per_prompt > 1 else 1e-6
    A = (groups - groups.mean(1, keepdim=True)) / (groups.std(correction=0) + floor)
    return list(A.flatten().clamp(-a.advantage_limit, a.advantage_limit).tolist())


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
@pytest.mark.parametrize("algorithm", FULL, ids=lambda a: type(a).__name__)
def test_the_gradient_is_that_of_plain_autograd(algorithm: Algorithm, flow: bool) -> None:
    if flow and getattr(algorithm, "space", "") == "eps":  # no error where a flow begins
        algorithm = replace(algorithm, space="x0")
    three = policies(flow, algorithm.sets)
    learner, old, _ = three
    if isinstance(algorithm, AWM):  # the old weights are those that drew: the learner begins there
        drawn_by = learner
    else:
        drawn_by = old if "old" in algorithm.sets else learner
    it = iteration_of(algorithm, learner)
    texts = [drawn_by.encode([text]) for text in it.prompts.texts]
    rewards = torch.cat(
        [
            closeness(picture(it, algorithm, drawn_by, b, text).float(), it.prompts.take([row]))
            for row, (b, text) in enumerate(zip(it.prompts.ids, texts, strict=True))
        ]
    )
    loss = reference(it, algorithm, three, credits(it, algorithm, rewards), drawn_by)
    slopes = torch.autograd.grad(loss, learner.parameters())
    wanted = dict(zip(learner.named_parameters(), slopes, strict=True))
    found, _ = gradient(it, next(iter(algorithm.iteration(it))), algorithm)
    assert apart(found, wanted) < 1e-5


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_at_the_old_weights_nft_awm_and_weighted_regression_agree(flow: bool) -> None:
    """With e = x0_theta - x0: AWM's gradient and RAM's are A grad mean(e^2), DiffusionNFT's is that over mean |e|."""
    shared = SMALL | {"per_prompt": 1, "guidance": 1.0}
    # The learner is the base here, too.
    for algorithm in (
        DiffusionNFT(**shared, kl=0.0, beta=0.5),
        AWM(**shared, kl=0.0, space="x0"),
        RAM(**shared, space="x0"),
    ):
        it = iteration_of(algorithm, Toy(flow=flow, sets=("base", "old")))
        update = next(iter(algorithm.iteration(it)))
        seen = update.batch.seen(it)
        error = seen.believed(1.0).x0 - seen.x0
        w = error.detach().abs().flatten(1).mean(1) if isinstance(algorithm, DiffusionNFT) else 1.0
        value = (update.batch.credit.double() * seen.squares(error, "x0") / w).mean()
        wanted = dict(
            zip(it.policy.named_parameters(), torch.autograd.grad(value, it.policy.parameters()), strict=True)
        )
        assert apart(gradient(it, update, algorithm)[0], wanted) < 1e-5, algorithm


@pytest.mark.parametrize("space", ["x0", "eps", "velocity"])
@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_errors_of_x0_are_errors_of_every_other_kind(space: str, flow: bool) -> None:
    it = iteration_of(AWM(**SMALL), Toy(flow=flow, sets=("base", "old")))
    update = next(iter(AWM(**SMALL).iteration(it)))
    seen = update.batch.seen(it)
    said, eps = seen.believed(2.0), update.batch.eps.double()
    error = {"x0": said.x0 - seen.x0, "eps": said.eps - eps, "velocity": said.velocity - (eps - seen.x0)}[space]
    torch.testing.assert_close(seen.squares(said.x0 - seen.x0, space), error.square().flatten(1).mean(1))


@pytest.mark.parametrize("i", [1, 3, 5])
@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_ram_stands_still_where_the_base_is_tilted(flow: bool, i: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """x0 ~ N(0, 1), A = its first number: tilted by exp(s A) the mean of x0 given x is s sigma^2 / kept higher there.

    kept = alpha^2 + sigma^2. The mean loss is an integral over x and over x0 given x, taken by quadrature; the policy
    is the exact base and a shift of what the network says, at every x the same.
    """
    s, ram = 1e-3, RAM(**SMALL | {"guidance": 1.0}, strength=1e-3, space="velocity" if flow else "eps")
    policy = Toy(flow=flow, spread=0.0)
    it, schedule = iteration_of(ram, policy), policy.schedule(STEPS)
    alpha, sigma = (float(level[i]) for level in (schedule.alpha, schedule.sigma))
    kept, (node, weight) = alpha**2 + sigma**2, np.polynomial.hermite_e.hermegauss(7)
    x, z = (torch.tensor(grid.flatten()) for grid in np.meshgrid(kept**0.5 * node, node))
    x0 = alpha * x / kept + sigma / kept**0.5 * z  # p(x0 | x)
    eps, weights = (x - alpha * x0) / sigma, torch.tensor(np.outer(weight, weight).flatten() / weight.sum() ** 2)
    first = torch.eye(4, dtype=x.dtype)[0].view(4, 1, 1)  # all other numbers are 0, in the noise too
    empty, rows = torch.empty(0), torch.arange(len(x))
    prompts = it.prompts.take([0] * len(x))
    latents = x0.view(-1, 1, 1, 1) * first
    rollout = Rollout(prompts, policy.encode(prompts), empty, empty, empty, empty, latents, empty, {}, x0)
    monkeypatch.setattr(Noised, "eps", eps.view(-1, 1, 1, 1) * first)
    items = Noised(rollout, KEY, 0, rows, torch.full_like(rows, i), rows)

    named = policy.named_parameters()
    tilted = -s * sigma**2 / kept * (1 / sigma if flow else alpha / sigma)  # of v, or of eps
    for shift in (tilted, 0.0, 2 * tilted, -tilted):
        named["last.bias"].data[0] = shift
        loss = (weights * ram.loss(it, items).value).sum()
        ways = torch.autograd.grad(loss, [named["last.bias"], named["last.weight"]])
        wanted = 2 * (shift - tilted) / 4  # a mean over 4 numbers
        assert ways[0].tolist() == pytest.approx([wanted, 0.0, 0.0, 0.0], abs=2e-9)
        assert (float(ways[1].abs().max()) < 1e-2 * abs(tilted)) == (shift == tilted)  # nor along features of x
