"""The lessons' plots: curves over queries and iterations, learning rates, and the rewards of single pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from lessons_report import fallen
from lessons_runs import LOST, NAN, Run, by_title, end, lost, number, title

from tastemaker.reports.plot import Series, line_chart

BINS = 32  # of a histogram; so many that its steps are drawn without points
REWARD = "change on held-out prompts, SD of the base"
AXES = {"queries": "reward queries", "seconds": "seconds of training", "iteration": "iteration", "sd": REWARD}
AXES |= {"diversity": "diversity, mean squared distance"}
Plot = Callable[[Sequence[Run], Path], Path]


def plots(name: str, runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draws a lesson's plots; their paths."""
    return [draw(runs, folder) for draw in DRAWN[name]]


def _curves(name: str, head: str, x: str = "queries", y: str = "sd") -> Plot:
    """Two numbers of the evaluations: the mean over seeds, and from the lowest to the highest."""

    def draw(runs: Sequence[Run], folder: Path) -> Path:
        series = [_over_seeds(one, own, x, y) for one, own in by_title(runs).items()]
        line_chart(series, title=head, x=AXES[x], y=AXES[y], path=folder / f"{name}.svg")
        return folder / f"{name}.svg"

    return draw


def _over_seeds(name: str, runs: Sequence[Run], x: str, y: str) -> Series:
    columns = list(zip(*(run["curve"] for run in runs if not run["broke"]), strict=False))
    places, heights = ([[number(point[key]) for point in column] for column in columns] for key in (x, y))
    middle = [[float(np.mean(row)) for row in rows] for rows in (places, heights)]
    if x == "diversity":  # which is measured as the height is: a band of one would hide the other
        return Series(name, *middle)
    return Series(name, *middle, [min(row) for row in heights], [max(row) for row in heights])


def _rates(runs: Sequence[Run], folder: Path) -> Path:
    """The change at the end against the learning rate, with the runs that broke or left their prompts marked."""
    series = []
    for kind in ("LoRA", "whole network"):
        own = {one: rows for one, rows in by_title(runs).items() if one.startswith(kind)}
        x = [_power(one) for one in own]
        ends = [[end(run) for run in rows if not run["broke"]] or [NAN] for rows in own.values()]
        series.append(Series(kind, x, [float(np.mean(row)) for row in ends], [*map(min, ends)], [*map(max, ends)]))
    bad = [(_power(title(run)), number(run["curve"][-1]["sd"])) for run in runs if run["broke"] or lost(run) > LOST]
    series.append(_points(f"broke, or lost over {LOST:.0f} points of colour or shape", bad))
    path = folder / "lora.svg"
    head = "LoRA and the whole network at three learning rates"
    line_chart(series, title=head, x="learning rate, power of ten", y=REWARD, path=path)
    return path


def _power(name: str) -> float:
    return round(math.log10(float(name.split(", ")[1])), 6)


def _points(name: str, points: Sequence[tuple[float, float]]) -> Series:
    """Points without a line: a gap after each."""
    return Series(name, [x for x, _ in points for _ in (0, 1)], [v for _, y in points for v in (y, NAN)])


def _decay(runs: Sequence[Run], folder: Path) -> Path:
    """The change against iterations, with the interval over prompts."""
    series = []
    for one, (run, *_) in by_title(runs).items():
        columns = ([number(point[key]) for point in run["curve"]] for key in ("iteration", "sd", "low", "high"))
        series.append(Series(one, *columns))
    path = folder / "decay.svg"
    line_chart(series, title="A long run: the course of the learning rate", x="iteration", y=REWARD, path=path)
    return path


def _histogram(runs: Sequence[Run], folder: Path) -> Path:
    """The pictures' rewards at three moments of the constant run."""
    own = by_title(runs)
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
    path = folder / "decay_histogram.svg"
    line_chart(bars, title=head, x="reward of a picture, kB", y="pictures", path=path)
    return path


def _steps(name: str, values: Sequence[float], edges: np.ndarray) -> Series:
    counts, _ = np.histogram(values, edges)
    x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]]).astype(float)
    return Series(name, x.tolist(), y.tolist(), [0.0] * len(x), y.tolist())


DRAWN: dict[str, list[Plot]] = {
    "prompts": [_curves("prompts", "Training on 4, 24 or all prompts")],
    "clip": [_curves("clip", "Where the ratio is clipped, and no ratio at all")],
    "lora": [_rates],
    "decay": [_decay, _histogram],
    "steps": [
        _curves("steps", "How many of the last steps keep their graph"),
        _curves("steps_seconds", "The same against the time of training", "seconds"),
    ],
    "kl": [
        _curves("kl_diversity", "Diversity on the way", "iteration", "diversity"),
        _curves("kl_reward", "The reward on the way", "iteration"),
        _curves("kl_front", "What the reward costs in diversity", "diversity"),
    ],
}
