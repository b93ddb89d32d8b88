"""TRL's formulas, written out here from what they compute, against ours on random inputs: within 1e-6."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.compat.configs import AlignPropConfig
from tastemaker.compat.translation import settings
from tastemaker.credit import per_prompt, whiten
from tastemaker.iteration import Iteration
from tastemaker.process.prediction import from_eps, from_v
from tastemaker.process.samplers import DDIM
from tastemaker.process.schedule import from_alphas_cumprod
from tastemaker.process.transition import log_prob
from tastemaker.training.trainer import descend
from toy import Toy
from toy_runs import Silence, closeness, gradient, iteration_of, optimizer_of, plan_of

KINDS = {"epsilon": from_eps, "v_prediction": from_v}


# ---- what TRL computes


def step_log_prob(
    output: Tensor, x: Tensor, x1: Tensor, a: Tensor, a1: Tensor, eta: float, kind: str = "epsilon"
) -> Tensor:
    """[B]: the density of x1 after a DDIM step from x, its logarithm averaged over all but the batch.

    a and a1 are the cumulative alphas before and after the step, eta the share of the step's own variance.
    """
    if kind == "epsilon":
        x0, eps = (x - (1 - a).sqrt() * output) / a.sqrt(), output
    else:
        x0, eps = a.sqrt() * x - (1 - a).sqrt() * output, a.sqrt() * output + (1 - a).sqrt() * x
    std = eta * ((1 - a1) / (1 - a) * (1 - a / a1)).sqrt()
    mean = a1.sqrt() * x0 + (1 - a1 - std**2).sqrt() * eps
    density = -((x1 - mean) ** 2) / (2 * std**2) - torch.log(std) - torch.log(torch.sqrt(torch.tensor(2 * np.pi)))
    return density.mean(dim=tuple(range(1, x.ndim)))


def surrogate(advantage: Tensor, ratio: Tensor, clip: float, limit: float) -> Tensor:
    """The mean of the larger of the two losses, advantages cut first."""
    A = torch.clamp(advantage, -limit, limit)
    return torch.mean(torch.maximum(-A * ratio, -A * torch.clamp(ratio, 1 - clip, 1 + clip)))


def differentiated(
    it: Iteration, live: Tensor, *, steps: int, guidance: float, eta: float, to: Callable[[Tensor], Tensor]
) -> Tensor:
    """10 minus the mean reward of AlignProp's chain: all of it with a graph, the noise of a step that lost its coin
    taken out. live [B,T]; the noise that is drawn is ours."""
    policy, ids, schedule = it.policy, it.prompts.ids, it.policy.schedule(steps)
    conditioning = policy.encode(it.prompts)
    x = it.key.noise("x0", 0, ids, policy.latent_shape).double()
    for i in range(steps):
        eps = policy.predict(x, i, schedule, conditioning, guidance).eps
        eps = torch.where(live[:, i].view(-1, 1, 1, 1), eps, eps.detach())
        a, a1 = schedule.alpha[i] ** 2, schedule.alpha[i + 1] ** 2
        std = eta * ((1 - a1) / (1 - a) * (1 - a / a1)).sqrt()
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = a1.sqrt() * x0 + (1 - a1 - std**2).sqrt() * eps
        x = x + std * it.key.noise("chain", i, ids, policy.latent_shape).double()
    return 10.0 - to(policy.decode(x)).mean()


class Tracker:
    """Rewards by prompt: this epoch's are in the memory before its mean and deviation are taken."""

    def __init__(self, size: int, least: int) -> None:
        self.memory: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=size))
        self.least = least

    def update(self, prompts: list[str], rewards: np.ndarray) -> np.ndarray:
        found = np.empty(len(rewards))
        for prompt in sorted(set(prompts)):
            own = np.array([name == prompt for name in prompts])
            self.memory[prompt].extend(rewards[own])
            known = np.array(self.memory[prompt]) if len(self.memory[prompt]) >= self.least else rewards
            found[own] = (rewards[own] - known.mean()) / (known.std() + 1e-6)
        return found


# ---- against ours


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [50, 7])
def test_log_probabilities_are_trls(steps: int, kind: str, eta: float) -> None:
    """Every step of Stable Diffusion's chain, the last one, which ends at the table's first entry, included."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    alphas, times = scheduler.alphas_cumprod.double(), scheduler.timesteps.tolist()
    schedule = from_alphas_cumprod(alphas, times, float(alphas[0]))
    random = torch.Generator().manual_seed(steps)
    apart = []
    for i, t in enumerate(times):
        output, x, z = torch.randn(3, 4, 4, 8, 8, generator=random, dtype=torch.float64)
        p = DDIM(eta).transition(KINDS[kind](output, x, *schedule.at(i, x)), x, i, schedule)
        x1 = p.mean + p.std * z
        theirs = step_log_prob(output, x, x1, alphas[t], alphas[max(t - 1000 // steps, 0)], eta, kind)
        apart.append((log_prob(p, x1) - theirs).abs().max())
    assert max(apart) < 1e-6


def test_the_loss_and_its_gradient_are_trls() -> None:
    """The second update of an epoch, where ratios are not 1 and some are clipped, some advantages cut."""
    algorithm = DDPO(
        images=12,
        updates=2,
        steps=5,
        guidance=3.0,
        clip=2e-3,
        advantage_limit=0.8,
        learning_rate=3e-3,
        weight_decay=0.0,
    )
    policy = Toy()
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=8))
    updates = algorithm.iteration(it)
    descend(it, optimizer_of(algorithm, policy), next(updates), Silence())
    update = next(updates)
    pairs = update.batch
    everyone = torch.as_tensor(it.kept["rollout.reward"])
    rewards = pairs.rollout.reward[pairs.sample]
    advantage = (rewards - everyone.mean()) / (everyone.std(unbiased=False) + 1e-8)

    def theirs() -> tuple[Tensor, Tensor]:
        schedule = policy.schedule(5)
        prediction = policy.predict(pairs.x, pairs.i, schedule, pairs.conditioning, 3.0)
        a, a1 = (schedule.alpha[i].view(-1, 1, 1, 1) ** 2 for i in (pairs.i, pairs.i + 1))
        ratio = torch.exp(step_log_prob(prediction.eps, pairs.x, pairs.x1, a, a1, 1.0) - pairs.old)
        return surrogate(advantage, ratio, 2e-3, 0.8), ratio

    wanted, ratio = theirs()
    outside = ((ratio - 1).abs() > 2e-3).double()
    assert 0 < outside.mean() < 1 and (advantage.abs() > 0.8).any() and (advantage.abs() < 0.8).any()
    slopes = torch.autograd.grad(wanted, policy.parameters())
    found, stats = gradient(it, update, algorithm)
    assert stats["loss"] == pytest.approx(wanted.item(), abs=1e-6)
    assert stats["clip_fraction"] == pytest.approx(outside.mean().item(), abs=1e-6)
    assert stats["approx_kl"] == pytest.approx((0.5 * ratio.log() ** 2).mean().item(), abs=1e-6)
    for slope, ours in zip(slopes, found.values(), strict=True):
        torch.testing.assert_close(ours, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        {},  # a coin for every step
        {"truncated_rand_backprop_minmax": (2, 4), "sample_eta": 0.0},
        {"truncated_backprop_rand": False, "truncated_backprop_timestep": 4},
        {"truncated_backprop_rand": False, "truncated_backprop_timestep": 0, "sample_eta": 0.4},
    ],
)
def test_the_gradient_of_the_other_trainer_is_trls(values: dict[str, Any]) -> None:
    """The drawn steps are ours, and so is the noise: what is differentiated between them is what is compared."""
    config = AlignPropConfig(
        train_batch_size=4,
        train_gradient_accumulation_steps=3,
        sample_num_steps=6,
        sample_guidance_scale=3.0,
        truncated_rand_backprop_minmax=(0, 6),
    )
    algorithm = settings(replace(config, **values), devices=1)["algorithm"]
    policy = Toy()
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=4))
    live = algorithm.truncation.live(it.key, it.prompts.ids, 6)
    if not values:  # steps with a gradient before steps without one: the path past them is what TRL leaves
        assert (live[:, :-1] & ~live[:, 1:]).any() and not live.all(1).any()
    to = partial(closeness, prompts=it.prompts)
    wanted = differentiated(it, live, steps=6, guidance=3.0, eta=algorithm.sampler.eta, to=to)
    slopes = torch.autograd.grad(wanted, policy.parameters())
    found, stats = gradient(it, next(algorithm.iteration(it)), algorithm)
    assert stats["loss"] + 10 == pytest.approx(wanted.item(), abs=1e-6)
    for slope, ours in zip(slopes, found.values(), strict=True):
        torch.testing.assert_close(ours, slope, rtol=1e-6, atol=1e-9)


def test_advantages_are_trls_with_and_without_a_memory_of_prompts() -> None:
    """Over eight epochs: prompts with too few rewards, with enough, and with a full memory."""
    random, history, tracker = np.random.default_rng(0), {}, Tracker(10, 6)
    for epoch in range(8):
        names = [*random.choice(["cat", "dog", "cow"], 7, p=[0.6, 0.3, 0.1]).tolist(), "hen" if epoch % 4 else "cow"]
        names = [*names, "owl"] if epoch == 3 else [*names, "cat"]
        rewards = random.normal(5, 2, 9)
        theirs = tracker.update(names, rewards)
        ours, history = per_prompt(torch.as_tensor(rewards), names, history, buffer=10, minimum=6)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        plain = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        np.testing.assert_allclose(whiten(torch.as_tensor(rewards)), plain, rtol=0, atol=2e-6)
    kept = [len(past) for past in history.values()]
    assert max(kept) == 10 and min(kept) == 1
