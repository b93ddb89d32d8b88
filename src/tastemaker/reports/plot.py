"""Line charts as SVG, from numbers alone: a curve and its interval, nothing to install.

The chart carries its own background and follows the reader's light or dark theme where the viewer knows it.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

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


class _Scale(NamedTuple):
    """Numbers from `first` to `last` laid on pixels from `start` to `end`, with ticks at multiples of `step`."""

    first: float
    last: float
    start: float
    end: float
    step: float

    def __call__(self, number: float) -> float:
        return self.start + (number - self.first) / (self.last - self.first) * (self.end - self.start)

    @property
    def ticks(self) -> tuple[float, ...]:
        first, last = math.ceil(self.first / self.step - 1e-9), math.floor(self.last / self.step + 1e-9)
        return tuple(k * self.step for k in range(first, last + 1))

    def label(self, tick: float) -> str:
        """A tick's number, with just the digits that its step needs."""
        size = max(abs(self.first), abs(self.last))
        if size >= 1e7 or self.step < 1e-4:
            digits = math.ceil(math.log10(size / self.step)) + 1
            text = (
                "0" if tick == 0 else f"{tick:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
            )
        else:
            decimals = next(d for d in range(8) if math.isclose(self.step * 10**d, round(self.step * 10**d)))
            text = f"{tick + 0.0:,.{decimals}f}"
        return text.replace("-", "−")


def line_chart(series: Sequence[Series], *, title: str, x: str, y: str, path: str | Path | None = None) -> str:
    """The SVG text of a chart of some lines; written to `path` too when one is given.

    `x` and `y` name the axes. Errors: ValueError where a series' columns are not equally long.
    """
    series = [_checked(one) for one in series]
    legend, rows = _legend(series)
    top = _TOP + 26 + 22 * rows + 30
    heights = [v for one in series for column in (one.y, one.low or (), one.high or ()) for v in column]
    vertical = _scale(heights, HEIGHT - _BOTTOM, top, ticks=5, outwards=True)
    left = 28 + max(_width(vertical.label(tick), 12) for tick in vertical.ticks)
    places = [a for one in series for a, b in zip(one.x, one.y, strict=True) if math.isfinite(b)]
    horizontal = _scale(places, left + 8, WIDTH - _RIGHT, ticks=8, outwards=False)
    body = [
        f'<rect class="tm-paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        f'<text class="tm-title" x="24" y="{_TOP + 8}">{_safe(_fit(title, 20, WIDTH - 48))}</text>',
        *legend,
        f'<text class="tm-words" x="24" y="{top - 18}">{_safe(y)}</text>',
        *_axes(horizontal, vertical, left, x),
        *(
            mark
            for k, one in reversed(list(enumerate(series)))
            for mark in _marks(one, k, horizontal, vertical, (x, y))
        ),
    ]
    if not places:
        middle = f'x="{_at((left + WIDTH - _RIGHT) / 2)}" y="{_at((top + HEIGHT - _BOTTOM) / 2)}" text-anchor="middle"'
        body.append(f'<text class="tm-words" {middle}>nothing measured yet</text>')
    svg = _document(title, body)
    if path is not None:
        Path(path).write_text(svg, encoding="utf-8")
    return svg


def _document(title: str, body: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="tm-chart" {size} role="img" aria-label="{_safe(title)}">'
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


def _scale(numbers: Iterable[float], start: float, end: float, *, ticks: int, outwards: bool) -> _Scale:
    """A scale that holds all finite numbers in about so many steps; `outwards` lets it end on ticks."""
    finite = [v for v in numbers if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    # A flat line, or one of rounding noise, is shown flat: in the middle of a span of its own size.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    step = _round_step((high - low) / ticks, whole=not outwards and all(v == int(v) for v in finite))
    if outwards:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return _Scale(low, high, start, end, step)


def _round_step(rough: float, *, whole: bool) -> float:
    """The first of 1, 2, 2.5, 5, 10 times a power of ten that is not below `rough`; a whole number where asked."""
    rough = max(rough, 1.0) if whole else rough
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
    return next(step for step in steps if step >= rough * (1 - 1e-9) and not (whole and step % 1))


def _axes(horizontal: _Scale, vertical: _Scale, left: float, x: str) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    out = []
    for tick in vertical.ticks:
        at = _at(vertical(tick))
        out.append(f'<path class="tm-grid" d="M{_at(left)} {at}H{right + 8}"/>')
        label = vertical.label(tick)
        out.append(
            f'<text class="tm-tick" x="{_at(left - 8)}" y="{_at(vertical(tick) + 4)}" text-anchor="end">{label}</text>'
        )
    out.append(f'<path class="tm-axis" d="M{_at(left)} {bottom}H{right + 8}"/>')
    for tick in horizontal.ticks:
        at, label = _at(horizontal(tick)), horizontal.label(tick)
        out.append(f'<path class="tm-axis" d="M{at} {bottom}v5"/>')
        out.append(f'<text class="tm-tick" x="{at}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    middle = _at((left + right) / 2)
    out.append(f'<text class="tm-words" x="{middle}" y="{HEIGHT - 16}" text-anchor="middle">{_safe(x)}</text>')
    return out


def _marks(one: Series, k: int, horizontal: _Scale, vertical: _Scale, words: tuple[str, str]) -> list[str]:
    """Band, line and points of one series; pieces end where a number is missing."""
    colour, out = k % len(_LIGHT), []
    dash = f' stroke-dasharray="{"7 5" if k < 2 * len(_LIGHT) else "2 5"}"' if k >= len(_LIGHT) else ""
    if one.low is not None and one.high is not None:
        for piece in _pieces(one.x, one.low, one.high):
            edge = [(a, low) for a, low, _ in piece] + [(a, high) for a, _, high in reversed(piece)]
            shape = "L".join(f"{_at(horizontal(a))} {_at(vertical(b))}" for a, b in edge)
            out.append(f'<path class="tm-band tm-f{colour}" d="M{shape}Z"/>')
    for piece in _pieces(one.x, one.y):
        line = "L".join(f"{_at(horizontal(a))} {_at(vertical(b))}" for a, b in piece)
        out.append(f'<path class="tm-line tm-s{colour}"{dash} d="M{line}"/>')
    points = [(a, b) for piece in _pieces(one.x, one.y) for a, b in piece]
    for a, b in points if len(points) <= _MANY else points[-1:]:
        told = _safe(f"{one.name + ': ' if one.name else ''}{words[0]} {a:g}, {words[1]} {b:.4g}")
        out.append(
            f'<circle class="tm-point tm-f{colour}" cx="{_at(horizontal(a))}" cy="{_at(vertical(b))}" r="3.75">'
            f"<title>{told}</title></circle>"
        )
    return out + [_label(horizontal(a), vertical(b), one.labels[k]) for a, b, k in _labelled(one)]


def _labelled(one: Series) -> list[tuple[float, float, int]]:
    """The points that have a text beside them, and which."""
    places = _pieces(one.x, one.y, range(len(one.x))) if one.labels else []
    return [(a, b, int(k)) for piece in places for a, b, k in piece if one.labels[int(k)]]


def _label(x: float, y: float, text: str) -> str:
    """Beside a point: above to its right, and where that is over the edge below to its left."""
    left = x + 9 + _width(text, 13) > WIDTH - 8
    dx, dy, anchor = (-9, 17, "end") if left else (9, -7, "start")
    place = f'x="{_at(x + dx)}" y="{_at(y + dy)}" text-anchor="{anchor}"'
    return f'<text class="tm-words" {place}>{_safe(text)}</text>'


def _pieces(*columns: Sequence[float]) -> list[list[tuple[float, ...]]]:
    """Runs of rows whose numbers are all finite."""
    pieces: list[list[tuple[float, ...]]] = [[]]
    for row in zip(*columns, strict=True):
        if all(math.isfinite(v) for v in row):
            pieces[-1].append(row)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _legend(series: Sequence[Series]) -> tuple[list[str], int]:
    """Names of the series in as many rows as they need, and the number of rows."""
    out, at, row = [], 24.0, 0
    for k, one in enumerate(series):
        if not one.name:
            continue
        name = _fit(one.name, 13, WIDTH - 48 - 32)
        wide = 26 + _width(name, 13)
        if at > 24 and at + wide > WIDTH - 24:
            at, row = 24.0, row + 1
        y = _TOP + 32 + 22 * row
        dash = ' stroke-dasharray="5 3"' if k >= len(_LIGHT) else ""
        out.append(f'<path class="tm-line tm-s{k % len(_LIGHT)}"{dash} d="M{_at(at)} {y}h18"/>')
        out.append(f'<circle class="tm-point tm-f{k % len(_LIGHT)}" cx="{_at(at + 9)}" cy="{y}" r="3.75"/>')
        out.append(f'<text class="tm-words" x="{_at(at + 26)}" y="{y + 4.5}">{_safe(name)}</text>')
        at += wide + 24
    return out, row + 1 if out else 0


def _width(text: str, size: int) -> float:
    """About how wide a text stands, in pixels; a little too much rather than too little."""
    return (
        sum(0.34 if c in "iljtf.,:;'|!() " else 0.95 if c in "mwMW@%" or ord(c) > 0x2E80 else 0.64 for c in text) * size
    )


def _fit(text: str, size: int, room: float) -> str:
    """The text, or its beginning and an ellipsis."""
    if _width(text, size) <= room:
        return text
    while text and _width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _safe(text: str) -> str:
    """Text for XML: escaped, without the control characters that XML cannot hold at all."""
    return escape("".join(c for c in text if c.isprintable() or c == " "))


def _at(pixels: float) -> str:
    return f"{pixels:.2f}".rstrip("0").rstrip(".")
