"""Batch arithmetic: what follows from what, what is refused and what would fit."""

import pytest

from tastemaker.plan import Plan


def plan(**changes: float | None) -> Plan:
    values = {"iterations": 10, "images": 64, "per_prompt": 2, "updates": 4, "inner_epochs": 3, "steps": 20}
    return Plan(**values | {"guidance": 5.0, "items": 15, "micro_batch": 16, "sampling_batch": 8} | changes)


def test_everything_follows_from_the_counts() -> None:
    made = plan()
    assert (made.groups, made.effective_batch, made.unit) == (32, 16, 8)
    assert (made.guided, made.learning_guided) == (2, 2)
    assert made.sampling_rows == 64 * 20 * 2
    assert made.learning_rows == 64 * 15 * 3 * 2
    assert made.optimizer_steps == 10 * 4 * 3
    assert (plan(guidance=1.0).guided, plan(guidance=1.0).learning_guided) == (1, 1)
    unguided = plan(learning_guidance=1.0)
    assert (unguided.guided, unguided.learning_guided, unguided.learning_rows) == (2, 1, 64 * 15 * 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 256, "per_prompt": 4, "updates": 3}, "3 updates of whole groups of 4 = 12. Nearest: 252 or 264 im"),
        ({"images": 256, "per_prompt": 3}, r"256 images do not make groups of 3 \(per_prompt\). Nearest: 252 or 264"),
        ({"images": 6, "per_prompt": 2, "updates": 4}, "6 images do not make equal updates: .* = 8. Nearest: 8 images"),
        ({"images": 16, "devices": 3}, "2 groups an update cannot be shared by 3 devices: use images=24 or more"),
        *(({name: 0}, f"{name} is 0; it must be at least 1") for name in ("iterations", "images", "per_prompt")),
        *(({name: 0}, f"{name} is 0; it must be at least 1") for name in ("updates", "inner_epochs", "steps", "items")),
    ],
)
def test_what_does_not_divide_is_refused_and_the_nearest_named(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(**changes)


def test_the_nearest_fit_is_one() -> None:
    for images in (252, 264):
        assert plan(images=images, per_prompt=4, updates=3).unit == 12
    plan(images=24, devices=3)


@pytest.mark.parametrize(("micro", "sizes"), [(16, [16, 8, 4, 2, 1]), (7, [7, 3, 1]), (1, [1])])
def test_out_of_memory_halves_down_to_one(micro: int, sizes: list[int]) -> None:
    assert list(plan(micro_batch=micro).halvings()) == sizes


def test_when_it_evaluates_and_saves() -> None:
    rare, often = plan(evaluate_every=0, save_every=0), plan(evaluate_every=3, save_every=4)
    assert [k for k in range(10) if rare.evaluates(k)] == [0] and [k for k in range(10) if rare.saves(k)] == []
    assert [k for k in range(10) if often.evaluates(k)] == [0, 3, 6, 9] and [
        k for k in range(10) if often.saves(k)
    ] == [3, 7]


def test_rows_of_inner_epochs_are_a_divisor_of_the_update() -> None:
    assert plan(images=64, per_prompt=2, updates=4).row == 8
    assert plan(images=2 * 4 * 96, per_prompt=2, updates=4).row == 32
    assert plan(images=2 * 4 * 256, per_prompt=2, updates=4).row == 64


@pytest.mark.parametrize(
    ("changes", "equal"),
    [
        ({"devices": 4}, True),
        ({"devices": 3}, False),
        ({"images": 2 * 4 * 66, "devices": 3, "inner_epochs": 1}, True),
        ({"images": 2 * 4 * 66, "devices": 3, "inner_epochs": 2}, False),  # rows of 2 groups change places
    ],
)
def test_the_table_says_whether_devices_have_equal_shares(changes: dict[str, int], equal: bool) -> None:
    (said,) = (reason for what, _, reason in plan(**changes).table() if what == "images a device")
    assert ("UNEQUAL" not in said) == equal


def test_the_table_shows_how_its_numbers_come_about() -> None:
    rows = {what: (number, reason) for what, number, reason in plan(learning_guidance=1.0).table()}
    assert rows["images an iteration"] == ("64", "32 prompts x 2")
    assert rows["updates an iteration"] == ("12", "4 updates of 16 images x 3 inner epochs")
    assert rows["items an update"] == ("240", "16 images x 15")
    assert rows["items a training call"] == ("16", "micro_batch; 16 rows")
    assert rows["images a sampling call"] == ("8", "16 rows")
    assert rows["rows forward to sample"] == ("2,560", "64 x 20 steps x 2 for guidance")
    assert rows["rows to learn"] == ("2,880", "64 x 15 items x 3 inner epochs, both ways")
    assert rows["reward queries in all"] == ("640", "10 iterations")
    assert rows["network rows in all"] == ("54,400 forward", "28,800 of them backward too")
