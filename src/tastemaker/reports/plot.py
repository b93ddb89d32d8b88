"""Line charts as SVG, from numbers alone: a curve and its interval, nothing to install.

The chart carries its own background and follows the reader's light or dark theme where the viewer knows it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tastemaker.reports.scale import Scale, fit, pieces, px, safe, scale, width

WIDTH, HEIGHT = 720, 420  # pixels
_TOP, _BOTTOM, _RIGHT = 30, 58, 28  # what the drawing leaves free, pixels
_LIGHT = ("#2563eb", "#d9620f", "#0b8a68", "#9333c8", "#d02650", "#6b6257")
_DARK = ("#74a7ff", "#ff9f56", "#41cfa3", "#cf92f5", "#ff7d98", "#b9ad9d")
_MANY = 60  # more points than this are drawn as a line alone

_STYLE = """
.tm-chart text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #4b5563; }
.tm-chart .tm-paper { fill: #ffffff; stroke: #e5e7eb; }
.tm-chart .tm-title { font-size: 17px; font-weight: 600; fill: #111827; }
.tm-chart .tm-words { font-size: 13px; }
.tm-chart .tm-tick { font-size: 12px; }
.tm-chart .tm-grid { stroke: #e8eaee; stroke-width: 1; }
.tm-chart .tm-axis { stroke: #9ca3af; stroke-width: 1; }
.tm-chart .tm-line { fill: none; stroke-width: 2.25; stroke-linejoin: round; stroke-linecap: round; }
.tm-chart .tm-band { stroke: none; fill-opacity: 0.16; }
.tm-chart .tm-point { stroke: #ffffff; stroke-width: 1.25; }
"""
_STYLE_DARK = """
.tm-chart text { fill: #aeb6c2; }
.tm-chart .tm-paper { fill: #14171c; stroke: #2a2f38; }
.tm-chart .tm-title { fill: #f3f4f6; }
.tm-chart .tm-grid { stroke: #262b33; }
.tm-chart .tm-axis { stroke: #6b7280; }
.tm-chart .tm-band { fill-opacity: 0.24; }
.tm-chart .tm-point { stroke: #14171c; }
"""


class Series(NamedTuple):
    """One line: points (x, y), where both are given the interval from `low` to `high` around it, and texts beside them.

    A value that is not finite makes a gap, as a run that has no number for an iteration should.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    labels: Sequence[str] = ()


def line_chart(series: Sequence[Series], *, title: str, x: str, y: str, path: str | Path | None = None) -> str:
    """The SVG text of a chart of some lines; written to `path` too when one is given.

    `x` and `y` name the axes. Errors: ValueError where a series' columns are not equally long.
    """
    series = [_checked(one) for one in series]
    legend, rows = _legend(series)
    top = _TOP + 26 + 22 * rows + 30
    heights = [v for one in series for column in (one.y, one.low or (), one.high or ()) for v in column]
    vertical = scale(heights, HEIGHT - _BOTTOM, top, ticks=5, outwards=True)
    left = 28 + max(width(vertical.label(tick), 12) for tick in vertical.ticks)
    places = [a for one in series for a, b in zip(one.x, one.y, strict=True) if math.isfinite(b)]
    horizontal = scale(places, left + 8, WIDTH - _RIGHT, ticks=8, outwards=False)
    body = [
        f'<rect class="tm-paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        f'<text class="tm-title" x="24" y="{_TOP + 8}">{safe(fit(title, 20, WIDTH - 48))}</text>',
        *legend,
        f'<text class="tm-words" x="24" y="{top - 18}">{safe(y)}</text>',
        *_axes(horizontal, vertical, left, x),
        *(
            mark
            for k, one in reversed(list(enumerate(series)))
            for mark in _marks(one, k, horizontal, vertical, (x, y))
        ),
    ]
    if not places:
        middle = f'x="{px((left + WIDTH - _RIGHT) / 2)}" y="{px((top + HEIGHT - _BOTTOM) / 2)}" text-anchor="middle"'
        body.append(f'<text class="tm-words" {middle}>nothing measured yet</text>')
    svg = _document(title, body)
    if path is not None:
        Path(path).write_text(svg, encoding="utf-8")
    return svg


def _document(title: str, body: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="tm-chart" {size} role="img" aria-label="{safe(title)}">'
    return "\n".join([head, f"<style>{_style()}</style>", *body, "</svg>\n"])


def _checked(one: Series) -> Series:
    for name, column in (("y", one.y), ("low", one.low), ("high", one.high), ("labels", one.labels or None)):
        if column is not None and len(column) != len(one.x):
            raise ValueError(f"series {one.name!r} has {len(one.x)} x and {len(column)} {name}: give one for each x.")
    if (one.low is None) != (one.high is None):
        raise ValueError(
            f"series {one.name!r} has one end of its interval only: give both `low` and `high`, or neither."
        )
    low, high = ([float(v) for v in column] if column is not None else None for column in (one.low, one.high))
    return Series(one.name, [float(v) for v in one.x], [float(v) for v in one.y], low, high, one.labels)


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return "".join(
            f".tm-chart .tm-s{k} {{ stroke: {c}; }}\n.tm-chart .tm-f{k} {{ fill: {c}; }}\n"
            for k, c in enumerate(values)
        )

    dark = _STYLE_DARK + colours(_DARK)
    return f"{_STYLE}{colours(_LIGHT)}@media (prefers-color-scheme: dark) {{{dark}}}\n"


def _axes(horizontal: Scale, vertical: Scale, left: float, x: str) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    out = []
    for tick in vertical.ticks:
        at = px(vertical(tick))
        out.append(f'<path class="tm-grid" d="M{px(left)} {at}H{right + 8}"/>')
        label = vertical.label(tick)
        out.append(
            f'<text class="tm-tick" x="{px(left - 8)}" y="{px(vertical(tick) + 4)}" text-anchor="end">{label}</text>'
        )
    out.append(f'<path class="tm-axis" d="M{px(left)} {bottom}H{right + 8}"/>')
    for tick in horizontal.ticks:
        at, label = px(horizontal(tick)), horizontal.label(tick)
        out.append(f'<path class="tm-axis" d="M{at} {bottom}v5"/>')
        out.append(f'<text class="tm-tick" x="{at}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    middle = px((left + right) / 2)
    out.append(f'<text class="tm-words" x="{middle}" y="{HEIGHT - 16}" text-anchor="middle">{safe(x)}</text>')
    return out


def _marks(one: Series, k: int, horizontal: Scale, vertical: Scale, words: tuple[str, str]) -> list[str]:
    """Band, line and points of one series; pieces end where a number is missing."""
    colour, out = k % len(_LIGHT), []
    dash = f' stroke-dasharray="{"7 5" if k < 2 * len(_LIGHT) else "2 5"}"' if k >= len(_LIGHT) else ""
    if one.low is not None and one.high is not None:
        for piece in pieces(one.x, one.low, one.high):
            edge = [(a, low) for a, low, _ in piece] + [(a, high) for a, _, high in reversed(piece)]
            shape = "L".join(f"{px(horizontal(a))} {px(vertical(b))}" for a, b in edge)
            out.append(f'<path class="tm-band tm-f{colour}" d="M{shape}Z"/>')
    for piece in pieces(one.x, one.y):
        line = "L".join(f"{px(horizontal(a))} {px(vertical(b))}" for a, b in piece)
        out.append(f'<path class="tm-line tm-s{colour}"{dash} d="M{line}"/>')
    points = [(a, b) for piece in pieces(one.x, one.y) for a, b in piece]
    for a, b in points if len(points) <= _MANY else points[-1:]:
        told = safe(f"{one.name + ': ' if one.name else ''}{words[0]} {a:g}, {words[1]} {b:.4g}")
        out.append(
            f'<circle class="tm-point tm-f{colour}" cx="{px(horizontal(a))}" cy="{px(vertical(b))}" r="3.75">'
            f"<title>{told}</title></circle>"
        )
    return out + [_label(horizontal(a), vertical(b), one.labels[k]) for a, b, k in _labelled(one)]


def _labelled(one: Series) -> list[tuple[float, float, int]]:
    """The points that have a text beside them, and which."""
    places = pieces(one.x, one.y, range(len(one.x))) if one.labels else []
    return [(a, b, int(k)) for piece in places for a, b, k in piece if one.labels[int(k)]]


def _label(x: float, y: float, text: str) -> str:
    """Beside a point: above to its right, and where that is over the edge below to its left."""
    left = x + 9 + width(text, 13) > WIDTH - 8
    dx, dy, anchor = (-9, 17, "end") if left else (9, -7, "start")
    place = f'x="{px(x + dx)}" y="{px(y + dy)}" text-anchor="{anchor}"'
    return f'<text class="tm-words" {place}>{safe(text)}</text>'


def _legend(series: Sequence[Series]) -> tuple[list[str], int]:
    """Names of the series in as many rows as they need, and the number of rows."""
    out, at, row = [], 24.0, 0
    for k, one in enumerate(series):
        if not one.name:
            continue
        name = fit(one.name, 13, WIDTH - 48 - 32)
        wide = 26 + width(name, 13)
        if at > 24 and at + wide > WIDTH - 24:
            at, row = 24.0, row + 1
        y = _TOP + 32 + 22 * row
        dash = ' stroke-dasharray="5 3"' if k >= len(_LIGHT) else ""
        out.append(f'<path class="tm-line tm-s{k % len(_LIGHT)}"{dash} d="M{px(at)} {y}h18"/>')
        out.append(f'<circle class="tm-point tm-f{k % len(_LIGHT)}" cx="{px(at + 9)}" cy="{y}" r="3.75"/>')
        out.append(f'<text class="tm-words" x="{px(at + 26)}" y="{y + 4.5}">{safe(name)}</text>')
        at += wide + 24
    return out, row + 1 if out else 0
