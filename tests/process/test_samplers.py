"""Samplers keep the marginals, know their random steps, and windows stand where they may."""

import pytest
import torch
from torch import Tensor

from tastemaker.process.flow_samplers import CPS, DanceSDE, FlowSDE
from tastemaker.process.noise import Key
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM, TABLE, FixedWindow, GroupWindows, Sampler, Window, of, random_rows
from tastemaker.process.schedule import Schedule, from_alphas_cumprod


def flow(steps: int, clean: float = 0.0) -> Schedule:
    sigma = torch.linspace(1, clean, steps + 1, dtype=torch.float64)
    return Schedule(1000 * sigma[:-1].float(), 1 - sigma, sigma)


def variance_preserving(steps: int, final: float = 1.0) -> Schedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    grid = torch.linspace(999, 0, steps + 1).round().long().tolist()[:-1]
    return from_alphas_cumprod((1 - betas).cumprod(0), grid, final)


CHAINS = {"flow": flow, "variance_preserving": variance_preserving}


def final_variance(
    sampler: Sampler, schedule: Schedule, centre: float = 1.0, variance: float = 0.25
) -> tuple[float, float]:
    """Mean and variance of x[T] in closed form, for data N(centre, variance) and its exact prediction.

    E[x0 | x] is affine in x, and so is every step's mean: two points of it give the whole Gaussian.
    """
    alpha, sigma = schedule.alpha, schedule.sigma
    m, v = alpha[0] * centre, alpha[0] ** 2 * variance + sigma[0] ** 2
    for i in range(len(schedule)):
        a, s = alpha[i], sigma[i]
        x = torch.stack([m, m + 1]).view(2, 1)
        x0 = centre + a * variance / (a**2 * variance + s**2) * (x - a * centre)
        p = sampler.transition(Prediction(x0, (x - a * x0) / s), x, i, schedule)
        m, gain = p.mean[0, 0], p.mean[1, 0] - p.mean[0, 0]
        v = gain**2 * v + p.std.reshape(()) ** 2
    return float(m), float(v)


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_marginals_are_kept(make: type[Schedule], eta: float) -> None:
    """The picture's distribution is right in the limit of many steps, and the error falls with their number."""
    errors = []
    for steps in (20, 80, 320):
        mean, variance = final_variance(DDIM(eta), make(steps))
        assert abs(mean - 1) < 1e-6
        errors.append(abs(variance / 0.25 - 1))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.06


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_noise_kept_and_noise_added_make_the_next_step_s_noise(make: type[Schedule], eta: float) -> None:
    """With the true x0 and eps, x[i + 1] has exactly the forward process's mean and variance."""
    schedule = make(10)
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for i in range(10):
        picture = DDIM(eta).transition(Prediction(one, none), one, i, schedule)
        noise = DDIM(eta).transition(Prediction(none, one), one, i, schedule)
        assert float(picture.mean) == pytest.approx(float(schedule.alpha[i + 1]), abs=1e-12)
        assert float(noise.mean**2 + noise.std**2) == pytest.approx(float(schedule.sigma[i + 1] ** 2), abs=1e-12)


def test_eta_one_is_the_posterior_of_the_forward_chain() -> None:
    """q(x[i+1] | x[i], x0) by Bayes' rule from the two forward Gaussians, for a flow, where no textbook formula is."""
    schedule = flow(8)
    for i in range(1, 8):
        a, s, a1, s1 = (
            *(table[i] for table in (schedule.alpha, schedule.sigma)),
            schedule.alpha[i + 1],
            schedule.sigma[i + 1],
        )
        step = s**2 - (a / a1) ** 2 * s1**2  # x[i] = (a / a1) x[i + 1] + sqrt(step) noise
        precision = 1 / s1**2 + (a / a1) ** 2 / step
        std = 0.0 if s1 == 0 else float(precision**-0.5)
        assert float(DDIM(1.0).stds(schedule)[i]) == pytest.approx(std, abs=1e-12)


def test_the_ode_of_a_flow_is_an_euler_step() -> None:
    schedule = flow(5)
    x0, eps = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(5):
        a, s = schedule.alpha[i], schedule.sigma[i]
        x, p = a * x0 + s * eps, Prediction(x0, eps)
        found = DDIM(0.0).transition(p, x, i, schedule)
        torch.testing.assert_close(found.mean, x + (schedule.sigma[i + 1] - s) * p.velocity)
        assert float(found.std) == 0


def test_which_steps_are_random_is_known_without_a_network() -> None:
    assert (DDIM(0.0).stds(variance_preserving(6)) == 0).all()
    assert (DDIM(1.0).stds(variance_preserving(6, final=0.9999)) > 0).all()
    assert (DDIM(1.0).stds(variance_preserving(6)) > 0).tolist() == [True] * 5 + [False]
    schedule = from_alphas_cumprod(torch.tensor([0.75, 0.5, 0.1]), [2, 1, 0], 0.75)  # ends where its last step begins
    assert (DDIM(1.0).stds(schedule) > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta of ddim"):
        DDIM(eta)


def both(sampler: Sampler, i: int | Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    x0, eps, x = torch.randn(3, 10, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    p = sampler.transition(Prediction(x0, eps), x, i, schedule)
    return p.mean, p.std.expand(10, 1)


def test_a_window_is_random_inside_and_the_ode_outside() -> None:
    schedule, window = variance_preserving(10), FixedWindow(DDIM(0.8), size=3, start=2)
    assert (window.stds(schedule) > 0).tolist() == [2 <= i < 5 for i in range(10)]
    steps = torch.arange(10)
    mean, std = both(window, steps, schedule)
    for i in range(10):
        wanted = both(DDIM(0.8) if 2 <= i < 5 else DDIM(0.0), i, schedule)
        found = both(window, i, schedule)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
        assert torch.equal(mean[i], wanted[0][i]) and torch.equal(std[i], wanted[1][i])


def test_windows_are_drawn_by_the_key_within_their_bounds() -> None:
    schedule, window = variance_preserving(10), Window(DDIM(), size=2, first=1, last=5)
    drawn = [window.drawn(Key(0, k), schedule) for k in range(60)]
    assert {fixed.start for fixed in drawn} == {1, 2, 3, 4}
    assert drawn == [window.drawn(Key(0, k), schedule) for k in range(60)]
    assert all(int((fixed.stds(schedule) > 0).sum()) == 2 for fixed in drawn)


def test_a_window_counts_before_it_is_drawn_and_only_that() -> None:
    schedule = variance_preserving(10)
    window = Window(DDIM(), size=4)
    assert int((window.stds(schedule) > 0).sum()) == 4
    with pytest.raises(RuntimeError, match="drawn"):
        both(window, 0, schedule)
    assert {window.drawn(Key(0, k), schedule).start for k in range(60)} == {0, 1, 2, 3, 4, 5}  # step 9 has no noise


def test_every_group_has_a_window_of_its_own() -> None:
    """Drawn by the key and the group's number alone, whatever else is in the call."""
    schedule, window = variance_preserving(10), Window(DDIM(0.8), size=2, first=1, last=6, each="group")
    assert int((window.stds(schedule) > 0).sum()) == 2  # it counts as any window does
    drawn = window.drawn(Key(0, 0), schedule)
    assert isinstance(drawn, GroupWindows) and (drawn.stds(schedule) > 0).sum() == 2
    with pytest.raises(RuntimeError, match="groups"):
        both(drawn, 0, schedule)
    groups = [0, 0, 1, 7, 7, 2, 3, 4, 5, 6]
    fixed = of(drawn, groups)
    steps = random_rows(fixed, schedule, 10)
    assert steps.shape == (10, 2) and (steps[:, 1] == steps[:, 0] + 1).all()
    assert steps[0, 0] == steps[1, 0] and steps[3, 0] == steps[4, 0] and set(steps[:, 0].tolist()) <= {1, 2, 3, 4, 5}
    assert len(set(steps[:, 0].tolist())) > 2
    assert torch.equal(random_rows(of(drawn, groups[3:5]), schedule, 2), steps[3:5])
    assert not torch.equal(random_rows(of(window.drawn(Key(0, 1), schedule), groups), schedule, 10), steps)
    assert (fixed.stds(schedule) > 0).nonzero().flatten().tolist() == sorted(set(steps.flatten().tolist()))
    for i in range(10):
        inside, outside = both(DDIM(0.8), i, schedule), both(DDIM(0.0), i, schedule)
        for call in (i, torch.full((10,), i)):
            mean, std = both(fixed, call, schedule)
            for row in range(10):
                wanted = inside if i in steps[row].tolist() else outside
                assert torch.equal(mean[row], wanted[0][row]) and torch.equal(std[row], wanted[1][row])
    assert of(DDIM(), groups) == DDIM() and random_rows(DDIM(), schedule, 2).tolist() == [list(range(9))] * 2


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        Window(DDIM(), size=0)
    with pytest.raises(ValueError, match="counted from 0"):
        Window(DDIM(), size=1, first=-1)
    with pytest.raises(ValueError, match="no 3 steps"):
        Window(DDIM(), size=3, first=2, last=3)
    with pytest.raises(ValueError, match=r"^inside is a window, .* such as ddim"):
        Window(Window(DDIM(), size=3), size=1)
    for window in (Window(DDIM(0.0), size=1), Window(DDIM(), size=10), Window(DDIM(), size=1, first=9)):
        with pytest.raises(ValueError, match="consecutive random steps"):
            window.drawn(Key(0, 0), variance_preserving(10))


def test_the_table_leads_to_the_classes() -> None:
    kinds = {"ddim": DDIM, "flow_sde": FlowSDE, "dance_sde": DanceSDE, "cps": CPS, "window": Window}
    assert TABLE == {name: f"{kind.__module__}:{kind.__name__}" for name, kind in kinds.items()}
