"""What weights are worth: the number of metrics.jsonl by which the best checkpoints are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

BETTER = 0.1  # of a standard deviation, by which a checkpoint has to be better than the one whose place it takes
WINDOW = 3  # iterations whose mean counts


class Worth(NamedTuple):
    """What some weights are worth, by which number, and how much better others have to be."""

    by: str
    value: float
    margin: float


class Merit:
    """One number of every row, told once each and in order; larger is better.

    by: `reward`, the trained reward's mean; `parts.NAME`, a part of it; or `held_out.NAME`, measured by the watch.
    A part has no deviation in its row, and so no margin. The first row is the base's, which is no candidate.
    """

    def __init__(self, by: str, window: int = WINDOW) -> None:
        self.by, self.window = by, window
        self.forget()

    def forget(self) -> None:
        """No row was seen."""
        self._rows, self._last, self._unit, self._told = 0, list[float](), 0.0, False

    def see(self, row: Mapping[str, Any]) -> None:
        """The row of an iteration that has ended."""
        value, deviation = (None if one is None or not math.isfinite(one) else float(one) for one in self._read(row))
        self._unit = self._unit or deviation or 0.0
        if self._rows and value is not None:
            self._last = [*self._last, value][-self.window :]
        self._told = value is not None
        self._rows += 1

    def worth(self) -> Worth | None:
        """Of the weights with which the last row's iteration began; None where its row has no such number."""
        if not self._last or not self._told:
            return None
        return Worth(self.by, sum(self._last) / len(self._last), BETTER * self._unit)

    def _read(self, row: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """The number and its deviation over the first pictures."""
        kind, _, name = self.by.partition(".")
        if kind == "held_out":
            watch = row.get("watch", {})
            return watch.get(self.by), watch.get(f"held_out_sd.{name}")
        reward = row["reward"]
        return (reward["parts"].get(name), None) if kind == "parts" else (reward.get("mean"), reward.get("std"))
