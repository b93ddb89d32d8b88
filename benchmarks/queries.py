"""Reward queries: how many fewer the reward gradients take to the level at which DDPO stands after 2,500."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Line = Mapping[str, Any]  # one run, as learn.jsonl holds it
DDPO, SPENT = "ddpo-2560", 2500  # the row that sets the level, and after how many queries
PARTS = ("colour", "shape", "count")


def level(runs: Sequence[Line]) -> float | None:
    """The change of DDPO's row at 2,500 queries in SD of the base, mean over its seeds; None where it was not run."""
    own = [run for run in runs if run["row"] == DDPO and not run["control"]]
    return statistics.mean(_at(run, SPENT, _queries(run), "sd") for run in own) if own else None


def reached(run: Line, height: float) -> dict[str, float] | None:
    """Where the curve first reached `height` SD: the queries, and the points of the oracle lost there.

    Between two evaluations along a straight line; None where it never did.
    """
    curve, queries = run["curve"], _queries(run)
    for k in range(1, len(curve)):
        if curve[k]["sd"] >= height:
            low, high = curve[k - 1]["sd"], curve[k]["sd"]
            spent = queries[k - 1] + (height - low) / (high - low) * (queries[k] - queries[k - 1])
            lost = {
                part: 100 * (curve[0][f"oracle_{part}"] - _at(run, spent, queries, f"oracle_{part}")) for part in PARTS
            }
            return {"queries": spent} | lost
    return None


def told(
    names: Sequence[str], runs: Sequence[Line], *, fewer: float, points: float, goals: Sequence[str]
) -> Iterator[str]:
    """A line a row: its queries to the level and how many fewer that is; rows of `goals` have to keep to the limits."""
    height = level(runs)
    if height is None:
        return
    yield f"queries: after {SPENT:,} queries {DDPO} stands at {height:+.2f} SD"
    for name in names:
        own = [run for run in runs if run["row"] == name and not run["control"]]
        found = [one for run in own if (one := reached(run, height))]
        if len(found) < len(own) or not own:
            if own:
                yield f"queries: {name}: {len(own) - len(found)} of {len(own)} runs never reached it"
            continue
        spent = statistics.mean(one["queries"] for one in found)
        lost = {part: statistics.mean(one[part] for one in found) for part in PARTS}
        said = ", ".join(f"{part} {0 - lost[part]:+.1f}" for part in PARTS)
        good = SPENT / spent >= fewer and max(lost["colour"], lost["shape"]) <= points
        tick = f" - {'yes' if good else 'NO'}" if name in goals else ""
        each = " ".join(f"{one['queries']:.0f}" for one in found)
        first = f"queries: {name}: {spent:.0f} ({each}), {SPENT / spent:.0f} x fewer"
        yield f"{first}; oracle there, in points: {said}{tick}"


def _queries(run: Line) -> list[float]:
    """Scored pictures until each evaluation."""
    return [run["queries"] * point["iteration"] / run["iterations"] for point in run["curve"]]


def _at(run: Line, spent: float, queries: Sequence[float], name: str) -> float:
    return float(np.interp(spent, queries, [point[name] for point in run["curve"]]))
