"""Flow-GRPO's, DanceGRPO's and CPS's kernels: the published formulas, on any schedule, and the marginals they leave."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tastemaker.process.flow_samplers import CPS, DanceSDE, FlowSDE
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM, Sampler, Window
from tastemaker.process.schedule import Schedule
from tastemaker.process.transition import Transition, draw, kl, log_prob

SDES = [FlowSDE(), FlowSDE(1.2), DanceSDE(), DanceSDE(0.9)]


def flow(steps: int, dtype: torch.dtype = torch.float64) -> Schedule:
    noise = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return Schedule(torch.zeros(steps), (1 - noise).to(dtype), noise.to(dtype))


def variance_preserving(steps: int, dtype: torch.dtype = torch.float64) -> Schedule:
    """Nearly pure noise to nearly none."""
    angle = torch.linspace(1.5, 0.02, steps + 1, dtype=torch.float64)
    return Schedule(torch.zeros(steps), angle.cos().to(dtype), angle.sin().to(dtype))


def ends(rows: int) -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, rows, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x0, eps


# ---- the formulas


@pytest.mark.parametrize("sampler", SDES, ids=str)
def test_on_a_flow_the_sdes_are_the_published_formulas(sampler: FlowSDE | DanceSDE) -> None:
    """With x and v, as their code writes them; x0 and eps do not occur."""
    schedule, (x0, eps) = flow(7), ends(4)
    for i in range(7):
        sigma, after = 1 - i / 7, 1 - (i + 1) / 7
        x, v, dt = (1 - sigma) * x0 + sigma * eps, eps - x0, after - sigma
        at = 1 - 1 / 7 if i == 0 else sigma
        s = sampler.a * math.sqrt(sigma / (1 - at)) if isinstance(sampler, FlowSDE) else sampler.eta
        mean = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
        found = sampler.transition(Prediction(x0, eps), x, i, schedule)
        torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
        assert float(found.std) == pytest.approx(s * math.sqrt(-dt), rel=1e-12)
        assert torch.equal(found.std, sampler.stds(schedule)[i])


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_on_a_flow_cps_is_the_published_formula(eta: float) -> None:
    schedule, (x0, eps) = flow(7), ends(4)
    for i in range(7):
        sigma, after = 1 - i / 7, 1 - (i + 1) / 7
        x, v = (1 - sigma) * x0 + sigma * eps, eps - x0
        s = after * math.sin(eta * math.pi / 2)
        mean = (1 - after) * (x - sigma * v) + math.sqrt(after**2 - s**2) * (x + (1 - sigma) * v)
        found = CPS(eta).transition(Prediction(x0, eps), x, i, schedule)
        torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
        assert float(found.std) == pytest.approx(s, abs=1e-15)
    assert (CPS(eta).stds(schedule) > 0).tolist() == [True] * 6 + [False]


@pytest.mark.parametrize("sampler", [*SDES, CPS(), CPS(0.2)], ids=str)
def test_any_other_schedule_is_a_flow_but_for_a_factor(sampler: Sampler) -> None:
    """Divide the state by alpha + sigma, step as a flow, multiply by the next alpha + sigma."""
    schedule, (x0, eps) = variance_preserving(9), ends(4)
    total = schedule.alpha + schedule.sigma
    straight = Schedule(schedule.t, schedule.alpha / total, schedule.sigma / total)
    for i in range(9):
        x = schedule.alpha[i] * x0 + schedule.sigma[i] * eps
        wanted = sampler.transition(Prediction(x0, eps), x / total[i], i, straight)
        found = sampler.transition(Prediction(x0, eps), x, i, schedule)
        torch.testing.assert_close(found.mean, total[i + 1] * wanted.mean, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found.std, total[i + 1] * wanted.std, rtol=1e-11, atol=0)


@pytest.mark.parametrize("make", [flow, variance_preserving])
@pytest.mark.parametrize("sampler", [*SDES, CPS()], ids=str)
def test_steps_of_rows_are_those_of_numbers(sampler: Sampler, make: Callable[..., Schedule]) -> None:
    schedule, (x0, eps) = make(6, torch.float32), ends(6)
    x0, eps = x0.float(), eps.float()
    mixed = sampler.transition(Prediction(x0, eps), x0, torch.arange(6), schedule)
    assert mixed.mean.dtype == mixed.std.dtype == sampler.stds(schedule).dtype == torch.float32
    for i in range(6):
        one = sampler.transition(Prediction(x0, eps), x0, i, schedule)
        assert torch.equal(one.mean[i], mixed.mean[i]) and torch.equal(one.std, mixed.std[i, 0])
        assert torch.equal(one.std, sampler.stds(schedule)[i])


def test_the_last_step_of_an_sde_is_random_and_a_window_ends_without_noise() -> None:
    schedule = flow(10)
    assert float(FlowSDE().stds(schedule)[-1]) == pytest.approx(0.7 * 0.1 / math.sqrt(0.9))
    assert float(DanceSDE().stds(schedule)[-1]) == pytest.approx(0.3 * math.sqrt(0.1))
    assert (Window(FlowSDE(), 9, last=8).stds(schedule) > 0).tolist() == [True] * 9 + [False]


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_pure_noise_is_divided_by_what_the_next_step_has_of_a_picture(steps: int) -> None:
    """Also where alpha[0] is only nearly 0, as tables of some models have it."""
    for first in (1.0, 1 - 1e-7, 1 - 2e-4):
        schedule = flow(steps)
        schedule.sigma[0], schedule.alpha[0] = first, 1 - first
        if steps == 1:
            continue  # nothing comes after it
        stds = FlowSDE().stds(schedule)
        second = 1 - 1 / steps
        wanted = 0.7 * math.sqrt(first / (1 - second)) * math.sqrt(first - second)
        assert stds.isfinite().all() and float(stds[0]) == pytest.approx(wanted)


def test_a_chain_of_one_step_from_pure_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flow_sde has no noise level for a chain of 1 step.*steps"):
        FlowSDE().stds(flow(1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FlowSDE(0.0), "a of flow_sde is 0.0; it must be above 0. Without noise: ddim with eta 0"),
        (lambda: DanceSDE(-1.0), "eta of dance_sde is -1.0; it must be above 0"),
        (lambda: CPS(1.2), r"eta of cps is 1.2; it lies between 0 \(deterministic\) and 1"),
        (lambda: CPS(float("nan")), "eta of cps is nan"),
    ],
)
def test_levels_out_of_range_are_refused(make: Callable[[], Sampler], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# ---- probabilities


@pytest.mark.parametrize("sampler", [FlowSDE(), DanceSDE(), CPS()], ids=str)
def test_log_prob_and_kl_are_those_of_normal_distributions(sampler: Sampler) -> None:
    schedule, (x0, eps) = variance_preserving(8), ends(4)
    for i in range(7):
        p, q = (sampler.transition(Prediction(x0 + far, eps), x0, i, schedule) for far in (0.0, 0.1))
        x = draw(p, eps.flip(0))
        ours, theirs = Normal(p.mean, p.std), Normal(q.mean, q.std)
        torch.testing.assert_close(log_prob(p, x), ours.log_prob(x).mean(1))
        torch.testing.assert_close(kl(p, q), torch.distributions.kl_divergence(ours, theirs).mean(1))


def test_the_log_probability_is_flow_grpos() -> None:
    schedule, (x0, eps) = flow(10), ends(4)
    for i in range(1, 10):
        sigma, dt = 1 - i / 10, -1 / 10
        s = 0.7 * math.sqrt(sigma / (1 - sigma))
        p = FlowSDE().transition(Prediction(x0, eps), x0, i, schedule)
        x = draw(p, eps.flip(0))
        density = (
            -((x - p.mean) ** 2) / (2 * s**2 * -dt) - math.log(s * math.sqrt(-dt)) - math.log(math.sqrt(2 * math.pi))
        )
        torch.testing.assert_close(log_prob(p, x), density.mean(1))


# ---- marginals


def exact(x: Tensor, i: int, schedule: Schedule) -> Prediction:
    """What a perfect network says where the data are N(1, 0.25)."""
    alpha, sigma = schedule.alpha[i], schedule.sigma[i]
    x0 = 1 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (x - alpha)
    return Prediction(x0, (x - alpha * x0) / sigma)


def last(sampler: Sampler, schedule: Schedule) -> tuple[float, float]:
    """Mean and variance of x[T] over alpha, less the noise that belongs there, in closed form: all steps are affine."""
    mean, variance = schedule.alpha[0], 0.25 * schedule.alpha[0] ** 2 + schedule.sigma[0] ** 2
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for i in range(len(schedule)):
        p: Transition = sampler.transition(exact(points, i, schedule), points, i, schedule)
        offset, slope = p.mean[0, 0], p.mean[1, 0] - p.mean[0, 0]
        mean, variance = slope * mean + offset, slope**2 * variance + p.std.flatten()[0] ** 2
    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    return float(mean / alpha), float((variance - sigma**2) / alpha**2)


@pytest.mark.parametrize("make", [flow, variance_preserving])
@pytest.mark.parametrize("sampler", [DDIM(0.0), DDIM(1.0), *SDES], ids=str)
def test_every_kernel_but_cps_keeps_the_marginals(sampler: Sampler, make: Callable[..., Schedule]) -> None:
    """The error of the last variance goes to 0 as steps grow, nearly as fast as their number grows."""
    off = [abs(last(sampler, make(steps))[1] - 0.25) for steps in (25, 100, 400)]
    assert off[2] < 0.005 and off[2] < off[0] / 5
    assert last(sampler, make(400))[0] == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(
    ("sampler", "wanted"),
    [
        (DDIM(0.0), (0.187, 0.235, 0.245)),
        (FlowSDE(), (0.225, 0.246, 0.246)),
        (DanceSDE(), (0.194, 0.235, 0.241)),
        (DDIM(1.0), (0.148, 0.209, 0.234)),
        (CPS(), (0.125, 0.145, 0.159)),
    ],
    ids=str,
)
def test_the_variance_left_is_what_was_measured(sampler: Sampler, wanted: tuple[float, ...]) -> None:
    """Of 0.25, after 10, 40 and 100 steps of a flow; measured with 4,000 samples, so to 0.012 or two errors."""
    assert [last(sampler, flow(steps))[1] for steps in (10, 40, 100)] == pytest.approx(wanted, abs=0.012)


@pytest.mark.parametrize("make", [flow, variance_preserving])
def test_cps_loses_a_third_of_the_variance_however_many_steps(make: Callable[..., Schedule]) -> None:
    assert 0.13 < last(CPS(), make(100))[1] < 0.18 and 0.14 < last(CPS(), make(1600))[1] < 0.18
    assert last(CPS(0.0), make(400))[1] == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("make", [flow, variance_preserving])
@pytest.mark.parametrize("sampler", [FlowSDE(), DanceSDE()], ids=str)
def test_so_do_samples_of_a_mixture(sampler: Sampler, make: Callable[..., Schedule]) -> None:
    """Half N(-1, 0.04), half N(1.5, 0.04): mean 0.25, variance 0.04 + 1.5625, within Monte Carlo error of 4,000."""
    schedule, random = make(200), torch.Generator().manual_seed(1)
    centres = torch.tensor([-1.0, 1.5], dtype=torch.float64)
    x = schedule.sigma[0] * torch.randn(4000, 1, generator=random, dtype=torch.float64) + schedule.alpha[0] * 0.25
    for i in range(len(schedule)):
        alpha, sigma = schedule.alpha[i], schedule.sigma[i]
        spread = 0.04 * alpha**2 + sigma**2
        weight = torch.softmax(-((x - alpha * centres) ** 2) / (2 * spread), 1)
        x0 = (weight * (centres + 0.04 * alpha / spread * (x - alpha * centres))).sum(1, keepdim=True)
        p = sampler.transition(Prediction(x0, (x - alpha * x0) / sigma), x, i, schedule)
        x = draw(p, torch.randn(4000, 1, generator=random, dtype=torch.float64))
    assert float(x.mean()) == pytest.approx(0.25, abs=0.1)
    assert float(x.var()) == pytest.approx(1.6025, abs=0.1)
    assert float((x > 0.25).double().mean()) == pytest.approx(0.5, abs=0.04)
    inner = x[x > 0.25]
    assert float(inner.std()) == pytest.approx(0.2, abs=0.02)
