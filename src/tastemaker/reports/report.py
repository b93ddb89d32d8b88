"""report.html of a run: one sentence, pictures, then every number. One file, nothing is loaded from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tastemaker.reports import charts
from tastemaker.reports.embedding import MOST, Embedded, Picture, embed
from tastemaker.reports.inline import as_json, digest
from tastemaker.reports.numbers import Number, clock, place
from tastemaker.reports.panels import Panel, Panels, panels
from tastemaker.reports.prompt_table import prompt_table
from tastemaker.reports.records import Records, named, shown
from tastemaker.reports.verdict import scores, verdict

HERE = Path(__file__).parent
HEADLINE = 8  # prompts before and after
KINDS = {"e": "evaluation", "t": "training"}


def render(records: Records, *, beside: str | None = ".", papers: Sequence[str] = (), live: str = "") -> str:
    """The page of a run.

    beside: the run's folder as seen from the page, for links to its files; None where it is not there.
    papers: BibTeX entries of what the run stands on. live: the state that the page asks its server for again and again.
    """
    pictures, found = embed(records, MOST - 2 * HEADLINE), scores(records)
    strips = _strips(records, pictures, beside)
    ranks = {step["prompt"]: name for name, strip in strips.items() if name[0] == "t" for step in strip["steps"]}
    drawn = panels(records)
    reach = max((abs(v) for one in found for v in charts.deviations(_plain(one.change)) or ()), default=1.0)
    return page(
        "run.html.jinja",
        {"charts": dict(_chart_data(drawn)), "strips": strips, "live": live},
        title=records.name,
        live=live,
        records=records,
        facts=list(_facts(records)),
        verdict=verdict(records),
        headline=_headline(pictures),
        scores=[(one, charts.interval_bar(_plain(one.change), reach)) for one in found],
        panels=drawn,
        pictures=pictures,
        table=prompt_table(records, pictures.strips, ranks),
        totals=list(_totals(records)),
        papers="\n\n".join(papers),
    )


def page(template: str, data: Mapping[str, Any], **context: Any) -> str:
    """A whole page with its data, style and script inside, which alone its policy lets run."""
    style, script = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    connect = "'self'" if context.get("live") else "'none'"
    policy = (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    return (
        _templates()
        .get_template(template)
        .render(policy=policy, style=style, script=script, data=as_json(data), **context)
    )


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(shown=shown, named=named)
    made.globals.update(Number=Number, place=place)
    return made


def _plain(change: Mapping[str, Number]) -> dict[str, float | None]:
    return {key: number.value for key, number in change.items()}


def _facts(records: Records) -> Iterator[tuple[str, str]]:
    """What the run is, in a line: (what, which)."""
    settings = records.settings
    for key in ("algorithm", "model", "reward", "prompts"):
        if told := named(settings.get(key)):
            yield key, shown(told, 80)
    if "seed" in settings:
        yield "seed", str(settings["seed"])
    made = records.metrics[-1]["iteration"] + 1 if records.metrics else 0
    yield "iterations", f"{made} of {records.asked}" if records.asked else str(made)


def _headline(pictures: Embedded) -> list[tuple[str, Picture, Picture]]:
    """(strip, before, after): the same prompt and noise in the first and in the last evaluation."""
    found = []
    for name, strip in sorted(pictures.strips.items()):
        first, last = min(strip), max(strip)
        if first != last and (first, last) == (pictures.evaluated[0], pictures.evaluated[-1]):
            found.append((f"e{name}", strip[first], strip[last]))
    return found[:HEADLINE]


def _strips(records: Records, pictures: Embedded, beside: str | None) -> dict[str, Any]:
    """What enlarging and stepping read: of every strip its pictures, in their order."""
    found: dict[str, Any] = {}
    for name, strip in sorted(pictures.strips.items()):
        steps = [_step(strip[iteration], beside, records.reward) for iteration in sorted(strip)]
        found[f"e{name}"] = {"name": "same prompt, same noise", "steps": steps}
    for group in pictures.training:
        for rank, picture in group.pictures.items():
            strip = found.setdefault(f"t{rank}", {"name": f"{rank} training picture", "steps": []})
            strip["steps"].append(_step(picture, beside, records.reward))
    return found


def _step(picture: Picture, beside: str | None, reward: str) -> dict[str, Any]:
    row = picture.row
    kind = "evaluation" if row.get("kind") == "evaluation" else "training"
    parts = {shown(name, 80): value for name, value in (row.get("parts") or {}).items()}
    link = None if beside is None else f"{quote(beside)}/{quote(str(row['file']))}"
    return {
        "at": row["iteration"],
        "of": place("samples", row["iteration"], kind, row["id"]),
        "prompt": shown(row.get("prompt", "")),
        "scores": {shown(reward, 80): row.get("reward"), **parts},
        "link": link,
    }


def _chart_data(drawn: Panels) -> Iterator[tuple[str, Any]]:
    """Every chart's numbers by the name of its figure; of one drawn twice both scales."""
    groups: dict[str, list[Panel]] = {
        "reward": [drawn.reward] if drawn.reward else [], "held": drawn.held, "health": drawn.health,
        "cost": drawn.cost,
    }  # fmt: skip
    for name, group in groups.items():
        for k, panel in enumerate(group):
            yield f"{name}-{k}", figure_data(panel)


def figure_data(panel: Panel) -> dict[str, Any]:
    """A chart's axis and lines, and where they are on each of its drawings."""
    both = [one for one in (panel.chart, panel.wide) if one]
    return {**both[0].data, "scale": [one.data["scale"] for one in both]}


def _totals(records: Records) -> Iterator[tuple[str, Number | str]]:
    """What the run cost, summed over its iterations."""
    rows = records.metrics
    if not rows:
        return
    seconds = {key: sum((row.get("seconds") or {}).get(key) or 0.0 for row in rows)
               for key in ("total", "sampling", "learning", "other", "reward", "watch")}  # fmt: skip
    seconds["total"] += seconds["watch"]  # which is counted beside it
    yield "time", clock(seconds["total"])
    for key, name in (
        ("sampling", "drawing"),
        ("learning", "learning"),
        ("watch", "watching"),
        ("other", "else"),
        ("reward", "of these, scoring"),
    ):
        share = 100 * seconds[key] / seconds["total"] if seconds["total"] else 0
        yield name, f"{clock(seconds[key])} ({share:.0f} %)"
    yield "pictures", Number(sum(row.get("images") or 0 for row in rows), form=",.0f")
    yield "reward queries", Number(sum(row.get("queries") or 0 for row in rows), form=",.0f")
    calls = [row.get("network_calls") or {} for row in rows]
    yield "network rows forward", Number(sum(call.get("rows_forward") or 0 for call in calls), form=",.0f")
    yield "network rows backward", Number(sum(call.get("rows_backward") or 0 for call in calls), form=",.0f")
    yield "failed scores", Number(sum((row.get("reward") or {}).get("failed") or 0 for row in rows), form=",.0f")


def seen_from(target: Path, page: Path) -> str | None:
    """The run's folder as a link from the page; None where it has no samples/ to link to."""
    if not (target / "samples").is_dir():
        return None
    return Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix()
