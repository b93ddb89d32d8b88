"""Which charts a run's report has, and what they are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tastemaker.reports.charts import SMALL, WIDE, Bars, Chart, Line, lines_chart, spread
from tastemaker.reports.numbers import Number, place
from tastemaker.reports.records import Records

# statistics of an update: title, and what it says
UPDATES = {
    "clip_fraction": ("Clipped", "share of items whose ratio the clip held"),
    "log_ratio": ("Largest log ratio", "from the weights that drew the pictures"),
    "mismatch": ("Mismatch", "log ratio before the first step: of rounding alone"),
    "approx_kl": ("KL from the sampler", "estimated from the ratios"),
    "kl": ("KL from the base", "as the loss has it"),
    "grad_norm": ("Gradient norm", "before it is cut"),
    "loss": ("Loss", "of a policy gradient it need not fall"),
    "learning_rate": ("Learning rate", ""),
    "skipped": ("Skipped steps", "their gradient was not finite"),
}
COUNTED = {"items", *UPDATES}
WATCHED = {
    "diversity": ("Diversity, training pictures", "within prompts"),
    "spread": ("Differences between all pictures", "mean squared, whatever the prompt"),
    "drift": ("Drift from the base", "mean squared distance of predictions, on some of the steps"),
    "kl": ("KL from the base, per step", "on some of the steps"),
    "periodicity": ("Periodic artifacts", "spectral peaks at the patch's or the latent's stride"),
    "saturation": ("Saturation", "share of the pixels at their ends"),
}
UNITS = ("pictures", "diversity_base", "diversity_error", "held_out_sd.")  # what the watch's numbers are measured by
CHECKED, TRAINED = "checked", "checked_trained"  # how many fixed pictures, and what a check found on them
MOST = 1000  # iterations that are drawn
PARTS = ("sampling", "learning", "watch", "other")


class Panel(NamedTuple):
    """A chart with its words. `wide` is a second drawing of it for broad windows."""

    title: str
    note: str
    chart: Chart | None  # None where the number never changed: then it is said in words
    latest: Number | None = None
    wide: Chart | None = None
    names: tuple[str, ...] = ()  # of its lines, for the legend


class Panels(NamedTuple):
    """All charts of a report. `left_out` says where not all iterations are drawn."""

    reward: Panel | None
    held: list[Panel]
    health: list[Panel]
    still: list[Panel]  # what never changed
    cost: list[Panel]
    left_out: str


def panels(records: Records) -> Panels:
    """Charts of what there is; what was not measured has none."""
    there, alarms = len(records.metrics), spread(_marks(records), MOST)
    checks = spread([row for row in records.metrics if CHECKED in (row.get("watch") or {})], MOST)
    metrics, evaluations = spread(records.metrics, MOST), spread(records.evaluations, MOST)
    records = replace(records, metrics=metrics, evaluations=evaluations)
    left_out = f"{len(metrics):,} of {there:,} iterations are drawn, evenly." if len(metrics) < there else ""
    held = [*_held_out(records, alarms)]
    health = [one for one in (_histogram(metrics, alarms), _diversity(records, alarms)) if one]
    health += [
        *_checks(records.reward, checks, alarms),
        *_watched(metrics, alarms),
        *_updates(metrics, alarms),
        *_failed(metrics),
    ]
    cost = [one for one in (_seconds(metrics), _memory(metrics)) if one]
    moving, still = ([one for one in health if (one.chart is None) == quiet] for quiet in (False, True))
    return Panels(_reward(records.reward, metrics, evaluations, alarms), held, moving, still, cost, left_out)


def _marks(records: Records) -> list[float]:
    return [float(row["iteration"]) for row in records.alarms]


def _reward(name: str, metrics: Sequence[Any], evaluations: Sequence[Any], marks: Sequence[float]) -> Panel | None:
    """Training pictures and evaluations in one chart."""
    rows = [row for row in metrics if row.get("reward")]
    judged = evaluated(name, evaluations)
    trained = Line(
        "training pictures, mean",
        [row["iteration"] for row in rows],
        [row["reward"].get("mean") for row in rows],
        of="/metrics/{x}/reward/mean",
    )
    found = [one for one in (judged, trained) if one and any(v is not None for v in one.y)]
    if not found:
        return None
    title = f"{name}, by iteration"
    small, wide = (lines_chart(found, title, size=size, marks=marks) for size in (SMALL, WIDE))
    return Panel(name, "", small, wide=wide, names=tuple(one.name for one in found))


def evaluated(name: str, evaluations: Sequence[Mapping[str, Any]], label: str = "") -> Line | None:
    """The evaluations' means of one score with their intervals."""
    rows = [row for row in evaluations if name in row.get("reward", {})]
    if not rows:
        return None
    mean, low, high = ([row["reward"][name].get(key) for row in rows] for key in ("mean", "low", "high"))
    of = place("evaluations", "{x}", "reward", name, "mean")
    told = label or f"evaluation on {rows[-1].get('prompts', 'fixed prompts')}"
    return Line(told, [row["iteration"] for row in rows], mean, low, high, of=of)


def _held_out(records: Records, marks: Sequence[float]) -> Iterator[Panel]:
    """A chart a score that was not trained on, with what the alarms measured on the rollouts; and one of its parts."""
    names = list(dict.fromkeys(name for row in records.evaluations for name in row.get("reward", {})))
    parts = {name: whole for name in names for whole in names if name.startswith(f"{whole}.")}
    watched = list(dict.fromkeys(key for row in records.metrics for key in row.get("watch") or {}))
    others = [key.removeprefix("held_out.") for key in watched if key.startswith("held_out.")]
    for name in dict.fromkeys([*names, *others]):
        if name in parts:
            continue
        if name not in names[:1]:
            yield _held_panel(name, records, marks)
        own = [one for part in parts if parts[part] == name
               if (one := evaluated(part, records.evaluations, part.removeprefix(f"{name}.")))]  # fmt: skip
        if own:
            chart = lines_chart(own, f"parts of {name}", marks=marks)
            yield Panel(f"{name}, parts", "", chart, names=tuple(one.name for one in own))


def _held_panel(name: str, records: Records, marks: Sequence[float]) -> Panel:
    found = [one for one in (evaluated(name, records.evaluations), _watch(records.metrics, f"held_out.{name}")) if one]
    latest = Number(found[0].y[-1], found[0].of.replace("{x}", str(found[0].x[-1])))
    legend = tuple(one.name for one in found) if len(found) > 1 else ()
    note = "held out: judged, never trained on"
    return Panel(name, note, lines_chart(found, name, marks=marks), latest, names=legend)


def _watch(metrics: Sequence[Mapping[str, Any]], key: str) -> Line | None:
    rows = [row for row in metrics if key in (row.get("watch") or {})]
    if not rows:
        return None
    x, y = [row["iteration"] for row in rows], [row["watch"][key] for row in rows]
    return Line("training pictures", x, y, of=place("metrics", "{x}", "watch", key))


def _checks(reward: str, metrics: Sequence[Mapping[str, Any]], marks: Sequence[float]) -> Iterator[Panel]:
    """One chart of all checks: the trained reward and the held-out ones on the same fixed pictures."""
    keys = dict.fromkeys(key for row in metrics for key in row.get("watch") or {})
    names = {TRAINED: reward} | {key: key.removeprefix("checked.") for key in keys if key.startswith("checked.")}
    lines = [line._replace(name=name) for key, name in names.items() if (line := _watch(metrics, key))]
    if any(value is not None for line in lines for value in line.y):
        title, note = "Checks on fixed pictures", "change against the base's, in its standard deviations over pictures"
        chart = lines_chart(lines, title, marks=marks)
        yield Panel(title, note, chart, names=tuple(line.name for line in lines))


def _watched(metrics: Sequence[Mapping[str, Any]], marks: Sequence[float]) -> Iterator[Panel]:
    keys = dict.fromkeys(key for row in metrics for key in row.get("watch") or {})
    for key in keys:
        line = _watch(metrics, key)
        if line is None or key.startswith(("held_out.", CHECKED, *UNITS)) or all(v is None for v in line.y):
            continue
        title, note = WATCHED.get(key, (key, "watched by the alarms"))
        if key == "diversity" and "diversity_base" in keys:
            title, note = "Diversity, strips", "within a few fixed prompts, from fixed noise"
        latest = Number(line.y[-1], place("metrics", line.x[-1], "watch", key))
        yield Panel(title, note, lines_chart([line], title, marks=marks), latest)


def _histogram(metrics: Sequence[Mapping[str, Any]], marks: Sequence[float]) -> Panel | None:
    """The rewards of all pictures: a column an iteration, darker where more of them lie."""
    rows = spread([row for row in metrics if row.get("reward", {}).get("mean") is not None])
    if not rows:
        return None
    line = Line("mean", [r["iteration"] for r in rows], [r["reward"]["mean"] for r in rows],
                of="/metrics/{x}/reward/mean")  # fmt: skip
    columns = [column for row in rows if (column := _column(row))]
    note = "darker where more of them lie; the line is the mean"
    if not columns:  # an older run
        low, high = ([r["reward"].get(key) for r in rows] for key in ("min", "max"))
        line, note = line._replace(low=low, high=high), "mean, and the range from the lowest to the highest"
    title = "Rewards of all training pictures"
    skipped = f"; {len(rows)} of {len(metrics)} iterations" if len(rows) < len(metrics) else ""
    return Panel(title, note + skipped, lines_chart([line], title, marks=marks, columns=columns, first=1))


def _column(row: Mapping[str, Any]) -> Bars | None:
    reward = row["reward"]
    counts, low, high = reward.get("histogram"), reward.get("min"), reward.get("max")
    if not counts or low is None or high is None or not any(counts):
        return None
    step, most = (high - low) / len(counts), max(counts)
    bars = [(low + k * step, low + (k + 1) * step, count / most, 0) for k, count in enumerate(counts) if count]
    return Bars(row["iteration"], bars)


def _diversity(records: Records, marks: Sequence[float]) -> Panel | None:
    rows = [row for row in records.evaluations if (row.get("diversity") or {}).get("mean") is not None]
    if not rows:
        return None
    mean, low, high = ([row["diversity"].get(key) for row in rows] for key in ("mean", "low", "high"))
    x = [row["iteration"] for row in rows]
    line = Line("evaluation", x, mean, low, high, of="/evaluations/{x}/diversity/mean")
    title, note = "Diversity, evaluation", f"within prompts, {rows[-1]['diversity'].get('metric', '')}"
    latest = Number(mean[-1], place("evaluations", x[-1], "diversity", "mean"))
    return Panel(title, note, lines_chart([line], title, marks=marks, zero=True), latest)


def _updates(metrics: Sequence[Mapping[str, Any]], marks: Sequence[float]) -> Iterator[Panel]:
    """A chart a statistic of the optimizer steps: of every iteration the last one, and the span of all."""
    names = dict.fromkeys(name for row in metrics for update in row.get("updates") or () for name in update)
    for name in [*(n for n in UPDATES if n in names), *(n for n in names if n not in COUNTED)]:
        title, note = UPDATES.get(name, (name, "of the optimizer's steps"))
        line = _steps(name, metrics)
        known = [v for v in [*line.y, *(line.low or ())] if v is not None]
        if not known or name == "skipped" and not any(line.high or ()):
            continue
        latest = Number(line.y[-1], line.of.replace("{x}", str(line.x[-1])))
        if len(set(known)) == 1 and name != "learning_rate":
            yield Panel(title, note, None, latest)
        else:
            yield Panel(title, note, lines_chart([line], title, marks=marks), latest)


def _steps(name: str, metrics: Sequence[Mapping[str, Any]]) -> Line:
    """Of every iteration the last step that has the statistic, and the span of all of its steps."""
    x, y, low, high, at = [], [], [], [], set()
    for row in metrics:
        updates = row.get("updates") or ()
        having = [k for k, update in enumerate(updates) if name in update]
        if having:
            known = [v for k in having if (v := updates[k][name]) is not None]
            x.append(row["iteration"])
            y.append(updates[having[-1]][name])
            low.append(min(known, default=None))
            high.append(max(known, default=None))
            at.add(-1 if having[-1] == len(updates) - 1 else having[-1])
    of = place("metrics", "{x}", "updates", *at, name) if len(at) == 1 else ""  # else there is no one place
    return Line("last step", x, y, low, high, of=of)


def _failed(metrics: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    """Only where a score failed."""
    rows = [row for row in metrics if "failed" in row.get("reward", {})]
    y = [row["reward"]["failed"] for row in rows]
    if any(y):
        line = Line("failed scores", [row["iteration"] for row in rows], y, of="/metrics/{x}/reward/failed")
        chart = lines_chart([line], "Failed scores", zero=True)
        yield Panel("Failed scores", "pictures that the reward gave no number", chart)


def _seconds(metrics: Sequence[Mapping[str, Any]]) -> Panel | None:
    """Where the time of each iteration went, stacked."""
    timed = [row for row in metrics if row.get("seconds")]
    rows = spread(timed)
    if not rows:
        return None
    parts = tuple(part for part in PARTS if all(part in row["seconds"] for row in rows))
    columns = []
    for row in rows:
        bars, done = [], 0.0
        for k, part in enumerate(parts):
            taken = row["seconds"].get(part) or 0.0
            bars.append((done, done + taken, 0.9, k))
            done += taken
        columns.append(Bars(row["iteration"], bars))
    lines = [
        Line(name, [r["iteration"] for r in rows], [r["seconds"].get(name) for r in rows],
             of=f"/metrics/{{x}}/seconds/{name}")
        for name in (*parts, "total")
    ]  # fmt: skip
    chart = lines_chart([], "Seconds an iteration", columns=columns, zero=True)
    chart = Chart(chart.svg, {**chart.data, "lines": lines_chart(lines, "").data["lines"]})
    note = "stacked" + (f"; {len(rows)} of {len(timed)} iterations" if len(rows) < len(timed) else "")
    return Panel("Seconds an iteration", note, chart, names=parts)


def _memory(metrics: Sequence[Mapping[str, Any]]) -> Panel | None:
    for key, whose in (("peak_bytes", "device"), ("process_peak_bytes", "process")):
        rows = [row for row in metrics if (row.get("memory") or {}).get(key)]
        if rows:
            x, y = [row["iteration"] for row in rows], [row["memory"][key] for row in rows]
            chart = lines_chart([Line("bytes", x, y, of=f"/metrics/{{x}}/memory/{key}")], "Memory", zero=True)
            return Panel(f"Memory of the {whose}", "most at once until then, bytes", chart)
    return None
