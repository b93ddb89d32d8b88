"""The curve of a run from its records: the reward of the training pictures, and of the evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tastemaker.reports.plot import Series, line_chart


def learning_curve(
    metrics: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    reward: str,
    path: str | Path | None = None,
) -> str:
    """The SVG text: mean training reward by iteration, and means of the evaluations with their intervals.

    metrics, evaluations: rows of the run's jsonl files; `reward` is the score to show; `path` is written too.
    """
    trained = [row for row in metrics if "mean" in row["reward"]]
    judged = [row for row in evaluations if reward in row["reward"]]
    mean, low, high = ([_number(row["reward"][reward][key]) for row in judged] for key in ("mean", "low", "high"))
    series = [
        Series("training pictures", [r["iteration"] for r in trained], [r["reward"]["mean"] for r in trained]),
        Series(
            f"evaluation on {judged[-1]['prompts']}" if judged else "",
            [r["iteration"] for r in judged],
            mean,
            low,
            high,
        ),
    ]
    return line_chart([one for one in series if one.x], title=reward, x="iteration", y="reward", path=path)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
