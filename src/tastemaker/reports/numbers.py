"""Numbers as a page shows them: few digits to read, all of them in the markup, with the place they come from."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple


class Number(NamedTuple):
    """A number of the report.

    of: where it stands, as /file/iteration/key/..., a `/` in a key written `~1`; of one that was worked out from
    others it is empty.
    """

    value: float | None
    of: str = ""
    form: str = ""  # as of `format`; by its size where none is given
    unit: str = ""

    def __str__(self) -> str:
        return written(self.value, self.form) + self.unit

    def __html__(self) -> str:
        """For the template: the exact number stands in `value`."""
        if self.value is None or not math.isfinite(self.value):
            return '<span class="none">–</span>'
        place = f' data-of="{escape(self.of)}" title="{escape(self.of[1:])}: {self.value!r}"' if self.of else ""
        return f'<data value="{self.value!r}"{place}>{escape(str(self))}</data>'


def place(*keys: object) -> str:
    """Where a number stands."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def written(value: float | None, form: str = "") -> str:
    """A number in about three digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = format(value, form if value else form.replace("+", "")) if form else _short(value)
    return text.replace("-", "−")


def _short(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if not 1e-3 <= abs(value) < 1e5:
        head, _, power = f"{value:.2e}".partition("e")
        return f"{head.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:#.3g}" if abs(value) < 100 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def clock(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
