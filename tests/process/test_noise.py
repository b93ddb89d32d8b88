"""Noise depends on what it is for and on nothing else."""

import pytest
import torch

from tastemaker.process.noise import Key

KEY = Key(7, 3)


def test_a_row_depends_on_its_own_sample_only() -> None:
    whole = KEY.noise("chain", 2, [5, 0, 9], (4, 3, 3))
    assert whole.shape == (3, 4, 3, 3)
    assert whole.dtype == torch.float32
    assert torch.equal(whole[[2, 0]], KEY.noise("chain", 2, [9, 5], (4, 3, 3)))
    assert KEY.noise("chain", 2, [], (4, 3, 3)).shape == (0, 4, 3, 3)


def test_everything_in_the_key_matters() -> None:
    draws = [
        key.noise(purpose, i, [sample], (2,))
        for key in (KEY, Key(7, 4), Key(8, 3), Key(7, "evaluation"), Key(7, "3"))
        for purpose, i, sample in (("chain", 2, 5), ("chain", 5, 2), ("chain", 2, 6), ("chain", 3, 5), ("start", 2, 5))
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)


def test_it_is_standard_normal() -> None:
    noise = KEY.noise("chain", 0, range(64), (4, 16, 16))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    between = torch.corrcoef(noise.flatten(1)) - torch.eye(64)
    assert float(between.abs().max()) < 0.2  # 1,024 numbers a row: 6 standard errors


def test_no_global_generator_or_default_takes_part() -> None:
    before = torch.get_rng_state()
    noise = KEY.noise("chain", 1, [1], (3,))
    torch.manual_seed(12)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(noise, KEY.noise("chain", 1, [1], (3,)))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_rng_state(before)


def test_numbers_of_any_make_are_the_same_purpose() -> None:
    one, other = KEY.noise("chain", 1, [4], (3,)), Key(7, 3).noise("chain", 1, torch.tensor([4]).numpy(), (3,))
    assert torch.equal(one, other)
    with pytest.raises(TypeError, match="words, whole numbers"):
        KEY.generator(object())
    with pytest.raises(TypeError, match="words, whole numbers"):
        KEY.generator(0.5)


def test_permutations_and_choices() -> None:
    order = KEY.permutation(50, "order", 1)
    assert sorted(order) == list(range(50))
    assert order == KEY.permutation(50, "order", 1) != KEY.permutation(50, "order", 2)
    assert KEY.random("window").random() == KEY.random("window").random() != KEY.random("other").random()


def test_the_definition_does_not_drift() -> None:
    """Other numbers here would change every resumed run. Nothing rests on hash(), which is salted per process."""
    assert KEY.generator("chain", 2, 5).initial_seed() == 447864691524219503
    assert KEY.generator("chain", (2, "a")).initial_seed() == Key(7, 3).generator("chain", (2, "a")).initial_seed()
