"""The page of several runs: the same prompts side by side, their curves in one chart, the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from tastemaker.reports.charts import SMALL, WIDE, Line, lines_chart
from tastemaker.reports.embedding import BYTES, MOST, Encoder, Picture
from tastemaker.reports.numbers import Number, clock
from tastemaker.reports.panels import Panel, evaluated
from tastemaker.reports.records import Records, shown
from tastemaker.reports.report import figure_data, page
from tastemaker.reports.verdict import Part, Score, scores

COLUMNS = 8  # prompts side by side
BANDS = 2  # lines of a chart that are drawn with their intervals


class Subject(NamedTuple):
    """A run and the name it has among the others."""

    name: str
    records: Records
    scores: list[Score]

    @property
    def trained(self) -> Score | None:
        return self.scores[0] if self.scores else None


class Kept(NamedTuple):
    """The rows of samples.jsonl of a run's first and last evaluation, by the pictures' ids."""

    subject: Subject
    first: Mapping[int, Any]
    last: Mapping[int, Any]


class Row(NamedTuple):
    """A row of the grid: the base's, or a run's."""

    name: str
    pictures: dict[int, Picture]


def render(runs: Sequence[Records], *, papers: Sequence[str] = ()) -> str:
    """The page of several runs. Errors: ValueError where there are fewer than two."""
    if len(runs) < 2:
        raise ValueError(f"a comparison takes two runs or more, found {len(runs)}.")
    subjects = [Subject(name, one, scores(one)) for name, one in zip(_names(runs), runs, strict=True)]
    drawn = list(_panels(subjects))
    rows, said = _grid(subjects)
    return page(
        "comparison.html.jinja",
        {
            "charts": {f"chart-{k}": figure_data(one) for k, one in enumerate(drawn)},
            "strips": dict(_strips(rows, runs[0].reward)),
            "live": "",
        },
        title=f"{len(runs)} runs",
        live="",
        head=_head(subjects),
        subjects=subjects,
        others=_others(subjects),
        totals=[_totals(one.records) for one in subjects],
        rows=rows,
        ids=sorted(rows[0].pictures) if rows else [],
        tiny=bool(rows) and max(max(p.size) for row in rows for p in row.pictures.values()) <= 128,
        grid_said=said,
        panels=drawn,
        differing=_differing(runs),
        papers="\n\n".join(dict.fromkeys(papers)),
    )


def _names(runs: Sequence[Records]) -> list[str]:
    """Each run's folder, with as many folders above it as it takes to tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(one[-depth:]) for one in parts]
        if len(set(found)) == len(found):
            break
    shared = 0
    columns = [name.split("/") for name in found]
    while min(map(len, columns)) - shared > 1 and len({one[shared] for one in columns}) == 1:
        shared += 1  # the same for all tells nothing
    return [shown("/".join(one[shared:]), 80) for one in columns]


def _head(subjects: Sequence[Subject]) -> list[Part]:
    """Which run moved its reward the most; only where all were trained on the same."""
    judged = [one for one in subjects if one.trained and one.trained.change["mean"].value is not None]
    names = {one.trained.name for one in judged if one.trained}
    if not judged:
        return ["None of these runs has been judged after training yet."]
    if len(names) > 1:
        return [f"These runs were trained on {len(names)} rewards: their changes do not compare."]
    best = max(judged, key=lambda one: one.trained.change["mean"].value)  # type: ignore[union-attr,arg-type,return-value]
    assert best.trained is not None
    change = best.trained.change
    head: list[Part] = [f"{best.name} raised {best.trained.name} the most: ", change["mean"]]
    head += [" (95 % interval ", change["low"], " to ", change["high"], ")"] if change["low"].value is not None else []
    if best.trained.direction != "rose":
        return [
            f"No run clearly raised {best.trained.name}; the largest change is that of {best.name}: ",
            *head[1:],
            ".",
        ]
    near = [one.name for one in judged if one is not best and _reaches(one, change["low"].value)]
    if near:
        head += [f"; within its interval: {', '.join(near)}"]
    fell = [one.name for one in best.scores if one.role == "held out" and one.direction == "fell"]
    return [*head, f"; {' and '.join(fell)} fell with it." if fell else "."]


def _reaches(one: Subject, low: float | None) -> bool:
    mean = one.trained.change["mean"].value if one.trained else None
    return low is not None and mean is not None and mean >= low


def _others(subjects: Sequence[Subject]) -> list[str]:
    """The held-out scores of any run."""
    return list(dict.fromkeys(s.name for one in subjects for s in one.scores if s.role == "held out"))


def _totals(records: Records) -> dict[str, Any]:
    rows = records.metrics
    return {
        "iterations": Number(rows[-1]["iteration"] + 1 if rows else 0),
        "queries": Number(sum(row.get("queries") or 0 for row in rows), form=",.0f"),
        "time": clock(sum((row.get("seconds") or {}).get(part) or 0.0 for row in rows for part in ("total", "watch"))),
        "alarms": len(records.alarms),
    }


def _panels(subjects: Sequence[Subject]) -> Iterator[Panel]:
    """The reward by queries and by iterations, then every other whole score and diversity by iterations."""
    names = list(dict.fromkeys(name for one in subjects for name in _judged(one.records)))
    whole = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    for k, name in enumerate(whole):
        found = [
            (one, evaluated(name, one.records.evaluations, one.name) or Line(one.name, [], [])) for one in subjects
        ]
        legend = tuple(one.name for one in subjects)
        if k == 0:
            priced = [line._replace(x=_queries(one.records, line.x), of="") for one, line in found]
            drawn = [lines_chart(_plain(priced), name, size=size, axis="reward queries") for size in (SMALL, WIDE)]
            note = "evaluations by what training had cost"
            yield Panel(f"{name} by reward queries", note, drawn[0], wide=drawn[1], names=legend)
        title = name if k else f"{name} by iteration"
        chart = lines_chart(_plain([line for _, line in found]), name)
        yield Panel(title, "by iteration" if k else "", chart, names=legend)
    diverse = [_diversity(one) or Line(one.name, [], []) for one in subjects]
    if any(line.x for line in diverse):
        chart = lines_chart(_plain(diverse), "Diversity", zero=True)
        yield Panel("Diversity", "within prompts, by iteration", chart, names=tuple(one.name for one in subjects))


def _plain(lines: Sequence[Line]) -> list[Line]:
    """Without their bands where there are so many lines that the bands would hide them."""
    return [one._replace(low=None, high=None) for one in lines] if len(lines) > BANDS else list(lines)


def _judged(records: Records) -> list[str]:
    return [name for row in records.evaluations for name in row.get("reward", {})]


def _queries(records: Records, iterations: Sequence[float]) -> list[float]:
    """How many reward queries training had made before each of these iterations."""
    made = dict(zip((row["iteration"] + 1 for row in records.metrics),
                    accumulate(row.get("queries") or 0 for row in records.metrics), strict=True))  # fmt: skip
    return [float(made.get(int(x), 0)) for x in iterations]


def _diversity(one: Subject) -> Line | None:
    rows = [row for row in one.records.evaluations if (row.get("diversity") or {}).get("mean") is not None]
    if not rows:
        return None
    mean, low, high = ([row["diversity"].get(key) for row in rows] for key in ("mean", "low", "high"))
    return Line(one.name, [row["iteration"] for row in rows], mean, low, high, of="/evaluations/{x}/diversity/mean")


def _grid(subjects: Sequence[Subject]) -> tuple[list[Row], str]:
    """The base's pictures, and below them every run's last, of the prompts and noise that all have."""
    found_ends = [one for subject in subjects if (one := _ends(subject))]
    seed = found_ends[0].subject.records.settings.get("seed") if found_ends else None
    kept = [one for one in found_ends if one.subject.records.settings.get("seed") == seed]  # another seed, other noise
    if not kept:
        return [], "No two evaluations of a run kept pictures."
    alike = _alike(kept)
    if not alike:
        return [], "These runs were judged on different prompts, so their pictures do not stand side by side."
    shown_ids = alike[:COLUMNS]
    share = BYTES // max(1, min(MOST, len(shown_ids) * (len(kept) + 1)))
    encoders = [Encoder(one.subject.records.folder, share) for one in kept[: MOST // len(shown_ids) - 1]]
    models = {str(one.subject.records.settings.get("model")) for one in kept}
    base = "base" if len(models) == 1 else f"base of {kept[0].subject.name}"
    found = [Row(base, _pictures(encoders[0], kept[0].first, shown_ids))]
    for one, encoder in zip(kept, encoders, strict=False):
        found.append(Row(one.subject.name, _pictures(encoder, one.last, shown_ids)))
    whole = [b for b in shown_ids if all(b in row.pictures for row in found)]
    if not whole:
        return [], "The pictures' files are not there."
    missing = [one.name for one in subjects if one.name not in {row.name for row in found}]
    said = f"Not shown, for want of pictures or for another seed: {', '.join(missing)}." if missing else ""
    return [row._replace(pictures={b: row.pictures[b] for b in whole}) for row in found], said


def _ends(subject: Subject) -> Kept | None:
    """The evaluation pictures of a run's first and last iteration that has any."""
    rows = [r for r in subject.records.samples if r.get("kind") == "evaluation" and isinstance(r.get("id"), int)]
    ends = {row["iteration"] for row in rows}
    if len(ends) < 2:
        return None
    first, last = ({row["id"]: row for row in rows if row["iteration"] == at} for at in (min(ends), max(ends)))
    return Kept(subject, first, last)


def _alike(kept: Sequence[Kept]) -> list[int]:
    """Ids of the pictures that all runs drew of the same prompt from the same noise."""
    first = kept[0].first
    return [
        b for b in sorted(first)
        if all(b in before and b in after and before[b].get("prompt") == first[b].get("prompt")
               for _, before, after in kept)
    ]  # fmt: skip


def _pictures(encoder: Encoder, rows: Mapping[int, Any], ids: Sequence[int]) -> dict[int, Picture]:
    return {b: picture for b in ids if (picture := encoder(rows[b]))}


def _strips(rows: Sequence[Row], reward: str) -> Iterator[tuple[str, Any]]:
    """Stepping goes from run to run."""
    for b in sorted(rows[0].pictures) if rows else ():
        steps = []
        for k, row in enumerate(rows):
            sample = row.pictures[b].row
            parts = {shown(name, 80): value for name, value in (sample.get("parts") or {}).items()}
            where = row.name if k == 0 else f"{row.name}, iteration {sample['iteration']}"
            steps.append({"at": k, "where": where, "prompt": shown(sample.get("prompt", "")),
                          "scores": {shown(reward, 80): sample.get("reward"), **parts}, "link": None})  # fmt: skip
        yield f"e{b}", {"name": "", "steps": steps}


def _differing(runs: Sequence[Records]) -> list[tuple[str, list[str]]]:
    """Settings of which not all runs have the same value."""
    tables = [{one.path: one.value for one in run.listed} for run in runs]
    paths = dict.fromkeys(path for table in tables for path in table)
    rows = [(path, [table.get(path, "") for table in tables]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1 and path != "output_dir"]
