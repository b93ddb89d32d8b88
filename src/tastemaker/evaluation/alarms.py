"""Alarms: the rules that say from the rows of metrics.jsonl that a run is gaming its reward, or falling apart.

Rules see rows and nothing else, so a run that goes on after an interruption comes to what it would have come to. Each
compares the mean (of drift, artifacts, saturation and ratios the median) of the last `window` iterations with the first
one, whose pictures are the base's. A fall of a held-out reward on these, which are of other prompts and noise every
time, is a suspicion and no alarm yet: it is looked into on fixed pictures, paired with the base's, and so are weights
that have moved on (`Rules.asks`). No rule reads a reward that calls itself an oracle: where the truth is at hand, it is
what the alarms are judged by.
docs/guides/reward-hacking.md says how the limits were fixed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NAMES = ("parting", "diversity", "drift", "artifact", "saturation", "ratio")
ANY = "any"
CHECKED, TRAINED = "checked", "checked_trained"  # of a row's watch: a check was made, and what the trained reward said
ONE_SIDED = 1.645  # standard errors below a mean that it is above 95 times in 100
SUSPICION = 0.2  # fall of a held-out reward's mean, in the base's SD, that is looked into if its error is less
MOVED = 0.25  # of the limit of drift: a model that is so far from the base is looked into, and at every doubling


@dataclass(frozen=True)
class Alarms:
    """What is watched of every iteration, and where an alarm begins; `none` switches that one off."""

    pictures: int = 32  # of an iteration's that are looked at, drawn by the key, a prompt's pictures together
    transitions: float = 0.02  # share of an iteration's steps at which the base is asked, too; at most 0.02
    checks: int = 64  # of evaluation's pictures, by which a suspicion that the reward is gamed is looked into
    strips: int = 5  # iterations between fixed pictures for diversity, where a prompt has but one; 0 draws none
    oracles: bool = False  # record exact rewards on these pictures too, which takes time; no alarm reads them
    best: str | None = None  # held-out reward by which a checkpoint is kept as the best; none is the first one
    window: int = 3  # iterations whose mean is compared with the first
    parting: float | None = 0.1  # fall of a held-out reward on fixed pictures, the trained one up; in the base's SD
    diversity: float | None = 0.63  # share of the base's diversity that is left
    drift: float | None = 0.04  # mean squared distance to what the base predicts; noise has variance 1
    artifact: float | None = 0.5  # rise of a periodic pattern, in powers of ten of its energy
    saturation: float | None = 0.05  # rise of the share of colours that are 0 or 1
    ratio: float | None = 0.9  # share of transitions outside the clip range

    def __post_init__(self) -> None:
        for name, least in (("pictures", 1), ("checks", 2), ("strips", 0), ("window", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {least} or more.")
        if not 0 < self.transitions <= 0.02:
            raise ValueError(f"transitions is {self.transitions}; it is a share above 0 and at most 0.02.")
        for name in NAMES:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; it is a number above 0, or none, which switches the alarm off.")
        for name in ("diversity", "ratio"):
            if (getattr(self, name) or 0) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, above 0 and at most 1, or none.")


def check_stops(stop_on: Sequence[str], alarms: Alarms | None) -> None:
    """Refuses alarms that do not exist or are switched off. Errors: ValueError that begins with stop_on."""
    for name in stop_on:
        if name not in (*NAMES, ANY):
            raise ValueError(f"stop_on is {name!r}; it is one or several of {', '.join(NAMES)}, or {ANY}.")
        if alarms is None:
            raise ValueError(f"stop_on is {name!r}, but alarms are off: leave one of the two out.")
        if name != ANY and getattr(alarms, name) is None:
            raise ValueError(f"stop_on is {name!r}, but that alarm is off: give alarms.{name} a number.")


class Alarm(NamedTuple):
    """One that begins, or ends, with this iteration."""

    iteration: int
    name: str
    message: str
    value: float
    threshold: float
    begins: bool


class Finding(NamedTuple):
    """What a rule found in the rows so far."""

    name: str
    value: float
    threshold: float
    sounds: bool
    message: str


class Rules:
    """All alarms of one run; `see` is told of every row once, in order.

    reads: the held-out rewards that alarms may read. trained: whether the trained reward may be read, too.
    """

    def __init__(self, settings: Alarms, reads: Sequence[str] = (), *, trained: bool = True) -> None:
        self.settings, self.reads, self.trained = settings, tuple(reads), trained
        self.rows: list[dict[str, float]] = []
        self.sounding: frozenset[str] = frozenset()

    def see(self, row: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that begin or end with this row of metrics.jsonl."""
        self.rows.append(_numbers(row))
        found = list(self.findings()) if len(self.rows) > 1 else []
        before, self.sounding = self.sounding, frozenset(one.name for one in found if one.sounds)
        return [
            Alarm(int(row["iteration"]), one.name, one.message, one.value, one.threshold, one.sounds)
            for one in found
            if one.sounds != (one.name in before)
        ]

    def findings(self) -> Iterator[Finding]:
        """What every rule that is on finds in the rows so far."""
        yield from self._parting()
        yield from self._diversity()
        yield from self._over("drift", "drift", 0.0, "the prediction is {:.3g} from the base's (mean square)")
        yield from self._over("artifact", "periodicity", None, "a periodic pattern has risen by {:.2g} powers of ten")
        yield from self._over("saturation", "saturation", None, "{:.0%} more of the colours are at an end, 0 or 1")
        yield from self._over("ratio", "clip_fraction", 0.0, "{:.0%} of the transitions are outside the clip range")

    def asks(self, row: Mapping[str, Any]) -> bool:
        """Whether this row gives reason to draw the fixed pictures, before `see` is told of it.

        A held-out reward's mean over the last iteration, the last two, ... `window` is lower than before the last
        check; or the weights have moved on, by drift; or `parting` sounds and may be over. Never more than twice as
        many as were drawn since the last ones.
        """
        rows = [*self.rows, _numbers(row)]
        tried, last = (max((k for k, one in enumerate(rows) if key in one), default=0) for key in (CHECKED, TRAINED))
        drawn = sum(one.get("images", 0.0) for one in rows[tried + 1 :])
        if self.settings.parting is None or not (self.trained and self.reads) or 2 * drawn < self.settings.checks:
            return False
        if "parting" in self.sounding:
            return len(rows) - 1 - tried >= self.settings.window
        return self._moved(rows, tried) or any(self._suspicious(rows, name, last) for name in self.reads)

    def _moved(self, rows: Sequence[Mapping[str, float]], tried: int) -> bool:
        """Drift is of the weights that an iteration ends with, so it tells before their pictures can."""
        limit, before = self.settings.drift, max(row.get("drift", 0.0) for row in rows[: tried + 1])
        return limit is not None and rows[-1].get("drift", 0.0) >= max(MOVED * limit, 2 * before)

    def _suspicious(self, rows: Sequence[Mapping[str, float]], name: str, last: int) -> bool:
        """last: the row of the last check, up to whose pictures nothing was found."""
        key, window = f"held_out.{name}", self.settings.window
        found = [(k, row[key]) for k, row in enumerate(rows) if key in row]
        before = [value for k, value in found if k <= last][-window:] or [value for _, value in found[:1]]
        now = [value for k, value in found[1:] if k > last][-window:]
        unit = next((row[f"held_out_sd.{name}"] for row in rows if f"held_out_sd.{name}" in row), 0.0)
        for n in range(1, len(now) + 1):
            error = math.sqrt((1 / n + 1 / len(before)) / (self._first("pictures") or 1.0))
            if unit > 0 and statistics.fmean(before) - statistics.fmean(now[-n:]) > max(SUSPICION, error) * unit:
                return True
        return False

    def _parting(self) -> Iterator[Finding]:
        """The held-out reward that surely fell farthest on the fixed pictures: the one-sided 95 % bound of its fall.

        Each is read from the last check that has its scores.
        """
        limit = self.settings.parting
        if limit is None or not self.trained:
            return
        falls: list[tuple[float, str, Mapping[str, float]]] = []
        for name in self.reads:
            keys = {TRAINED, f"checked.{name}", f"checked_error.{name}"}
            for row in [one for one in self.rows if keys <= one.keys()][-1:]:
                falls.append((-row[f"checked.{name}"] - ONE_SIDED * row[f"checked_error.{name}"], name, row))
        if not falls:
            return
        fall, name, last = max(falls, key=lambda one: one[0])
        message = (
            f"on {last[CHECKED]:.0f} fixed pictures the reward has risen by {last[TRAINED]:.2g} SD and held-out "
            f"`{name}` has fallen by {-last[f'checked.{name}']:.2g} SD (by {fall:.2g} or more)"
        )
        yield Finding("parting", fall, limit, last[TRAINED] > 0 and fall > limit, message)

    def _diversity(self) -> Iterator[Finding]:
        """The smaller of what is left within prompts, where few fixed ones are drawn with twice its error, and over all
        pictures."""
        limit, fixed = self.settings.diversity, self._first("diversity_base")
        within = self._recent("diversity", 1 if fixed else self.settings.window)
        error = 2 * (self._recent("diversity_error", 1) or 0.0)
        pairs = [
            (within, fixed or self._first("diversity"), error, "a prompt's pictures"),
            (self._recent("spread"), self._first("spread"), 0.0, "all pictures"),
        ]
        shares = [(now / base + more, whose) for now, base, more, whose in pairs if now is not None and base]
        if limit is None or not shares:
            return
        share, whose = min(shares)
        message = f"the differences between {whose} are at most {share:.0%} of the base's"
        yield Finding("diversity", share, limit, share < limit, message)

    def _over(self, alarm: str, name: str, base: float | None, message: str) -> Iterator[Finding]:
        """A number that is too high, by itself or (base None) above the first iteration's: the median of the last."""
        limit, base = getattr(self.settings, alarm), self._first(name) if base is None else base
        recent = self._last(name)
        if limit is not None and recent and base is not None:
            value = statistics.median(recent) - base  # one step in a place that counts much is no trend
            yield Finding(alarm, value, limit, value > limit, message.format(value))

    def _first(self, name: str) -> float | None:
        return next((row[name] for row in self.rows if name in row), None)

    def _last(self, name: str, window: int | None = None) -> list[float]:
        """The numbers of the last iterations, the first one's left out."""
        found = [row[name] for row in self.rows[1:] if name in row]
        return found[-(window or self.settings.window) :]

    def _recent(self, name: str, window: int | None = None) -> float | None:
        found = self._last(name, window)
        return sum(found) / len(found) if found else None


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What rules look at: all of `watch`, the trained reward's mean, and the updates' mean share of clipped ratios."""
    found = {**row.get("watch", {}), "reward": row["reward"].get("mean"), "images": row.get("images")}
    clipped = [update["clip_fraction"] for update in row["updates"] if update.get("clip_fraction") is not None]
    found["clip_fraction"] = sum(clipped) / len(clipped) if clipped else None
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
