"""DPOK's and Flow-GRPO's gradient against plain autograd over the published formulas, step by step and alone."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.flow_grpo import FlowGRPO
from tastemaker.process.flow_samplers import CPS, DanceSDE, FlowSDE
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from toy import Toy
from toy_runs import Scorer, apart, closeness, failing, gradient, iteration_of, plan_of

SHARED = {"images": 12, "updates": 1, "steps": 4, "guidance": 2.0, "clip": 0.02, "kl": 0.3}
GROUPS = SHARED | {"per_prompt": 4}


def flat_in(group: int, reward: Scorer = closeness) -> Scorer:
    """The reward, but the same for all pictures of this group of four."""

    def scored(images: Tensor, prompts: Prompts) -> Tensor:
        return torch.where(torch.tensor([b // 4 == group for b in prompts.ids]), 0.7, reward(images, prompts))

    return scored


@contextmanager
def weighing(policy: Toy, weights: Sequence[Tensor]) -> Iterator[None]:
    """The policy with these weights, without a graph."""
    before = [p.data for p in policy.parameters()]
    for p, value in zip(policy.parameters(), weights, strict=True):
        p.data = value
    with torch.no_grad():
        yield
    for p, value in zip(policy.parameters(), before, strict=True):
        p.data = value


def moved(weights: Sequence[Tensor], far: float, seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [w.detach() + far * torch.randn(w.shape, generator=random, dtype=w.dtype) for w in weights]


def step(policy: Toy, algorithm: Any, x: Tensor, i: int, text: str) -> tuple[Tensor, float]:
    """Mean and std of x[i+1], from the papers' formulas; a flow's, where the state is divided by alpha + sigma."""
    schedule, sampler = policy.schedule(algorithm.steps), algorithm.sampler
    alpha, sigma, alpha1, sigma1 = (float(t[k]) for k in (i, i + 1) for t in (schedule.alpha, schedule.sigma))
    x0, eps = policy.predict(x, i, schedule, policy.encode([text]), algorithm.guidance)
    if isinstance(sampler, DDIM):
        std = sampler.eta * sigma1 / sigma * math.sqrt(sigma**2 - (alpha / alpha1 * sigma1) ** 2)
        return alpha1 * x0 + math.sqrt(sigma1**2 - std**2) * eps, std
    if isinstance(sampler, CPS):
        std = sigma1 * math.sin(sampler.eta * math.pi / 2)
        return alpha1 * x0 + math.sqrt(sigma1**2 - std**2) * eps, std
    x, v, total = x / (alpha + sigma), eps - x0, alpha1 + sigma1
    s0, s1 = sigma / (alpha + sigma), sigma1 / total
    at = s1 if s0 == 1 else s0
    s = sampler.a * math.sqrt(s0 / (1 - at)) if isinstance(sampler, FlowSDE) else sampler.eta
    mean = x * (1 + s**2 / (2 * s0) * (s1 - s0)) + v * (1 + s**2 * (1 - s0) / (2 * s0)) * (s1 - s0)
    return total * mean, total * s * math.sqrt(s0 - s1)


def credits(algorithm: Any, r: Tensor) -> Tensor:
    """Advantages [12] in fp32, as they are kept; NaN where a picture is not learned from."""
    r = r.double()
    if isinstance(algorithm, DPOK):
        own = r[r.isfinite()]
        return algorithm.reward_weight * ((r - own.mean()) / (own.std(correction=0) + 1e-6)).float()
    A = torch.full_like(r, torch.nan)
    for group in range(3):
        rows = [b for b in range(4 * group, 4 * group + 4) if r[b].isfinite()]
        for b in rows:
            others = [c for c in rows if c != b] if algorithm.baseline == "leave_one_out" else rows
            spread = {"group": r[rows], "global": r[r.isfinite()]}.get(algorithm.advantage)
            if r[rows].std(correction=0) > 1e-9:
                A[b] = (r[b] - r[others].mean()) / (1 if spread is None else spread.std(correction=0) + 1e-4)
    return A.float()


def reference(policy: Toy, algorithm: Any, it: Any, old: Sequence[Tensor], base: Sequence[Tensor]) -> list[Tensor]:
    """Of one update on all twelve pictures, at the policy's present weights."""
    shape, terms, clip = policy.latent_shape, [], algorithm.clip
    A = credits(algorithm, it.kept["rollout.reward"])
    for b, text in enumerate(it.prompts.texts):
        start = ("x0 of a group", b // 4) if getattr(algorithm, "same_noise", False) else ("x0", b)
        x = it.key.noise(start[0], 0, [start[1]], shape).double()
        for i in range(algorithm.steps):
            with weighing(policy, old):
                before, std = step(policy, algorithm, x, i, text)
                x1 = before + std * it.key.noise("chain", i, [b], shape).double()
            if std > 0 and A[b].isfinite():
                with weighing(policy, base):
                    pretrained, _ = step(policy, algorithm, x, i, text)
                mean, _ = step(policy, algorithm, x, i, text)
                log_ratio = (((x1 - before) ** 2 - (x1 - mean) ** 2) / (2 * std**2)).mean()
                if getattr(algorithm, "recentred", False):
                    log_ratio = log_ratio * std + ((mean - before) ** 2).mean() / (2 * std)
                rho = torch.exp(log_ratio)
                gain = torch.minimum(rho * A[b], rho.clamp(1 - clip, 1 + clip) * A[b])
                terms.append(-gain + algorithm.kl * ((mean - pretrained) ** 2 / (2 * std**2)).mean())
            x = x1
    return list(torch.autograd.grad(torch.stack(terms).mean(), policy.parameters()))


CASES: dict[str, tuple[bool, Algorithm, Scorer]] = {
    "dpok": (False, DPOK(timestep_fraction=1.0, **SHARED), closeness),
    "dpok on a flow": (True, DPOK(timestep_fraction=1.0, sampler=DanceSDE(), **SHARED), failing(lambda b: b == 3)),
    "flow_grpo": (True, FlowGRPO(**GROUPS), closeness),
    "on an eps model": (False, FlowGRPO(**GROUPS), flat_in(1)),
    "by the group": (True, FlowGRPO(advantage="group", **GROUPS), failing(lambda b: b in (0, 5))),
    "leave one out": (True, FlowGRPO(advantage="none", baseline="leave_one_out", **GROUPS), failing(lambda b: b == 5)),
    "recentred": (True, FlowGRPO(recentred=True, **GROUPS), flat_in(0)),
    "recentred, ddim": (False, FlowGRPO(recentred=True, sampler=DDIM(0.7), **GROUPS), closeness),
    "dance": (True, FlowGRPO(same_noise=True, sampler=DanceSDE(), **GROUPS | {"kl": 0.0}), closeness),
    "cps": (True, FlowGRPO(sampler=CPS(), **GROUPS), closeness),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_formulas(name: str) -> None:
    """Drawn by one set of weights, learned by a second, held to a third."""
    flow, algorithm, reward = CASES[name]
    policy = Toy(flow=flow)
    base = [p.detach().clone() for p in policy.parameters()]
    old = moved(base, 0.05, 1)
    for p, value in zip(policy.parameters(), old, strict=True):
        p.data = value.clone()
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=7), reward=reward)
    (update,) = algorithm.iteration(it)
    for p, value in zip(policy.parameters(), moved(old, 0.02, 2), strict=True):
        p.data = value
    wanted = dict(zip(policy.named_parameters(), reference(policy, algorithm, it, old, base), strict=True))
    found, stats = gradient(it, update, algorithm)
    assert 0 < stats["clip_fraction"] < 1  # both branches of the surrogate
    assert apart(found, wanted) < 1e-8
