import math

import numpy as np
import pytest

from tastemaker.evaluation.statistics import Interval, bootstrap, over_seeds, paired, t_quantile, win_rate


def test_bootstrap_is_the_normal_interval_where_that_is_right() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(values, range(400))
    reach = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach, abs=0.03 * reach)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.03 * reach)
    narrower = bootstrap(values, range(400), level=0.5)
    assert narrower.high - narrower.low == pytest.approx(2 * 0.6745 * values.std() / 20, rel=0.03)


def test_pictures_of_a_prompt_are_resampled_together() -> None:
    prompt_means = np.random.default_rng(1).normal(0, 1, 100)
    once = bootstrap(prompt_means, range(100))
    # eight copies of the same number say nothing new
    eight = bootstrap(np.repeat(prompt_means, 8), np.repeat(np.arange(100), 8).tolist())
    assert eight == pytest.approx(once)
    apart = bootstrap(np.repeat(prompt_means, 8), range(800))
    assert (apart.high - apart.low) * math.sqrt(8) == pytest.approx(once.high - once.low, rel=0.05)


def test_a_prompt_weighs_as_many_pictures_as_it_has() -> None:
    found = bootstrap([0, 0, 0, 4], ["a", "a", "a", "b"])
    assert found == Interval(1.0, 0.0, 4.0)  # both drawn twice happens in a quarter of the resamples each


def test_covers_what_it_claims() -> None:
    rng, hits = np.random.default_rng(2), 0
    for k in range(300):
        truth_and_noise = rng.normal(0, 1, (40, 1)) + rng.normal(0, 1, (40, 4))
        found = bootstrap(truth_and_noise, np.repeat(np.arange(40), 4).tolist(), key=k, resamples=400)
        hits += found.low <= 0 <= found.high
    assert 0.90 < hits / 300 < 0.98


def test_the_key_makes_the_draws() -> None:
    values = np.random.default_rng(3).normal(size=50)
    assert bootstrap(values, range(50), key=("run", 1)) == bootstrap(values, range(50), key=("run", 1))
    assert bootstrap(values, range(50), key=("run", 1)) != bootstrap(values, range(50), key=("run", 2))
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    bootstrap(values, range(50))
    assert (np.random.get_state()[1] == state).all()


def test_many_prompts_are_drawn_in_shares() -> None:
    values = np.random.default_rng(4).normal(size=900)
    found = bootstrap(values, range(900), resamples=3000)  # 2.7 million draws: more than one share
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 30, rel=0.06)


def test_pairing_takes_the_prompts_own_differences_away() -> None:
    rng = np.random.default_rng(6)
    before = rng.normal(0, 10, 100)
    after = before + 0.5 + rng.normal(0, 0.5, 100)
    found = paired(before, after, range(100))
    assert found.clear_of_zero
    assert found.mean == pytest.approx((after - before).mean())
    assert found.high - found.low < 0.3
    assert not paired(before, rng.permutation(after), range(100)).clear_of_zero
    assert paired(after, before, range(100)).high < 0


def test_missing_scores_leave_the_pair_and_are_never_zero() -> None:
    nan = math.nan
    assert paired([1, nan, 3, 5], [2, 9, nan, 6], list("abcd")).mean == 1
    assert win_rate([1, nan, 3, 5], [2, 9, nan, 4], list("abcd")).mean == 0.5
    nothing = bootstrap([nan, nan], ["a", "b"])
    assert all(math.isnan(v) for v in nothing)
    assert not nothing.clear_of_zero
    one = bootstrap([1.0, 2.0, nan], ["a", "a", "b"])
    assert one.mean == 1.5
    assert math.isnan(one.low)


def test_win_rate_against_the_binomial() -> None:
    rng = np.random.default_rng(7)
    before = rng.normal(size=400)
    wins = rng.random(400) < 0.7
    found = win_rate(before, before + np.where(wins, 1, -1), range(400))
    share = wins.mean()
    assert found.mean == pytest.approx(share)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 400), rel=0.05)
    assert win_rate([1, 1, 1, 1], [1, 1, 2, 0], list("abcd")).mean == 0.5  # ties are half


@pytest.mark.parametrize(
    ("degrees", "level", "expected"),  # tables
    [
        (1, 0.95, 12.7062047),
        (2, 0.95, 4.3026527),
        (3, 0.95, 3.1824463),
        (9, 0.95, 2.2621572),
        (30, 0.95, 2.0422725),
        (1000, 0.95, 1.9623391),
        (4, 0.99, 4.6040949),
        (1, 0.5, 1.0),
    ],
)
def test_t(degrees: int, level: float, expected: float) -> None:
    assert t_quantile(degrees, level) == pytest.approx(expected, rel=1e-6)


def test_over_seeds() -> None:
    found = over_seeds([-1.3, -1.0, -1.6])
    assert found == pytest.approx((-1.3, -1.3 - 4.3026527 * 0.3 / math.sqrt(3), -1.3 + 4.3026527 * 0.3 / math.sqrt(3)))
    assert found.clear_of_zero
    assert not over_seeds([-1.3, -1.0, 0.6]).clear_of_zero
    assert math.isnan(over_seeds([1.0]).low)
    assert over_seeds([1.0]).mean == 1
    assert math.isnan(over_seeds([1.0, math.nan, 1.2]).mean)  # a failed seed is not left out
    assert over_seeds([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_errors_and_words() -> None:
    with pytest.raises(ValueError, match="3 values for 2 prompts"):
        bootstrap([1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="2 values before and 3 after"):
        paired([1, 2], [1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="1 degree of freedom or more"):
        t_quantile(0)
    assert str(Interval(-1.3, -1.6, -1.0)) == "-1.3 [-1.6, -1]"
