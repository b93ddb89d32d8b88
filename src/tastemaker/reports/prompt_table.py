"""The table of prompts: how each one's pictures scored first and last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tastemaker.reports.charts import spread
from tastemaker.reports.numbers import Number, place
from tastemaker.reports.records import Records, shown

MOST = 1000  # rows


class Row(NamedTuple):
    """A prompt: its pictures' scores in the first and the last evaluation, or of what training kept of it."""

    prompt: str
    kind: str  # `evaluation` or `training`
    pictures: int
    first: Number
    last: Number
    change: Number
    strip: str  # of the page's pictures those to open; empty where there are none


class Table(NamedTuple):
    """The rows, and in words what was left out."""

    rows: list[Row]
    left_out: str


def prompt_table(records: Records, strips: Mapping[int, Any], ranks: Mapping[str, str]) -> Table:
    """Evaluation prompts by all their pictures, training prompts by the pictures that were kept.

    strips: ids of the evaluation pictures in the page. ranks: training prompt -> the strip that it stands in.
    """
    found = [*_evaluated(records, strips), *_trained(records, ranks)]
    shown_rows = spread(found, MOST)
    cut = f"{len(shown_rows):,} of {len(found):,} prompts, evenly." if len(shown_rows) < len(found) else ""
    return Table(shown_rows, cut)


def _evaluated(records: Records, strips: Mapping[int, Any]) -> Iterator[Row]:
    """A row a prompt of the evaluations, from the values of all pictures where the run said whose they are."""
    rows = [row for row in records.evaluations if row.get("values")]
    if not rows:
        return
    first, last = rows[0], rows[-1]
    texts, groups = first.get("texts"), first.get("groups")
    if not texts or not groups:
        yield from _kept(records, strips)
        return
    name = next(iter(first["values"]))
    for group, text in enumerate(texts):
        ids = [b for b, other in enumerate(groups) if other == group]
        before, after = (_mean([row["values"].get(name, [])[b] for b in ids], row, name, ids) for row in (first, last))
        strip = next((f"e{b}" for b in ids if b in strips), "")
        change = _change(before, after) if last is not first else Number(None)
        yield Row(shown(text), "evaluation", len(ids), before, after, change, strip)


def _kept(records: Records, strips: Mapping[int, Any]) -> Iterator[Row]:
    """Of an older run, which did not write the prompts down: the pictures that it kept."""
    by_id: dict[int, list[Mapping[str, Any]]] = {}
    for row in records.samples:
        if row.get("kind") == "evaluation":
            by_id.setdefault(row["id"], []).append(row)
    for b, rows in by_id.items():
        before, after = (_sample(row) for row in (rows[0], rows[-1]))
        change = _change(before, after) if len(rows) > 1 else Number(None)
        strip = f"e{b}" if b in strips else ""
        yield Row(shown(rows[-1].get("prompt", "")), "evaluation", 1, before, after, change, strip)


def _trained(records: Records, ranks: Mapping[str, str]) -> Iterator[Row]:
    """A row a training prompt of which pictures were kept: the first and the last of them."""
    by_text: dict[str, list[Mapping[str, Any]]] = {}
    for row in records.samples:
        if row.get("kind") != "evaluation":
            by_text.setdefault(str(row.get("prompt", "")), []).append(row)
    for text, rows in by_text.items():
        before, after = (_sample(row) for row in (rows[0], rows[-1]))
        change = _change(before, after) if len(rows) > 1 else Number(None)
        yield Row(shown(text), "training", len(rows), before, after, change, ranks.get(text, ""))


def _sample(row: Mapping[str, Any]) -> Number:
    kind = "evaluation" if row.get("kind") == "evaluation" else "training"
    return Number(row.get("reward"), place("samples", row["iteration"], kind, row.get("id"), "reward"))


def _mean(values: Sequence[float | None], row: Mapping[str, Any], name: str, ids: Sequence[int]) -> Number:
    """The mean of a prompt's pictures; of one picture its own number."""
    at = place("evaluations", row["iteration"], "values", name, ids[0]) if len(ids) == 1 else ""
    known = [value for value in values if value is not None]
    return Number(sum(known) / len(known) if known else None, at)


def _change(before: Number, after: Number) -> Number:
    known = before.value is not None and after.value is not None
    return Number(after.value - before.value if known else None, "", "+.3g")  # type: ignore[operator]
