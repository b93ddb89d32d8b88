"""Our DDIM against diffusers' DDIMScheduler.step: mean and deviation of every step."""

from itertools import product

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tastemaker.process.prediction import from_eps, from_v
from tastemaker.process.samplers import DDIM
from tastemaker.process.schedule import Schedule, from_alphas_cumprod
from tastemaker.process.transition import draw

CHANGE = {"epsilon": from_eps, "v_prediction": from_v}
ON_GRID = [  # where 1000 // T is the distance of every two timesteps, so that diffusers too follows the grid
    *(("leading", offset, steps) for offset, steps in product((0, 1), (1, 7, 20, 30, 50))),
    ("leading", 0, 200),
    ("trailing", 0, 10),
    ("trailing", 0, 50),
]
OFF_GRID = [("trailing", 0, 30), ("trailing", 0, 7), ("linspace", 0, 10), ("linspace", 0, 50)]


def theirs(spacing: str, offset: int, steps: int, kind: str, one: bool, dtype: torch.dtype) -> DDIMScheduler:
    """Stable Diffusion's scheduler; in fp64 its own table is only widened, so both sides start from the same one."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=one,
        steps_offset=offset,
        timestep_spacing=spacing,
        prediction_type=kind,
    )
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(dtype)
    return scheduler


def ours(scheduler: DDIMScheduler) -> Schedule:
    return from_alphas_cumprod(
        scheduler.alphas_cumprod, scheduler.timesteps.tolist(), float(scheduler.final_alpha_cumprod)
    )


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny))


def worst(scheduler: DDIMScheduler, eta: float, dtype: torch.dtype, *, follow: bool) -> float:
    """The largest relative error of mean and deviation over all steps.

    `follow` tells diffusers each step's true distance, by way of the two numbers whose quotient it takes for it.
    """
    schedule, change = ours(scheduler), CHANGE[scheduler.config.prediction_type]
    grid = [*scheduler.timesteps.tolist(), -1]
    assert schedule.t.tolist() == grid[:-1]
    random = torch.Generator().manual_seed(0)
    errors = []
    for i, t in enumerate(grid[:-1]):
        x, out, noise = torch.randn(3, 2, 4, 3, 3, generator=random, dtype=torch.float64).to(dtype)
        p = DDIM(eta).transition(change(out, x, *schedule.at(i, x)), x, i, schedule)
        if follow:
            scheduler.register_to_config(num_train_timesteps=t - grid[i + 1])
            scheduler.num_inference_steps = 1
        mean = scheduler.step(out, t, x, eta, variance_noise=torch.zeros_like(x)).prev_sample
        noised = scheduler.step(out, t, x, eta, variance_noise=noise).prev_sample
        errors.append(off(p.mean, mean))
        errors.append(off(draw(p, noise), noised))
        # The deviation by itself, over noise large enough that the mean's rounding does not drown it.
        big = torch.full_like(x, 1e6)
        std = (scheduler.step(out, t, x, eta, variance_noise=big).prev_sample - mean) / 1e6
        errors.append(off((p.std + torch.zeros_like(x)), std) if std.abs().max() > 0 else float(p.std))
    return max(errors)


@pytest.mark.parametrize(("spacing", "offset", "steps"), ON_GRID)
@pytest.mark.parametrize("kind", CHANGE)
def test_every_step_is_diffusers_step(spacing: str, offset: int, steps: int, kind: str) -> None:
    for one, eta in product((True, False), (0.0, 0.5, 1.0)):
        assert worst(theirs(spacing, offset, steps, kind, one, torch.float64), eta, torch.float64, follow=False) < 1e-9


@pytest.mark.parametrize(("spacing", "offset", "steps"), OFF_GRID)
@pytest.mark.parametrize("kind", CHANGE)
def test_where_diffusers_leaves_its_grid_we_make_its_step_to_the_next_timestep(
    spacing: str, offset: int, steps: int, kind: str
) -> None:
    for one, eta in product((True, False), (0.0, 0.5, 1.0)):
        scheduler = theirs(spacing, offset, steps, kind, one, torch.float64)
        assert worst(scheduler, eta, torch.float64, follow=True) < 1e-9
    unchanged = theirs(spacing, offset, steps, kind, True, torch.float64)
    assert worst(unchanged, 1.0, torch.float64, follow=False) > 1e-4  # so the departure is one


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("kind", CHANGE)
def test_fp32_is_as_good(steps: int, kind: str) -> None:
    """1e-5: diffusers' own fp32 takes 1 - alpha / alpha' from two nearly equal numbers."""
    for one, eta in product((True, False), (0.0, 0.5, 1.0)):
        assert worst(theirs("leading", 1, steps, kind, one, torch.float32), eta, torch.float32, follow=False) < 1e-5


def test_our_fp32_keeps_six_digits_of_the_deviation() -> None:
    """Against fp64, at 50 steps: better than the formula with a difference of squares."""
    wide = theirs("leading", 1, 50, "epsilon", False, torch.float64)
    narrow = theirs("leading", 1, 50, "epsilon", False, torch.float32)
    exact = DDIM().stds(ours(wide))
    assert ours(narrow).alpha.dtype == torch.float32
    torch.testing.assert_close(DDIM().stds(ours(narrow)).double(), exact, rtol=1e-6, atol=0)


def test_rows_of_a_batch_may_be_at_different_steps() -> None:
    schedule = ours(theirs("leading", 1, 20, "epsilon", False, torch.float32))
    x, eps = torch.randn(2, 20, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    i = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    p = DDIM(0.7).transition(from_eps(eps, x, *schedule.at(i, x)), x, i, schedule)
    for b, step in enumerate(i.tolist()):
        one, own = slice(b, b + 1), schedule.at(step, x)
        q = DDIM(0.7).transition(from_eps(eps[one], x[one], *own), x[one], step, schedule)
        assert torch.equal(p.mean[one], q.mean)  # bit for bit: else a ratio of policies is not 1 before the first step
        assert float(p.std[b]) == float(q.std)
