"""The lessons of the reward gradients: how many steps keep a graph, and what holds a run near its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from lessons_runs import LOST, NO, OPEN, YES, Run, by_title, difference, end, lost, more, number

STEPS, HALF = (1, 2, 5, 10), 0.5  # of the chain; of the base's diversity
PLAIN, BONUS, DROPOUT = "DRaFT", "a bonus for diversity", "dropout in the reward"


def rate(run: Run) -> float:
    """The change a minute of training, in standard deviations."""
    return 60 * end(run) / number(run["curve"][-1]["seconds"])


def counted(run: Run) -> float:
    """The change of the oracle's count, in points."""
    first, last = run["curve"][0], run["curve"][-1]
    return 100 * (last["count"] - first["count"])


def varied(run: Run) -> float:
    """The diversity at the end as a share of the base's."""
    return number(run["curve"][-1]["diversity"]) / number(run["curve"][0]["diversity"])


def of_steps(runs: Sequence[Run]) -> Iterator[str]:
    """The last step against more of them, and a length drawn by chance against fixed ones."""
    own = by_title(runs)
    one, whole, drawn = own["DRaFT, k=1"], own["DRaFT, k=10"], own["AlignProp"]
    yield f"The last step alone gives more reward a minute than the whole chain: {more(difference(one, whole, rate))}."
    for k in STEPS[1:]:
        found = difference(one, own[f"DRaFT, k={k}"], end)
        yield f"More than one step lowers the reward after equally many queries, 1 above {k}: {more(found)}."
    for k in (1, 10):
        found = difference(drawn, own[f"DRaFT, k={k}"], counted)
        yield f"AlignProp keeps more of the count than k={k}: {more(found, 'points')}."


def of_kl(runs: Sequence[Run]) -> Iterator[str]:
    """Whether little kl collapses, what holds a run, and when a measure would have stopped it."""
    own = by_title(runs)
    kept = {name: float(np.mean([varied(run) for run in of])) for name, of in own.items()}
    said = ", ".join(f"{name} {share:.0%}" for name, share in kept.items())
    yield f"Diversity that is left of the base's: {said}."
    held = [name for name in own if name.startswith("DRaFT+")]
    low, high = min(held, key=_weight), max(held, key=_weight)
    collapsed = kept[PLAIN] < HALF
    yield f"Without kl pictures collapse, to less than half of the base's diversity: {YES if collapsed else NO}."
    yield f"With little of it ({low}) they do too: {YES if kept[low] < HALF else NO}."
    for name in (high, BONUS, DROPOUT):
        found = difference(own[name], own[PLAIN], varied)
        yield f"{name[0].upper()}{name[1:]} keeps more diversity than none of it: {more(found, 'of the base')}."
    stops = [stop(run) for run in own[PLAIN]]
    yield from _stopped(stops, own[PLAIN])


def _weight(name: str) -> float:
    return float(name.rpartition(" ")[2])


def stop(run: Run) -> Mapping[str, float]:
    """The last evaluation before the oracle's colour or shape has lost more than 5 points."""
    kept = run["curve"][0]
    for point in run["curve"][1:]:
        if max(100 * (run["curve"][0][part] - point[part]) for part in ("colour", "shape")) > LOST:
            break
        kept = point
    return kept


def _stopped(stops: Sequence[Mapping[str, float]], runs: Sequence[Run]) -> Iterator[str]:
    """Early stopping by measure: what the oracle would have kept, and at what price."""
    pairs = [(one, run) for one, run in zip(stops, runs, strict=True) if one["iteration"] < _last(run)]
    if not pairs:
        yield f"A held-out measure says when to stop: {OPEN}, colour and shape stay within {LOST:.0f} points."
        return
    sd, went = (float(np.mean(values)) for values in zip(*((one["sd"], lost(run)) for one, run in pairs), strict=True))
    at = ", ".join(str(one["iteration"]) for one, _ in pairs)
    yield (
        f"{len(pairs)} of {len(runs)} runs go on to lose more than {LOST:.0f} points of colour or shape. Stopped "
        f"before that (iteration {at}) they stand at {sd:+.2f} SD; going on costs {went:.0f} points."
    )


def _last(run: Run) -> int:
    iteration: int = run["curve"][-1]["iteration"]
    return iteration
