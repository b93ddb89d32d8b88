"""How a run is watched while it trains: who looks, who judges, what is said, written down and stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tastemaker.iteration import Iteration, Progress
from tastemaker.training.lines import Lines, read_lines
from tastemaker.world import World

ALARMS = "alarms.jsonl"
ANY = "any"


class Watcher(Protocol):
    """Measures the pictures of an iteration."""

    def begin(self, it: Iteration) -> None:
        """A new iteration, or the rest of one."""

    def see(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Pictures that are about to be scored."""

    def held(self) -> dict[str, Tensor]:
        """What a checkpoint inside the iteration keeps of them, in `Iteration.kept`."""

    def look(self, it: Iteration) -> dict[str, float | None]:
        """The numbers of an iteration that ends, a collective."""

    def check(self, it: Iteration, progress: Progress) -> dict[str, float | None]:
        """Those of fixed pictures, a collective."""


class Sounded(Protocol):
    """An alarm that begins or ends."""

    @property
    def iteration(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def begins(self) -> bool: ...


class Judge(Protocol):
    """Says from the rows of metrics.jsonl, told once each and in order, which alarms begin and end."""

    def asks(self, row: Mapping[str, Any]) -> bool:
        """Whether the fixed pictures are to be drawn before this row is seen."""

    def see(self, row: Mapping[str, Any]) -> Sequence[Sounded]: ...


class Watching:
    """The watch over one run: one a device, of which rank 0 says and decides.

    judge: makes a judge who has seen no row yet. stop_on: names of alarms that stop the run when they begin,
    before the last of its iterations.
    """

    def __init__(
        self,
        folder: Path,
        watcher: Watcher,
        judge: Callable[[], Judge],
        *,
        stop_on: Sequence[str] = (),
        iterations: int | None = None,
        write: bool = True,
    ) -> None:
        self.watcher, self.stop_on, self.write = watcher, frozenset(stop_on), write
        self.iterations = iterations
        self.lines = Lines(folder / ALARMS, "alarms", write=write)
        self._new, self._judge = judge, judge()

    def rewind(self, iteration: int, metrics: Path) -> None:
        """Forgets alarms from this iteration on; the judge is told of the rows before it."""
        self.lines.keep(lambda row: row["iteration"] < iteration)
        self._judge = self._new()
        rows = [row for row in read_lines(metrics) if row["iteration"] < iteration]
        for row in rows:
            self._judge.see(row)
        if self.write and rows and "watch" not in rows[0]:
            print(f"nobody watched the first iteration: alarms compare with iteration {iteration}", flush=True)

    def look(self, it: Iteration, row: Mapping[str, Any], progress: Progress) -> dict[str, float | None]:
        """What `watch` of this row is to be, on every device; a collective."""
        found = self.watcher.look(it)
        asks = self.write and self._judge.asks({**row, "watch": found})
        if it.world.broadcast_text("check" if asks else ""):
            found |= self.watcher.check(it, progress)
        return found

    def tell(self, row: Mapping[str, Any], world: World) -> str:
        """Prints and writes the alarms that begin or end with this row; why the run is to stop, on every device."""
        why: list[str] = []
        for alarm in self._judge.see(row) if self.write else ():
            more = self.iterations is None or alarm.iteration + 1 < self.iterations
            stops = alarm.begins and more and bool(self.stop_on & {alarm.name, ANY})
            print(_line(alarm), file=sys.stderr if alarm.begins else sys.stdout, flush=True)
            if alarm.begins:
                made = {name: getattr(alarm, name) for name in ("iteration", "message", "value", "threshold")}
                self.lines.add({"alarm": alarm.name, **made, "stopped": stops})
            why += [f"{alarm.name}: {alarm.message}"] if stops else []
        return world.broadcast_text("; ".join(why))


def _line(alarm: Sounded) -> str:
    if alarm.begins:
        return f"ALARM {alarm.name}: {alarm.message} (limit {alarm.threshold:g}; docs/guides/reward-hacking.md)"
    return f"alarm {alarm.name} is over: {alarm.value:.3g} (limit {alarm.threshold:g})"
