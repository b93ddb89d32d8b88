"""Credit against NumPy's arithmetic, and at its edges: constants, failures, whole numbers."""

import json
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor

from tastemaker.credit import equal, leave_one_out, per_group, per_prompt, relative, whiten

NAN = float("nan")
R = torch.tensor([3.0, -1.0, 0.5, 7.25, 2.0, 2.5])
GROUPS = [4, 9, 4, 9, 4, 9]


def of_prompts(r: Tensor) -> Tensor:
    return per_prompt(r, ["a", "b"] * (len(r) // 2), {}, buffer=8, minimum=2)[0]


def of_groups(r: Tensor) -> Tensor:
    return per_group(r, [row % 2 for row in range(len(r))])


def without_one(r: Tensor) -> Tensor:
    return leave_one_out(r, [row % 2 for row in range(len(r))])


ALL = [whiten, of_groups, without_one, of_prompts]
Credit = Callable[[Tensor], Tensor]


def test_whiten() -> None:
    found, r = whiten(R), R.double().numpy()
    assert found.dtype == torch.float32
    numpy.testing.assert_allclose(found.numpy(), (r - r.mean()) / (r.std() + 1e-6), rtol=1e-6)


def test_per_group() -> None:
    for groups in (GROUPS, torch.tensor(GROUPS) + 2**40):
        found = per_group(R, groups).numpy()
        for own in (slice(0, None, 2), slice(1, None, 2)):
            r = R.double().numpy()[own]
            numpy.testing.assert_allclose(found[own], (r - r.mean()) / (r.std() + 1e-4), rtol=1e-6)


def test_leave_one_out() -> None:
    found = leave_one_out(R, GROUPS)
    for row in range(6):
        others = [float(R[other]) for other in range(6) if other != row and GROUPS[other] == GROUPS[row]]
        assert float(found[row]) == pytest.approx(float(R[row]) - sum(others) / len(others), rel=1e-6)


@pytest.mark.parametrize("credit", ALL)
@pytest.mark.parametrize("value", [0.1, -1e9, 1e-12, 123456.789])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exact_zeros(credit: Credit, value: float, dtype: torch.dtype) -> None:
    for n in (6, 98):
        assert torch.equal(credit(torch.full((n,), value, dtype=dtype)), torch.zeros(n, dtype=dtype))
        some = torch.full((n,), value, dtype=dtype)
        some[:2] = NAN
        assert torch.equal(credit(some)[2:], torch.zeros(n - 2, dtype=dtype))


@pytest.mark.parametrize("credit", ALL)
def test_a_failed_score_gets_nan_and_changes_nothing_else(credit: Credit) -> None:
    for failed in (NAN, float("inf"), float("-inf")):
        found = credit(torch.tensor([3.0, 1.0, 0.5, 7.0, failed, failed, 2.0, 2.5]))
        assert found.isnan().tolist() == [row in (4, 5) for row in range(8)]
        wanted = credit(torch.tensor([3.0, 1.0, 0.5, 7.0, 2.0, 2.5]))
        torch.testing.assert_close(found[[0, 1, 2, 3, 6, 7]], wanted)


@pytest.mark.parametrize("credit", ALL)
def test_nothing_but_failures(credit: Credit) -> None:
    assert credit(torch.full((4,), NAN)).isnan().all()
    assert credit(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("credit", ALL)
def test_whole_numbers_are_not_cut_off(credit: Credit) -> None:
    whole = torch.tensor([3, 5, 2, 4, 9, 2])
    found = credit(whole)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, credit(whole.float()))
    assert not torch.equal(found, found.round())
    assert credit(whole > 2).dtype == torch.float32


@pytest.mark.parametrize("credit", ALL)
def test_large_offsets_do_not_matter_and_no_gradient_flows(credit: Credit) -> None:
    r = torch.tensor([3.0, 1.0, 0.5, 7.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(credit(r + 1e6), credit(r), rtol=1e-6, atol=0)
    assert not credit(r).requires_grad


def test_one_alone_has_nothing_to_be_compared_with() -> None:
    alone = torch.tensor([5.0, 1.0, 2.0, NAN])
    assert per_group(alone, [0, 1, 1, 0])[0] == 0
    assert leave_one_out(alone, [0, 1, 1, 0]).tolist()[:3] == [0, -1, 1]
    assert whiten(torch.tensor([5.0])).tolist() == [0]


def test_every_reward_needs_a_group_and_a_prompt() -> None:
    with pytest.raises(ValueError, match=r"\[6\] and \[2\]"):
        per_group(R, [0, 1])
    with pytest.raises(ValueError, match=r"rewards \[N\]"):
        whiten(R.view(3, 2))
    with pytest.raises(ValueError, match="2 prompts for 6"):
        per_prompt(R, ["a", "b"], {}, buffer=2, minimum=1)


@pytest.mark.parametrize(("buffer", "minimum"), [(4, 5), (0, 0), (3, 0)])
def test_a_history_that_never_fills_is_refused(buffer: int, minimum: int) -> None:
    with pytest.raises(ValueError, match="buffer"):
        per_prompt(R, ["a"] * 6, {}, buffer=buffer, minimum=minimum)


def test_per_prompt_as_a_deque_would() -> None:
    """Three rounds against a plain transcription: extend, then the own statistics or the batch's."""
    random = numpy.random.default_rng(0)
    history: dict[str, list[float]] = {}
    kept: dict[str, list[float]] = {}
    for _ in range(3):
        texts = list(random.choice(["cat", "dog", "owl"], size=8, p=[0.6, 0.3, 0.1]))
        r = random.normal(size=8)
        found, history = per_prompt(torch.from_numpy(r), texts, history, buffer=6, minimum=4)
        for text, value in zip(texts, r, strict=True):
            kept[text] = [*kept.get(text, []), float(value)]
        kept = {text: past[-6:] for text, past in kept.items()}
        for text, value, credit in zip(texts, r, found.tolist(), strict=True):
            past = numpy.array(kept[text]) if len(kept[text]) >= 4 else r
            assert credit == pytest.approx((value - past.mean()) / (past.std() + 1e-6), rel=1e-9)
        assert history == kept
    assert any(len(past) >= 4 for past in history.values()) and any(len(past) < 4 for past in history.values())


def test_the_history_is_plain_data_and_the_old_one_is_left_alone() -> None:
    old = {"a": [1.0], "never seen again": [4.0]}
    _, new = per_prompt(torch.tensor([2.0, NAN, 1 / 3]), ["a", "a", "b"], old, buffer=8, minimum=2)
    assert old == {"a": [1.0], "never seen again": [4.0]}
    assert new == {"a": [1.0, 2.0], "never seen again": [4.0], "b": [float(torch.tensor(1 / 3))]}
    assert json.loads(json.dumps(new)) == new
    assert new["never seen again"] is not old["never seen again"]


@pytest.mark.parametrize("spread", ["group", "global", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_relative_is_its_baseline_and_its_deviation(baseline: str, spread: str) -> None:
    r = torch.tensor([3.0, -1.0, 0.5, 7.25, NAN, 2.5], dtype=torch.float64)
    found, values = relative(r, GROUPS, baseline=baseline, spread=spread).tolist(), r.numpy()
    for row, group in enumerate(GROUPS):
        own = [k for k in range(6) if GROUPS[k] == group and numpy.isfinite(values[k])]
        if row not in own:
            assert numpy.isnan(found[row])
            continue
        others = own if baseline == "mean" else [k for k in own if k != row]
        divisor = {"group": values[own].std() + 1e-4, "global": numpy.nanstd(values) + 1e-4, "none": 1.0}[spread]
        assert found[row] == pytest.approx((values[row] - values[others].mean()) / divisor, rel=1e-12)


def test_equal_rewards_and_single_ones_are_told_from_failed_ones() -> None:
    r = torch.tensor([0.1, 0.1, NAN, 2.0, NAN, NAN, 1.0, 1.5])
    assert equal(r, [0, 0, 0, 1, 1, 2, 3, 3]).tolist() == [True] * 5 + [False] * 3
