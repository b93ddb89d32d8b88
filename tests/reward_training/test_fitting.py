"""Heads learn what can be learned, stop when they get no better, and go on exactly where they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tastemaker.reward_training.features import Cache, Rows, Table
from tastemaker.reward_training.fitting import CURSOR, Epoch, Fit, Keeper, Split, split
from tastemaker.reward_training.preference import Preference
from tastemaker.reward_training.regression import Regression
from tastemaker.reward_training.settings import Training
from tastemaker.rewards.head import Head

SETTINGS = Training(data="", learning_rate=1e-2, weight_decay=0.0, patience=10, epochs=60)


def numbers(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def table(matrix: torch.Tensor) -> Rows:
    """These rows of numbers as those of pictures that were looked at."""
    held = Table([bytes([k // 256, k % 256]) for k in range(len(matrix))], Cache("", ""))
    held.held = {"picture": torch.zeros(len(matrix), 1), "tokens": matrix}
    return Rows(("tokens",), held, held.which)


def units(count: int) -> list[tuple[int]]:
    return [(k,) for k in range(count)]


def rated(count: int = 200, noise: float = 0.5) -> Regression:
    rows = 3 + 2 * numbers(count, 5)
    ratings = 7 + rows @ torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0]) + noise * numbers(count, 1, 1)[:, 0]
    return Regression(table(rows), ratings, units(count))


def preferred(count: int = 300) -> Preference:
    first, second = numbers(count, 4), numbers(count, 4, 1)
    margin = (first - second) @ torch.tensor([2.0, -1.0, 0.0, 0.0])
    shares = (torch.rand(count, generator=torch.Generator().manual_seed(2)) < torch.sigmoid(margin)).float()
    return Preference(table(first), table(second), shares, units(count))


def fitted(labels: Regression | Preference, **more: object) -> Fit:
    settings = replace(SETTINGS, **more)  # type: ignore[arg-type]
    fit = Fit(labels, split(labels, 0.2, 0), settings, Keeper(None, ""))
    fit.run()
    return fit


def test_a_linear_rule_is_found_as_least_squares_find_it() -> None:
    labels = rated()
    train = split(labels, 0.2, 0).train
    halves = Split(train, train)  # the least loss on what is learned from is what least squares find
    head = Fit(labels, halves, replace(SETTINGS, epochs=250, patience=250, batch_size=200), Keeper(None, "")).run()
    rows = labels.rows(torch.arange(200))
    x = torch.cat([rows, torch.ones(200, 1)], 1).double()
    best = torch.linalg.lstsq(x[halves.train], labels.ratings[halves.train].double()).solution
    with torch.no_grad():
        found = head(rows).double()
    assert float((found - x @ best).abs().max()) < 0.05  # of a spread of 3
    assert labels.measure(head, halves.validation)["rank correlation"].mean > 0.95


def test_choices_give_the_log_odds() -> None:
    labels = preferred(3000)
    fit = fitted(labels, batch_size=256)
    weight = fit.head.layers[0].weight[0].detach() / fit.head.spread
    assert weight.tolist() == pytest.approx([2.0, -1.0, 0.0, 0.0], abs=0.25)


def test_the_loss_of_choices_and_its_gradient_are_the_formulas() -> None:
    labels = Preference(table(numbers(1, 3)), table(numbers(1, 3, 1)), torch.tensor([0.7]), units(1))
    head = Head(3)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.tensor([[0.3, -0.2, 0.5]]))
    loss = labels.loss(head, torch.tensor([0]))
    apart = numbers(1, 3) - numbers(1, 3, 1)
    margin = apart @ torch.tensor([0.3, -0.2, 0.5])
    chance = torch.sigmoid(margin)
    assert torch.allclose(loss, -(0.7 * chance.log() + 0.3 * (1 - chance).log()))
    loss.sum().backward()
    assert torch.allclose(head.layers[0].weight.grad, (chance - 0.7) * apart, atol=1e-6)


def test_a_hidden_layer_finds_what_a_line_cannot() -> None:
    rows = numbers(600, 2)
    labels = Regression(table(rows), (rows**2).sum(1), units(600))
    line, curve = (fitted(labels, hidden=hidden, epochs=150) for hidden in (0, 32))
    assert min(epoch.validation for epoch in curve.epochs) < 0.1 < min(epoch.validation for epoch in line.epochs)


def test_training_stops_and_gives_the_best_epoch() -> None:
    ratings = numbers(60, 40)[:, 0] + 2 * numbers(60, 1, 3)[:, 0]  # little to learn but by heart
    noise = Regression(table(numbers(60, 40)), ratings, units(60))
    fit = fitted(noise, patience=5, epochs=500)
    assert len(fit.epochs) == fit.best_at + 5 < 500
    with torch.no_grad():
        found = float(noise.loss(fit.head, fit.split.validation).mean())
    assert fit.epochs[fit.best_at - 1].validation == min(epoch.validation for epoch in fit.epochs)
    assert found == pytest.approx(fit.epochs[fit.best_at - 1].validation, rel=1e-6)


def test_a_number_that_never_varies_counts_for_nothing() -> None:
    rows = torch.cat([numbers(50, 2), torch.full((50, 1), 0.1)], 1)
    head = fitted(Regression(table(rows), rows[:, 0], units(50))).head
    other = torch.cat([rows[:, :2], torch.full((50, 1), 0.2)], 1)
    with torch.no_grad():
        assert torch.equal(head(rows), head(other))


def test_labels_that_teach_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="data: all 8 ratings to learn from are 3: they teach nothing"):
        fitted(Regression(table(numbers(10, 2)), torch.full((10,), 3.0), units(10)))
    with pytest.raises(ValueError, match="data: all 8 choices to learn from are ties"):
        fitted(Preference(table(numbers(10, 2)), table(numbers(10, 2, 1)), torch.full((10,), 0.5), units(10)))


# ---- the split


def test_units_stay_whole_and_no_label_is_lost() -> None:
    labels = Regression(table(numbers(90, 2)), numbers(90, 1)[:, 0], [(k // 3,) for k in range(90)])
    halves = split(labels, 0.2, 0)
    sides = [{int(item) // 3 for item in side} for side in halves]
    assert not sides[0] & sides[1]
    assert sorted([*halves.train.tolist(), *halves.validation.tolist()]) == list(range(90))
    assert 16 <= len(halves.validation) <= 20 and halves.size == 90
    assert set(split(labels, 0.2, 1).validation.tolist()) != set(halves.validation.tolist())


def test_both_sides_are_shuffled() -> None:
    """Files are sorted: what stands first is not all of one kind."""
    halves = split(rated(), 0.2, 0)
    assert all(side.tolist() != sorted(side.tolist()) for side in halves)


def test_a_pair_is_aside_with_each_picture_that_is() -> None:
    generator = torch.Generator().manual_seed(0)
    both = [tuple(torch.randperm(40, generator=generator)[:2].tolist()) for _ in range(200)]
    labels = Preference(table(numbers(200, 2)), table(numbers(200, 2, 1)), torch.ones(200), both)
    halves = split(labels, 0.2, 0)
    learned = {picture for item in halves.train.tolist() for picture in both[item]}
    held = [set(both[item]) - learned for item in halves.validation.tolist()]
    assert all(held) and 30 <= len(held) <= 50


def test_a_unit_that_is_nearly_all_is_learned_from() -> None:
    labels = Regression(table(numbers(100, 2)), numbers(100, 1)[:, 0], [(0 if k < 90 else k,) for k in range(100)])
    for seed in range(5):
        halves = split(labels, 0.05, seed)
        assert len(halves.validation) == 5 and set(range(90)) <= set(halves.train.tolist())


def test_one_unit_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="data: all labels are of one picture or prompt"):
        split(Regression(table(numbers(5, 2)), numbers(5, 1)[:, 0], [("a",)] * 5), 0.2, 0)
    two = Regression(table(numbers(2, 2)), numbers(2, 1)[:, 0], [("a",), ("b",)])
    assert len(split(two, 0.01, 0).validation) == 1


# ---- what cannot be learned


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="learning_rate 1e.30 is too high: the loss is not finite"):
        fitted(rated(), learning_rate=1e30)


def test_a_head_that_knows_nothing_is_kept_where_no_other_is_better() -> None:
    labels = Regression(table(numbers(40, 30)), numbers(40, 1, 3)[:, 0], units(40))
    fit = fitted(labels, learning_rate=1.0, patience=3)
    assert fit.best_at == 0 and len(fit.epochs) == 3
    with torch.no_grad():
        assert float(fit.head(numbers(40, 30)).std()) == 0


def test_means_and_spreads_of_parts_are_those_of_the_whole() -> None:
    rows, head = 3 + 5 * numbers(100, 4), Head(4)
    head.fit_to(torch.split(rows, 7))
    assert torch.allclose(head.mean, rows.mean(0), atol=1e-5)
    assert torch.allclose(head.spread, rows.std(0, correction=0), atol=1e-5)


# ---- going on


class Killed(Exception):
    pass


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("at", [1, 7])
def test_stopped_and_gone_on_is_straight_through_to_the_bit(tmp_path: Path, at: int, hidden: int) -> None:
    labels, settings = rated(), replace(SETTINGS, hidden=hidden, epochs=15)
    halves = split(labels, 0.2, 0)
    straight = Fit(labels, halves, settings, Keeper(None, ""))
    straight.run()

    def kill(epoch: Epoch) -> None:
        if epoch.epoch == at + 1:
            raise Killed

    with pytest.raises(Killed):
        Fit(labels, halves, settings, Keeper(tmp_path, "mark", every=0)).run(kill)
    torch.manual_seed(99)
    gone_on = Fit(labels, halves, settings, Keeper(tmp_path, "mark", every=0))
    gone_on.run()
    assert gone_on.epochs == straight.epochs and gone_on.best_at == straight.best_at
    for name, value in straight.head.state_dict().items():
        assert torch.equal(value, gone_on.head.state_dict()[name]), name
    gone_on.keeper.forget()
    assert list(tmp_path.iterdir()) == []


def test_other_labels_and_damaged_files_are_refused(tmp_path: Path) -> None:
    labels = rated()
    halves = split(labels, 0.2, 0)
    Fit(labels, halves, replace(SETTINGS, epochs=3), Keeper(tmp_path, "mark", every=0)).run()
    with pytest.raises(ValueError, match="resume_from_checkpoint: .* was of other labels or settings"):
        Fit(labels, halves, SETTINGS, Keeper(tmp_path, "another")).run()
    state = tmp_path / json.loads((tmp_path / CURSOR).read_text())["state"]
    state.write_bytes(state.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="is damaged"):
        Fit(labels, halves, SETTINGS, Keeper(tmp_path, "mark")).run()


def test_a_state_is_whole_or_not_there(tmp_path: Path) -> None:
    """One state is kept, and the cursor names one that is there."""
    labels = rated()
    keeper = Keeper(tmp_path, "mark", every=0)

    def look(epoch: Epoch) -> None:
        if epoch.epoch > 1:
            assert (tmp_path / json.loads((tmp_path / CURSOR).read_text())["state"]).is_file()

    Fit(labels, split(labels, 0.2, 0), replace(SETTINGS, epochs=4), keeper).run(look)
    assert len(list(tmp_path.iterdir())) == 2
