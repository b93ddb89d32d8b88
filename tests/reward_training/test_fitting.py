"""Heads learn what can be learned, stop when they get no better, and go on exactly where they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tastemaker.reward_training.fitting import CURSOR, Epoch, Fit, Keeper, Split, split
from tastemaker.reward_training.preference import Preference
from tastemaker.reward_training.regression import Regression
from tastemaker.reward_training.settings import Training
from tastemaker.rewards.head import Head

SETTINGS = Training(data="", learning_rate=1e-2, weight_decay=0.0, patience=10, epochs=60)


def numbers(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def rated(count: int = 200, noise: float = 0.5) -> Regression:
    rows = 3 + 2 * numbers(count, 5)
    ratings = 7 + rows @ torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0]) + noise * numbers(count, 1, 1)[:, 0]
    return Regression(rows, ratings, list(range(count)))


def preferred(count: int = 300) -> Preference:
    first, second = numbers(count, 4), numbers(count, 4, 1)
    margin = (first - second) @ torch.tensor([2.0, -1.0, 0.0, 0.0])
    shares = (torch.rand(count, generator=torch.Generator().manual_seed(2)) < torch.sigmoid(margin)).float()
    return Preference(first, second, shares, list(range(count)), list(range(count)))


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
    x = torch.cat([labels.rows, torch.ones(200, 1)], 1).double()
    best = torch.linalg.lstsq(x[halves.train], labels.ratings[halves.train].double()).solution
    with torch.no_grad():
        found = head(labels.rows).double()
    assert float((found - x @ best).abs().max()) < 0.05  # of a spread of 3
    assert labels.measure(head, halves.validation)["rank correlation"].mean > 0.95


def test_choices_give_the_log_odds() -> None:
    labels = preferred(3000)
    fit = fitted(labels, batch_size=256)
    weight = fit.head.layers[0].weight[0].detach() / fit.head.spread
    assert weight.tolist() == pytest.approx([2.0, -1.0, 0.0, 0.0], abs=0.25)


def test_the_loss_of_choices_and_its_gradient_are_the_formulas() -> None:
    labels = Preference(numbers(1, 3), numbers(1, 3, 1), torch.tensor([0.7]), ["a"], ["a"])
    head = Head(3)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.tensor([[0.3, -0.2, 0.5]]))
    loss = labels.loss(head, torch.tensor([0]))
    margin = (labels.first - labels.second) @ torch.tensor([0.3, -0.2, 0.5])
    chance = torch.sigmoid(margin)
    assert torch.allclose(loss, -(0.7 * chance.log() + 0.3 * (1 - chance).log()))
    loss.sum().backward()
    assert torch.allclose(head.layers[0].weight.grad, (chance - 0.7) * (labels.first - labels.second), atol=1e-6)


def test_a_hidden_layer_finds_what_a_line_cannot() -> None:
    rows = numbers(600, 2)
    labels = Regression(rows, (rows**2).sum(1), list(range(600)))
    line, curve = (fitted(labels, hidden=hidden, epochs=150) for hidden in (0, 32))
    assert min(epoch.validation for epoch in curve.epochs) < 0.1 < min(epoch.validation for epoch in line.epochs)


def test_training_stops_and_gives_the_best_epoch() -> None:
    noise = Regression(numbers(60, 40), numbers(60, 1, 3)[:, 0], list(range(60)))  # nothing to learn but by heart
    fit = fitted(noise, patience=5, epochs=500)
    assert len(fit.epochs) == fit.best_at + 5 < 500
    with torch.no_grad():
        found = float(noise.loss(fit.head, fit.split.validation).mean())
    assert found == fit.epochs[fit.best_at - 1].validation == min(epoch.validation for epoch in fit.epochs)


def test_a_number_that_never_varies_counts_for_nothing() -> None:
    rows = torch.cat([numbers(50, 2), torch.full((50, 1), 0.1)], 1)
    head = fitted(Regression(rows, rows[:, 0], list(range(50)))).head
    other = torch.cat([rows[:, :2], torch.full((50, 1), 0.2)], 1)
    with torch.no_grad():
        assert torch.equal(head(rows), head(other))


def test_labels_that_teach_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="data: all 8 ratings to learn from are 3: they teach nothing"):
        fitted(Regression(numbers(10, 2), torch.full((10,), 3.0), list(range(10))))
    with pytest.raises(ValueError, match="data: all 8 choices to learn from are ties"):
        fitted(Preference(numbers(10, 2), numbers(10, 2, 1), torch.full((10,), 0.5), list(range(10)), list(range(10))))


# ---- the split


def test_units_stay_whole_and_no_label_is_lost() -> None:
    labels = Regression(numbers(90, 2), numbers(90, 1)[:, 0], [k // 3 for k in range(90)])
    halves = split(labels, 0.2, 0)
    sides = [{int(item) // 3 for item in side} for side in halves]
    assert not sides[0] & sides[1]
    assert sorted([*halves.train.tolist(), *halves.validation.tolist()]) == list(range(90))
    assert 16 <= len(halves.validation) <= 20
    assert not torch.equal(split(labels, 0.2, 1).validation, halves.validation)


def test_one_unit_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="data: all labels are of one picture or prompt"):
        split(Regression(numbers(5, 2), numbers(5, 1)[:, 0], ["a"] * 5), 0.2, 0)
    assert len(split(Regression(numbers(2, 2), numbers(2, 1)[:, 0], ["a", "b"]), 0.01, 0).validation) == 1


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


def test_a_split_knows_its_size() -> None:
    assert Split(torch.arange(3), torch.arange(2)).size == 5
