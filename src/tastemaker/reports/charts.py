"""The report's charts: small, inline, coloured by the page's style; and the same numbers for the pointer to read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tastemaker.reports.numbers import written
from tastemaker.reports.scale import Scale, pieces, px, safe, scale, width

T = TypeVar("T")
SMALL, WIDE = (360, 200), (1100, 330)  # pixels
COLOURS = 6  # that the style knows
_TOP, _BOTTOM, _RIGHT, _LETTERS = 12, 26, 12, 12
_MANY = 40  # more points than this are drawn as a line alone
_COLUMNS = 120  # of bars, at most


class Line(NamedTuple):
    """Points (x, y), and where both are given the interval from `low` to `high` around each. None makes a gap.

    of: where its numbers stand, `{x}` for the iteration and `{k}` for the update.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    of: str = ""


class Chart(NamedTuple):
    """A chart as SVG text, and what the page's script reads for the pointer; `data` is plain."""

    svg: str
    data: dict[str, Any]


class Bars(NamedTuple):
    """A column of bars an iteration: (low, high, strength in 0..1) each, and the colour's number."""

    x: float
    bars: Sequence[tuple[float, float, float, int]]


def lines_chart(
    lines: Sequence[Line],
    title: str,
    *,
    size: tuple[int, int] = SMALL,
    marks: Sequence[float] = (),
    columns: Sequence[Bars] = (),
    zero: bool = False,
    first: int = 0,
    axis: str = "iteration",
) -> Chart:
    """Lines over iterations; behind them columns of bars.

    marks: iterations at which an alarm was raised. zero: the vertical axis begins at 0. first: the first line's colour.
    axis: what stands from left to right.
    """
    wide, high = size
    heights = [_float(v) for one in lines for column in (one.y, one.low or (), one.high or ()) for v in column]
    heights += [edge for column in columns for low, top, *_ in column.bars for edge in (low, top)]
    vertical = scale([*heights, *([0.0] if zero else [])], high - _BOTTOM, _TOP, ticks=3 if high < 250 else 5,
                     outwards=True)  # fmt: skip
    left = 10 + max(width(vertical.label(tick), _LETTERS) for tick in vertical.ticks)
    places = [float(x) for one in lines for x in one.x] + [column.x for column in columns]
    room = 6 + (_half(columns, wide - left - _RIGHT) if columns else 0)
    horizontal = scale(places, left + room, wide - _RIGHT - room, ticks=max(4, wide // 85), outwards=False)
    body = [
        *_axes(horizontal, vertical, left, size),
        *_drawn_columns(columns, horizontal, vertical),
        *(_mark(horizontal(x), high) for x in marks if horizontal.first <= x <= horizontal.last),
        *(text for k, one in reversed(list(enumerate(lines, first))) for text in _drawn(one, k, horizontal, vertical)),
    ]
    head = f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="{safe(title)}" class="chart">'
    return Chart("".join([head, *body, "</svg>"]), _data(lines, horizontal, vertical, axis))


def _data(lines: Sequence[Line], horizontal: Scale, vertical: Scale, axis: str) -> dict[str, Any]:
    """The exact numbers, and where on the drawing they are."""
    return {
        "axis": axis,
        "scale": [list(horizontal[:4]), list(vertical[:4])],
        "lines": [
            {"name": one.name, "of": one.of, "x": list(one.x), "y": list(one.y)}
            | ({} if one.low is None else {"low": list(one.low), "high": list(one.high or ())})
            for one in lines
        ],
    }


def _axes(horizontal: Scale, vertical: Scale, left: float, size: tuple[int, int]) -> list[str]:
    wide, high = size
    bottom, out = high - _BOTTOM, []
    for tick in vertical.ticks:
        out.append(f'<path class="grid" d="M{px(left)} {px(vertical(tick))}H{wide - _RIGHT}"/>')
        place = f'x="{px(left - 7)}" y="{px(vertical(tick) + 4)}" text-anchor="end"'
        out.append(f"<text {place}>{vertical.label(tick)}</text>")
    out.append(f'<path class="axis" d="M{px(left)} {bottom}H{wide - _RIGHT}"/>')
    for tick in horizontal.ticks:
        at = px(horizontal(tick))
        out.append(f'<path class="axis" d="M{at} {bottom}v4"/>')
        out.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{horizontal.label(tick)}</text>')
    return out


def _drawn(one: Line, k: int, horizontal: Scale, vertical: Scale) -> list[str]:
    """Band, line and points; pieces end where a number is missing."""
    colour, out = k % COLOURS, []
    x, y = [float(v) for v in one.x], [_float(v) for v in one.y]
    if one.low is not None and one.high is not None:
        for piece in pieces(x, [_float(v) for v in one.low], [_float(v) for v in one.high]):
            edge = [(a, low) for a, low, _ in piece] + [(a, high) for a, _, high in reversed(piece)]
            shape = "L".join(f"{px(horizontal(a))} {px(vertical(b))}" for a, b in edge)
            out.append(f'<path class="band f{colour}" d="M{shape}Z"/>')
    for piece in pieces(x, y):
        spots = thinned([(horizontal(a), vertical(b)) for a, b in piece])
        out.append(f'<path class="line s{colour}" d="M{"L".join(f"{px(a)} {px(b)}" for a, b in spots)}"/>')
    points = [(a, b) for piece in pieces(x, y) for a, b in piece]
    for a, b in points if len(points) <= _MANY else points[-1:]:
        out.append(f'<circle class="point f{colour}" cx="{px(horizontal(a))}" cy="{px(vertical(b))}" r="3"/>')
    return out


def thinned(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A line of pixels that looks the same: of every pixel's column the first, lowest, highest and last point."""
    columns: dict[int, list[tuple[float, float]]] = {}
    for spot in spots:
        columns.setdefault(round(spot[0]), []).append(spot)
    found = []
    for column in columns.values():
        chosen = {0, len(column) - 1}
        for pick in (min, max):
            chosen.add(pick(range(len(column)), key=lambda k: column[k][1]))
        found += [column[k] for k in sorted(chosen)]
    return found


def _drawn_columns(columns: Sequence[Bars], horizontal: Scale, vertical: Scale) -> list[str]:
    half, out = _half(columns, horizontal.end - horizontal.start), []
    for column in columns:
        for low, high, strength, colour in column.bars:
            top, bottom = vertical(high), vertical(low)
            place = f'x="{px(horizontal(column.x) - half)}" y="{px(top)}" width="{px(2 * half)}"'
            tall, seen = px(max(bottom - top, 0.5)), px(0.08 + 0.92 * strength)
            out.append(f'<rect class="f{colour}" {place} height="{tall}" fill-opacity="{seen}"/>')
    return out


def _half(columns: Sequence[Bars], room: float) -> float:
    """Half the width of a bar, pixels."""
    places = sorted(column.x for column in columns)
    steps = [b - a for a, b in zip(places, places[1:], strict=False)]
    span = places[-1] - places[0] if places else 0
    return min(14.0, 0.46 * room * min(steps) / (span + min(steps))) if steps and span else 14.0


def spread(rows: Sequence[T], most: int = _COLUMNS) -> list[T]:
    """At most so many of the rows, evenly from the first to the last."""
    if len(rows) <= most:
        return list(rows)
    return [rows[k] for k in dict.fromkeys(round(i * (len(rows) - 1) / (most - 1)) for i in range(most))]


def _mark(x: float, high: int) -> str:
    return f'<path class="mark" d="M{px(x)} {_TOP - 6}V{high - _BOTTOM}"/>'


def interval_bar(change: Mapping[str, Any], reach: float) -> str:
    """An interval around 0 in the base's standard deviations, as a line with a point. Empty where it has none.

    change: mean, low, high, deviations, as an evaluation has them. reach: standard deviations to either side.
    """
    found = deviations(change)
    if found is None:
        return ""
    wide, high = 132, 22
    laid = Scale(-reach, reach, 6, wide - 6, 1.0)
    low, mean, top = (laid(max(-reach, min(reach, v))) for v in found)
    colour = "good" if found[0] > 0 else "bad" if found[2] < 0 else "calm"
    told = f"{written(found[1], '+.2f')} SD, from {written(found[0], '+.2f')} to {written(found[2], '+.2f')}"
    return (
        f'<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" class="interval {colour}" role="img" '
        f'aria-label="{told}"><path class="zero" d="M{wide // 2} 2V{high - 2}"/>'
        f'<path class="reach" d="M{px(low)} {high // 2}H{px(top)}"/>'
        f'<circle cx="{px(mean)}" cy="{high // 2}" r="4"/></svg>'
    )


def deviations(change: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """low, mean and high of a change in standard deviations of the base's pictures."""
    mean, low, high, units = (change.get(key) for key in ("mean", "low", "high", "deviations"))
    if not mean or not units or low is None or high is None:
        return None
    spread_ = mean / units
    return low / spread_, units, high / spread_


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
