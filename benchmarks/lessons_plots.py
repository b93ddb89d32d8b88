"""The lessons' plots: curves over queries and iterations, learning rates, and the rewards of single pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lessons_report import fallen
from lessons_runs import LOST, NAN, Run, by_title, end, lost, number, title

from tastemaker.reports.plot import Series, line_chart

BINS = 32  # of a histogram; so many that its steps are drawn without points
REWARD = "change on held-out prompts, SD of the base"


def plots(name: str, runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draws a lesson's plots; their paths."""
    return {"lora": _rates, "decay": _decay}.get(name, _curves)(name, runs, folder)


def _curves(name: str, runs: Sequence[Run], folder: Path) -> list[Path]:
    """The change against reward queries: the mean over seeds, and from the lowest to the highest."""
    heads = {"prompts": "Training on 4, 24 or all prompts", "clip": "Where the ratio is clipped, and no ratio at all"}
    series = [_over_seeds(one, own) for one, own in by_title(runs).items()]
    path = folder / f"{name}.svg"
    line_chart(series, title=heads[name], x="reward queries", y=REWARD, path=path)
    return [path]


def _over_seeds(name: str, runs: Sequence[Run]) -> Series:
    columns = list(zip(*(run["curve"] for run in runs if not run["broke"]), strict=False))
    heights = [[number(point["sd"]) for point in column] for column in columns]
    x, y = [column[0]["queries"] for column in columns], [float(np.mean(row)) for row in heights]
    return Series(name, x, y, [min(row) for row in heights], [max(row) for row in heights])


def _rates(name: str, runs: Sequence[Run], folder: Path) -> list[Path]:
    """The change at the end against the learning rate, with the runs that broke or left their prompts marked."""
    series = []
    for kind in ("LoRA", "whole network"):
        own = {one: rows for one, rows in by_title(runs).items() if one.startswith(kind)}
        x = [_power(one) for one in own]
        ends = [[end(run) for run in rows if not run["broke"]] or [NAN] for rows in own.values()]
        series.append(Series(kind, x, [float(np.mean(row)) for row in ends], [*map(min, ends)], [*map(max, ends)]))
    bad = [(_power(title(run)), number(run["curve"][-1]["sd"])) for run in runs if run["broke"] or lost(run) > LOST]
    series.append(_points(f"broke, or lost over {LOST:.0f} points of colour or shape", bad))
    path = folder / f"{name}.svg"
    head = "LoRA and the whole network at three learning rates"
    line_chart(series, title=head, x="learning rate, power of ten", y=REWARD, path=path)
    return [path]


def _power(name: str) -> float:
    return round(math.log10(float(name.split(", ")[1])), 6)


def _points(name: str, points: Sequence[tuple[float, float]]) -> Series:
    """Points without a line: a gap after each."""
    return Series(name, [x for x, _ in points for _ in (0, 1)], [v for _, y in points for v in (y, NAN)])


def _decay(name: str, runs: Sequence[Run], folder: Path) -> list[Path]:
    """The change against iterations, and the pictures' rewards at three moments of the constant run."""
    own = by_title(runs)
    series = []
    for one, (run, *_) in own.items():
        columns = ([number(point[key]) for point in run["curve"]] for key in ("iteration", "sd", "low", "high"))
        series.append(Series(one, *columns))
    paths = [folder / f"{name}.svg", folder / f"{name}_histogram.svg"]
    line_chart(series, title="A long run: the course of the learning rate", x="iteration", y=REWARD, path=paths[0])
    curve = own["constant"][0]["curve"]
    found = fallen(own["constant"][0])
    moments = [curve[0], found.best, found.worst] if found else [curve[0], curve[-1]]
    edges = np.linspace(*np.quantile([v for point in moments for v in point["values"]], [0, 1]), BINS + 1)
    bars = [_steps(f"iteration {point['iteration']}", point["values"], edges) for point in moments]
    if found:
        low = np.array(found.worst["values"])[found.low][:: max(1, int(found.low.sum()) // 50)]
        name = f"outliers of iteration {found.worst['iteration']}"
        bars.append(_points(name, [(float(value), 0.0) for value in low]))
    head = "Rewards of single pictures, constant learning rate"
    line_chart(bars, title=head, x="reward of a picture, kB", y="pictures", path=paths[1])
    return paths


def _steps(name: str, values: Sequence[float], edges: np.ndarray) -> Series:
    counts, _ = np.histogram(values, edges)
    x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]]).astype(float)
    return Series(name, x.tolist(), y.tolist(), [0.0] * len(x), y.tolist())
