"""Numbers laid on pixels: scales with round ticks, texts that fit, XML that is safe. What all charts are drawn with."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class Scale(NamedTuple):
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


def scale(numbers: Iterable[float], start: float, end: float, *, ticks: int, outwards: bool) -> Scale:
    """A scale that holds all finite numbers in about so many steps; `outwards` lets it end on ticks."""
    finite = [v for v in numbers if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    # A flat line, or one of rounding noise, is shown flat: in the middle of a span of its own size.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    step = round_step((high - low) / ticks, whole=not outwards and all(v == int(v) for v in finite))
    if outwards:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, start, end, step)


def round_step(rough: float, *, whole: bool) -> float:
    """The first of 1, 2, 2.5, 5, 10 times a power of ten that is not below `rough`; a whole number where asked."""
    rough = max(rough, 1.0) if whole else rough
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
    return next(step for step in steps if step >= rough * (1 - 1e-9) and not (whole and step % 1))


def pieces(*columns: Sequence[float]) -> list[list[tuple[float, ...]]]:
    """Runs of rows whose numbers are all finite."""
    found: list[list[tuple[float, ...]]] = [[]]
    for row in zip(*columns, strict=True):
        if all(math.isfinite(v) for v in row):
            found[-1].append(row)
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def width(text: str, size: int) -> float:
    """About how wide a text stands, in pixels; a little too much rather than too little."""
    return (
        sum(0.34 if c in "iljtf.,:;'|!() " else 0.95 if c in "mwMW@%" or ord(c) > 0x2E80 else 0.64 for c in text) * size
    )


def fit(text: str, size: int, room: float) -> str:
    """The text, or its beginning and an ellipsis."""
    if width(text, size) <= room:
        return text
    while text and width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def safe(text: str) -> str:
    """Text for XML: escaped, without the control characters that XML cannot hold at all."""
    return escape("".join(c for c in text if c.isprintable() or c == " "))


def px(pixels: float) -> str:
    """A place for SVG, to a hundredth of a pixel."""
    return f"{pixels:.2f}".rstrip("0").rstrip(".")
