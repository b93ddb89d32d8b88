"""Which steps keep their graph: as announced, drawn for each picture from its id, and never none."""

import pytest
import torch

from tastemaker.process.noise import Key
from tastemaker.process.truncation import TABLE, Fixed, Gaussian, PerStep, Truncation, Uniform

KEY, STEPS, MANY = Key(3, 0), 8, range(3000)
RULES: list[Truncation] = [
    Fixed(),
    Fixed(3),
    Fixed(STEPS),
    Uniform(),
    Uniform(0.3, 0.6),
    Uniform(1.0, 1.0),
    Gaussian(),
    Gaussian(0.5, 0.3),
    Gaussian(0.6, 0.0),
    Gaussian(0.0, 1.0),
    PerStep(),
    PerStep(0.25, 0.75),
    PerStep(0.5, 0.5),
    PerStep(1.0, 1.0),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_picture_has_a_live_step_and_as_many_as_expected(rule: Truncation) -> None:
    live = rule.live(KEY, MANY, STEPS)
    assert live.shape == (len(MANY), STEPS) and live.dtype == torch.bool
    counts = live.sum(1)
    mean, most = rule.expected(STEPS)
    assert counts.min() >= 1 and counts.max() <= most
    assert abs(float(counts.float().mean()) - mean) < 4 * float(counts.float().std()) / len(MANY) ** 0.5 + 1e-6
    if most <= 3 or isinstance(rule, Uniform):
        assert counts.max() == most
    assert rule.live(KEY, [], STEPS).shape == (0, STEPS)
    if rule not in (Fixed(3), Fixed(STEPS)):
        assert rule.live(KEY, [5], 1).tolist() == [[True]]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_picture_depends_on_its_id_and_the_iteration_alone(rule: Truncation) -> None:
    whole = rule.live(KEY, range(40), STEPS)
    assert torch.equal(rule.live(KEY, [31, 7, 7], STEPS), whole[[31, 7, 7]])
    settled = rule.expected(STEPS)[0] == rule.expected(STEPS)[1]
    assert torch.equal(rule.live(Key(3, 1), range(40), STEPS), whole) == settled
    assert (len(whole.unique(dim=0)) == 1) == settled


@pytest.mark.parametrize("rule", [r for r in RULES if not isinstance(r, PerStep)], ids=repr)
def test_the_last_steps_are_live_without_gaps(rule: Truncation) -> None:
    live = rule.live(KEY, range(200), STEPS)
    assert live[:, -1].all() and (live[:, 1:] >= live[:, :-1]).all()


def test_fixed_is_the_last_k() -> None:
    assert Fixed(3).live(KEY, [0, 1], 5).tolist() == [[False, False, True, True, True]] * 2
    assert Fixed(3).expected(5) == (3, 3)
    for ask in (lambda: Fixed(6).live(KEY, [0], 5), lambda: Fixed(6).expected(5)):
        with pytest.raises(ValueError, match="k is 6, but the chain has 5 steps: lower k, or raise steps"):
            ask()


def test_uniform_draws_every_length_equally_often() -> None:
    """Of the T + 1 places, noise to picture, the last one is the last step too: it is always live."""
    share = Uniform().live(KEY, MANY, STEPS).sum(1).bincount(minlength=STEPS + 1) / len(MANY)
    wanted = torch.tensor([0.0, 2.0, *[1.0] * (STEPS - 1)]) / (STEPS + 1)
    assert (share - wanted).abs().max() < 4 * (2 / 9 / len(MANY)) ** 0.5
    assert set(Uniform(0.25, 0.5).live(KEY, range(99), STEPS).sum(1).tolist()) == {4, 5, 6}
    assert Uniform().expected(50)[0] == pytest.approx(25 + 1 / 51)


def test_gaussian_is_the_authors() -> None:
    """42 +- 5 of 50 steps keep no graph."""
    first = 50 - Gaussian().live(KEY, MANY, 50).sum(1).float()
    assert abs(float(first.mean()) - 41.9) < 0.3 and abs(float(first.std()) - 4.7) < 0.3
    assert first.max() == 49


def test_per_step_tosses_a_coin_at_every_step() -> None:
    live = PerStep().live(KEY, MANY, STEPS)
    chance = torch.arange(1, STEPS + 1) / (STEPS + 1)
    none = (1 - chance).prod()
    wanted = chance + none * (torch.arange(STEPS) == STEPS - 1)
    assert (live.float().mean(0) - wanted).abs().max() < 4 * 0.5 / len(MANY) ** 0.5
    both = (live[:, 3] & live[:, 6]).float().mean()
    assert abs(float(both - chance[3] * chance[6])) < 4 * 0.5 / len(MANY) ** 0.5  # independent
    assert ((~live[:, 1:]) & live[:, :-1]).any(1).float().mean() > 0.5  # idle steps in between


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fixed(0), "k is 0; at least 1 step has to be live"),
        (lambda: Uniform(0.6, 0.5), "low is 0.6 and high 0.5; they are shares of the chain, 0 <= low <= high <= 1"),
        (lambda: Uniform(0.0, 35), "low is 0.0 and high 35; they are shares of the chain"),
        (lambda: PerStep(-0.1, 1.0), "low is -0.1 and high 1.0; they are shares of the chain"),
        (lambda: Gaussian(42.0, 5.0), "mean is 42.0; it is a share of the chain, between 0 and 1"),
        (lambda: Gaussian(0.8, -1.0), "std is -1.0; it must be at least 0"),
        (lambda: Gaussian(0.8, float("nan")), "std is nan; it must be at least 0"),
    ],
)
def test_what_is_no_rule_is_refused(make: type[Truncation], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_the_table_names_them_all() -> None:
    assert {entry.partition(":")[2] for entry in TABLE.values()} == {type(rule).__name__ for rule in RULES}
