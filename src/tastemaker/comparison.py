"""Models side by side in numbers: rows of a table, for the terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table as Shown

from tastemaker.evaluation.diversity import compare as compare_diversity
from tastemaker.evaluation.evaluate import Trial, Verdict, compare
from tastemaker.evaluation.guidance import rule
from tastemaker.evaluation.statistics import FEW, Interval, over_seeds
from tastemaker.reports.plot import Series, line_chart
from tastemaker.subjects import Subject

DIVERSITY = "diversity"
APART = ("seed", "output_dir", "hub_model_id", "device", "report_to")  # settings in which runs over seeds may differ


@dataclass(frozen=True)
class Score:
    """One score of one model. Everything but mean, low and high is against its base on the same prompts and noise."""

    mean: float
    low: float
    high: float
    change: float
    change_low: float
    change_high: float
    deviations: float  # the change in units of the base's standard deviation over pictures
    wins: float  # share of pairs won, ties half
    wins_low: float
    wins_high: float


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    base: str  # the row that it is compared with; its own name where it is one
    scores: dict[str, Score]
    mix: dict[str, float]  # weights of LoRAs, where it is a mix
    anneal: str  # the rule by which base and tuned model drew together; empty where none was asked for


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in their seeds alone."""

    names: list[str]
    changes: dict[str, Interval]  # of the runs' mean changes, with the t interval over seeds


@dataclass(frozen=True)
class Table:
    """All that an evaluation found."""

    prompts: str
    pictures: int  # of each model
    asked: int  # prompts that they are of
    sampler: str
    steps: int
    guidance: float
    seed: int
    metric: str  # of diversity; empty where it was not measured
    rows: list[Row]
    seeds: list[Seeds]

    def json(self) -> str:
        """Everything; JSON has no NaN: it becomes null."""
        return json.dumps(plain(asdict(self)), indent=1, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """A line a model and score."""
        text = io.StringIO()
        names = list(Score.__dataclass_fields__)
        writer = csv.writer(text)
        writer.writerow(["model", "base", "score", *names])
        for row in self.rows:
            for score, found in row.scores.items():
                writer.writerow([row.name, row.base, score, *(_cell(getattr(found, name)) for name in names)])
        return text.getvalue()

    def heading(self) -> str:
        """What the numbers are of."""
        return (
            f"{self.pictures} pictures of {self.prompts} by each model, same prompts and noise; {self.steps} steps, "
            f"guidance {self.guidance:g}, {self.sampler} sampler; 95 % intervals over {self.asked} prompts"
            + ("; so few make them too narrow" if self.asked < FEW else "")
        )

    def shown(self) -> Iterator[Shown]:
        """A table a score, for the terminal."""
        for name in dict.fromkeys(name for row in self.rows for name in row.scores):
            title = f"{name}, {self.metric}" if name == DIVERSITY else name
            shown = Shown(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
            for head in ("", "mean", "change", "95 %", "", "SD", "pairs won"):
                shown.add_column(head, justify="left" if head == "" else "right", no_wrap=True)
            bases = {row.name: row.scores[name].mean for row in self.rows if name in row.scores}
            for row in self.rows:
                if name in row.scores:
                    shown.add_row(*_cells(row, row.scores[name], bases[row.base]))
            for group in self.seeds:
                if name in group.changes:
                    shown.add_row(*_over(group, group.changes[name]))
            yield shown


def row_of(subject: Subject, base: Subject, verdict: Verdict, before: Verdict, trial: Trial) -> Row:
    """A model's row; against itself, where it is a base, every change is 0."""
    scores: dict[str, Score] = {}
    for name, found in compare(before.values, verdict.values, trial.prompts, trial.seed).items():
        scores[name] = Score(*found.tuned, *found.change, found.deviations, *found.wins)
    if verdict.diversity and before.diversity:
        found_ = compare_diversity("", before.diversity, verdict.diversity, seed=trial.seed)
        nothing = (math.nan,) * 4
        scores[DIVERSITY] = Score(*found_.tuned, *found_.change, *nothing)
    mix = {part.name: part.weight for part in subject.mix or ()}
    return Row(subject.name, base.name, scores, mix, str(subject.anneal or ""))


def front(table: Table) -> str:
    """The first score against diversity as SVG, a point a weight and rule; empty where there are none of both."""
    made = [row for row in table.rows if row.mix or row.anneal]
    if not made or not all(DIVERSITY in row.scores for row in table.rows):
        return ""
    reward = next(iter(made[0].scores))
    lines: dict[str, list[tuple[float, str, float, float]]] = {}  # name -> (place in the line, label, x, y)
    for row in table.rows:
        place, label, line = 0.0, row.name, row.name
        if row.anneal:
            by = rule(row.anneal)
            place, label = sum(by.weight(i, table.steps) for i in range(table.steps)), row.anneal
            line = f"{row.name.rpartition(', ')[0]}, annealed"
        elif row.mix:
            *before, (name, place) = row.mix.items()
            label, line = f"{place:g}", f"from {before[0][0] if before else row.base} to {name}"
        elif row.name != row.base:
            continue
        point = (place, label, row.scores[DIVERSITY].mean, row.scores[reward].mean)
        if all(map(math.isfinite, point[2:])):
            lines.setdefault(line, []).append(point)
    title, axis = "what the reward costs in diversity", f"diversity, {table.metric}"
    return line_chart(list(_series(lines)), title=title, x=axis, y=reward)


def _series(lines: Mapping[str, list[tuple[float, str, float, float]]]) -> Iterator[Series]:
    """The lines with their labels; of points in one place the first has those of all."""
    at: dict[tuple[float, float], list[str]] = {}
    for found in lines.values():
        for _, label, x, y in found:
            at.setdefault((x, y), []).append(label)
    for name, found in lines.items():
        rows = [(x, y, ", ".join(at.pop((x, y), []))) for _, _, x, y in sorted(found)]
        yield Series(name, [x for x, _, _ in rows], [y for _, y, _ in rows], labels=[label for *_, label in rows])


def with_seeds(found: Sequence[tuple[Subject, Row]]) -> list[Seeds]:
    """The runs that are one another but for their seed, two or more of them."""
    groups: dict[str, list[tuple[Subject, Row]]] = {}
    for subject, row in found:
        if subject.file and subject.is_tuned:
            same = {key: value for key, value in subject.tree.items() if key not in APART}
            same["variant"] = [row.anneal, list(row.mix.values())]
            groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append((subject, row))
    seeds = []
    for members in groups.values():
        if len({subject.tree["seed"] for subject, _ in members}) < 2:
            continue
        rows = [row for _, row in members]
        common = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
        changes = {name: over_seeds([row.scores[name].change for row in rows]) for name in common}
        seeds.append(Seeds([row.name for row in rows], changes))
    return seeds


def _cells(row: Row, found: Score, before: float) -> list[str]:
    if row.name == row.base:
        return [row.name, f"{found.mean:.4g}", "", f"[{found.low:.4g}, {found.high:.4g}]", "", "", ""]
    share = f"{100 * found.change / abs(before):+.0f} %" if before else ""
    deviations = "" if math.isnan(found.deviations) else f"{found.deviations:+.2f}"
    ends = f" [{100 * found.wins_low:.0f}, {100 * found.wins_high:.0f}]"
    wins = "" if math.isnan(found.wins) else f"{100 * found.wins:.0f} %{ends}"
    interval = f"[{found.change_low:+.3g}, {found.change_high:+.3g}]"
    return [row.name, f"{found.mean:.4g}", f"{found.change:+.3g}", interval, share, deviations, wins]


def _over(group: Seeds, change: Interval) -> list[str]:
    interval = f"[{change.low:+.3g}, {change.high:+.3g}]"
    return [f"over {len(group.names)} seeds", "", f"{change.mean:+.3g}", interval, "", "", ""]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def plain(value: Any) -> Any:
    """For JSON: intervals by their ends' names, and no NaN: it becomes null."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, Interval):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
