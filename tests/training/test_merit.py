"""What weights are worth, on rows that are written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tastemaker.training.merit import Merit, Worth


def row(value: float | None, deviation: float = 0.5) -> dict[str, Any]:
    watch = {"held_out.judge": value, "held_out_sd.judge": deviation}
    return {"reward": {"mean": value, "std": deviation, "parts": {"half": value}}, "watch": watch}


@pytest.mark.parametrize(("by", "margin"), [("reward", 0.05), ("held_out.judge", 0.05), ("parts.half", 0.0)])
def test_it_is_the_recent_mean_of_one_number(by: str, margin: float) -> None:
    merit = Merit(by)
    for value in (-1.0, -0.9, -0.8, -0.7, -0.6):
        merit.see(row(value))
    worth = merit.worth()
    assert worth is not None and worth.by == by
    assert worth.value == pytest.approx(-0.7) and worth.margin == pytest.approx(margin)


def test_the_base_is_worth_nothing_and_rows_without_the_number_are_passed_over() -> None:
    merit = Merit("held_out.judge", 2)
    merit.see(row(1.0))
    assert merit.worth() is None
    for one in ({"reward": {"failed": 2, "parts": {}}}, row(None), row(3.0, 9.0)):
        merit.see(one)
        assert merit.worth() is None or one == row(3.0, 9.0)
    assert merit.worth() == Worth("held_out.judge", 3.0, pytest.approx(0.05))
    for nothing in (None, float("nan")):
        merit.see(row(nothing))
        assert merit.worth() is None  # the weights of this row were not judged, whatever others were worth
    merit.forget()
    merit.see(row(1.0))
    assert merit.worth() is None
