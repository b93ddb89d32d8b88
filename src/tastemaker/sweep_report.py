"""What a sweep shows: four plots, a grid of pictures, a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from rich.table import Table

from tastemaker.evaluation.statistics import Interval
from tastemaker.folder import write_text
from tastemaker.outcome import Run
from tastemaker.reports.pictures import grid
from tastemaker.reports.plot import Series, line_chart
from tastemaker.sweeping import Made, Point, Summary, as_json, summaries
from tastemaker.training.samples import Samples

AXES: dict[str, tuple[str, Callable[[Point], float]]] = {
    "iterations.svg": ("iteration", lambda point: point.iteration),
    "queries.svg": ("reward queries", lambda point: point.queries),
    "network.svg": ("network rows", lambda point: point.rows),
}


def reward_of(point: Point) -> float:
    """The mean reward."""
    return point.reward


def diversity(point: Point) -> float:
    """The diversity, or NaN where it was not measured."""
    return math.nan if point.diversity is None else point.diversity


def show(target: str, made: Sequence[Made], folder: Path) -> list[Path]:
    """Writes sweep.json, the plots and the grid; returns their paths."""
    first = Run.open(folder / made[0].folder)
    reward, record = next(iter(first.evaluations()[0]["reward"])), folder / "sweep.json"
    write_text(record, as_json(target, made))
    paths = [record]
    for name, (axis, place) in AXES.items():
        series = [_over_seeds(variant, runs, place) for variant, runs in _by_variant(made)]
        line_chart(series, title=f"{target}: {reward}", x=axis, y=f"{reward}, mean over seeds", path=folder / name)
        paths.append(folder / name)
    metric = first.evaluations()[0].get("diversity", {}).get("metric")
    if metric:
        title = f"{target}: what the reward costs in diversity"
        fronts = [_front(variant, runs) for variant, runs in _by_variant(made)]
        line_chart(fronts, title=title, x=f"diversity, {metric}", y=reward, path=folder / "diversity.svg")
        series = [
            _over_seeds(variant, runs, AXES["iterations.svg"][1], diversity) for variant, runs in _by_variant(made)
        ]
        path = folder / "diversity_iterations.svg"
        line_chart(series, title=f"{target}: diversity", x="iteration", y=f"diversity, {metric}", path=path)
        paths += [folder / "diversity.svg", path]
    sheet = _grid(made, folder)
    return [*paths, sheet] if sheet else paths


def _by_variant(made: Sequence[Made]) -> Iterator[tuple[str, list[Made]]]:
    for name in dict.fromkeys(one.variant for one in made):
        yield name, [one for one in made if one.variant == name]


def _over_seeds(
    name: str, runs: Sequence[Made], place: Callable[[Point], float], of: Callable[[Point], float] = reward_of
) -> Series:
    """The mean over seeds at every evaluation that all seeds have; the band is from the lowest seed to the highest."""
    columns = list(zip(*(run.curve for run in runs), strict=False))
    rewards = [[of(point) for point in column] for column in columns]
    x = [sum(map(place, column)) / len(column) for column in columns]
    y = [sum(row) / len(row) for row in rewards]
    if len(runs) == 1:
        return Series(name, x, y)
    return Series(f"{name} ({len(runs)} seeds)", x, y, [min(row) for row in rewards], [max(row) for row in rewards])


def _front(name: str, runs: Sequence[Made]) -> Series:
    """From evaluation to evaluation: the mean over seeds of diversity and reward."""
    columns = list(zip(*(run.curve for run in runs), strict=False))
    x = [sum(map(diversity, column)) / len(column) for column in columns]
    return Series(name, x, [sum(point.reward for point in column) / len(column) for column in columns])


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _grid(made: Sequence[Made], folder: Path) -> Path | None:
    """A row a variant, of the first seed: the same prompts and noise, before and after; a column a prompt."""
    rows, titles, notes = [], [], []
    firsts = [one for one in made if one.seed == made[0].seed and one.curve]
    kept: set[int] | None = None
    files: list[tuple[str, dict[int, Path], Made, int]] = []
    for k, one in enumerate(firsts):
        samples = Samples(folder / one.folder, "evaluation", write=False)
        for title, point in (("base", one.curve[0]), (one.variant, one.curve[-1]))[k > 0 :]:
            found = samples.files(point.iteration)
            kept = set(found) if kept is None else kept & set(found)
            files.append((title, found, one, point.iteration))
    if not kept:
        return None
    ids = sorted(kept)
    for title, found, one, iteration in files:
        judged = next(row for row in Run.open(folder / one.folder).evaluations() if row["iteration"] == iteration)
        values = next(iter(judged["values"].values()))
        rows.append([_picture(found[b]) for b in ids])
        notes.append([f"{_or_nan(values[b]):.3g}" for b in ids])
        titles.append(title)
    kept_rows = Samples(folder / firsts[0].folder, "evaluation", write=False).lines.rows()
    texts = {row["id"]: row["prompt"] for row in kept_rows if row["kind"] == "evaluation"}
    grid(rows, [texts[b] for b in ids], titles, folder / "grid.png", notes=notes)
    return folder / "grid.png"


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def table(made: Sequence[Made]) -> Table:
    """A row a variant, for the terminal."""
    found = summaries(made)
    judges = list(dict.fromkeys(judge for row in found for judge in row.scores))[1:]
    shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    parts = [judge.rpartition(".")[2] for judge in judges]
    heads = ("", "runs", "change", "SD", "diversity", *parts, "queries", "rows", "seconds")
    for head in heads:
        shown.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for row in found:
        shown.add_row(*_cells(row, judges))
    return shown


def _cells(row: Summary, judges: Sequence[str]) -> Iterator[str]:
    yield row.variant
    yield f"{row.seeds}{f', {row.broke} broke' if row.broke else ''}"
    yield _shown(row.change, "+.3g")
    yield _shown(row.deviations, "+.2f")
    yield _shown(row.diversity, ".3g")
    for judge in judges:
        yield f"{row.scores[judge].mean:.3g}" if judge in row.scores else ""
    yield f"{row.queries:,}"
    yield f"{row.rows:,}"
    yield f"{row.seconds:.0f}"


def _shown(found: Interval, form: str) -> str:
    if math.isnan(found.mean):
        return "-"
    ends = "" if math.isnan(found.low) else f" [{found.low:{form}}, {found.high:{form}}]"
    return f"{found.mean:{form}}{ends}"
