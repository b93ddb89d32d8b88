"""Reward queries: how many fewer the reward gradients take to the level at which DDPO stands after 2,500."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tastemaker.reports.plot import Series, line_chart

Line = Mapping[str, Any]  # one run, as learn.jsonl holds it
DDPO, SPENT = "ddpo-2560", 2500  # the row that sets the level, and after how many queries
JUDGE = "jpeg_compressibility"  # real files
PARTS = ("colour", "shape", "count")
CHARTS = {"queries": "queries.svg", "forward": "queries_forward.svg", "policy": "queries_policy.svg"}  # by group


def level(runs: Sequence[Line]) -> float | None:
    """The change of DDPO's row at 2,500 queries in SD of the base, mean over its seeds; None where it was not run."""
    own = [run for run in runs if run["row"] == DDPO and not run["control"]]
    return statistics.mean(float(np.interp(SPENT, _queries(run), _heights(run))) for run in own) if own else None


def reached(run: Line, height: float) -> dict[str, float] | None:
    """Where the curve first reached `height` SD: the queries, and the points of the oracle lost there.

    Between two evaluations along a straight line; None where it never did.
    """
    curve, queries, heights = run["curve"], _queries(run), _heights(run)
    for k in range(1, len(curve)):
        if heights[k] >= height:
            low, high = heights[k - 1], heights[k]
            spent = queries[k - 1] + (height - low) / (high - low) * (queries[k] - queries[k - 1])
            there = {part: np.interp(spent, queries, [point[f"oracle_{part}"] for point in curve]) for part in PARTS}
            lost = {part: 100 * float(curve[0][f"oracle_{part}"] - there[part]) for part in PARTS}
            return {"queries": spent} | lost
    return None


def told(
    names: Sequence[str], runs: Sequence[Line], *, least: float, fewer: float, points: float, goals: Sequence[str]
) -> Iterator[str]:
    """Every row's queries to DDPO's level and to the least that is asked, `least` SD, and how many fewer that is.

    Rows of `goals` have to take `fewer` times fewer and to keep the oracle's colour and shape within `points`.
    """
    height = level(runs)
    if height is None:
        return
    yield f"queries: after {SPENT:,} queries {DDPO} stands at {height:+.2f} SD"
    for asked in (height, least):
        for name in (DDPO, *names):
            own = [run for run in runs if run["row"] == name and not run["control"]]
            found = [one for run in own if (one := reached(run, asked))]
            first, judged = f"queries to {asked:+.2f} SD: {name}:", name in goals
            if name == DDPO:  # the level is the mean of its runs after so many: some stand below it
                later = found and asked != height
                base = statistics.mean(one["queries"] for one in found) if later else float(SPENT)
            if found and len(found) == len(own):
                yield f"{first} {_said(found, base, fewer, points, judged=judged)}"
            elif own:
                yield f"{first} {len(own) - len(found)} of {len(own)} runs never reached it{' - NO' * judged}"


def _said(found: Sequence[Mapping[str, float]], base: float, fewer: float, points: float, *, judged: bool) -> str:
    """What rows took, against what DDPO took to the same level."""
    spent = statistics.mean(one["queries"] for one in found)
    lost = {part: statistics.mean(one[part] for one in found) for part in PARTS}
    parts = ", ".join(f"{part} {0 - lost[part]:+.1f}" for part in PARTS)
    good = base / spent >= fewer and max(lost["colour"], lost["shape"]) <= points
    each = " ".join(f"{one['queries']:.0f}" for one in found)
    tick = f" - {'yes' if good else 'NO'}" if judged else ""
    return f"{spent:.0f} ({each}), {base / spent:.1f} x fewer than DDPO; oracle there, in points: {parts}{tick}"


def chart(names: Sequence[str], runs: Sequence[Line], path: Path) -> bool:
    """Draws the change in real files against the queries, over seeds; False where nothing was run."""
    series = []
    for name in dict.fromkeys((DDPO, *names)):
        own = [run for run in runs if run["row"] == name and not run["control"]]
        columns = list(zip(*(zip(_queries(run), _heights(run), strict=True) for run in own), strict=False))[1:]
        if not columns:
            continue
        x = [math.log10(column[0][0]) for column in columns]
        heights = [[height for _, height in column] for column in columns]
        title = name.removesuffix("-quick").removesuffix("-compressibility").replace(DDPO, "ddpo")
        series.append(Series(title, x, [*map(statistics.mean, heights)], [*map(min, heights)], [*map(max, heights)]))
    if series:
        head = "Smaller files: how many pictures have to be scored"
        line_chart(series, title=head, x="reward queries, power of ten", y="change, SD of the base", path=path)
    return bool(series)


def _queries(run: Line) -> list[float]:
    """Scored pictures until each evaluation."""
    return [run["queries"] * point["iteration"] / run["iterations"] for point in run["curve"]]


def _heights(run: Line) -> list[float]:
    """The change of real files at each evaluation, in SD of the base."""
    return [point.get("changes", {}).get(JUDGE, point["sd"]) for point in run["curve"]]
