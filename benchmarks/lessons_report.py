"""The verdicts of the lessons: by which rule a claim appears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from lessons_gradients import of_kl, of_steps
from lessons_runs import LOST, NO, OPEN, YES, Run, by_title, difference, end, lost, more, number, table, way

from tastemaker.evaluation.statistics import over_seeds

FALL = 0.5  # standard deviations below the best evaluation: less is no fall
FEW = 0.1  # of the pictures


def of_prompts(runs: Sequence[Run]) -> Iterator[str]:
    own = by_title(runs)
    few, every = own["4 prompts"], own["all 120 prompts"]
    learned = over_seeds([end(run) for run in few])
    yield f"What 4 prompts teach holds for prompts that were never seen: {more(learned)}."
    yield f"More prompts slow learning down, 4 above 120 on the way: {more(difference(few, every, way))}."
    yield f"The same at the end of the runs: {more(difference(few, every, end))}."


def of_lora(runs: Sequence[Run]) -> Iterator[str]:
    """A rate works where every run of it rises clear of zero and none breaks or leaves its prompts."""
    works: dict[str, list[str]] = {"LoRA": [], "whole network": []}
    for name, own in by_title(runs).items():
        kind, rate = name.split(", ")
        good = [not run["broke"] and run["curve"][-1]["low"] > 0 and lost(run) <= LOST for run in own]
        works[kind] += [rate] if all(good) else []
    whole, lora = works["whole network"], works["LoRA"]
    yield f"The whole network works at 1e-5: {YES if '1e-5' in whole else NO}."
    against = f"{', '.join(whole) or 'none'} against {', '.join(lora) or 'none'}"
    yield f"It works at fewer rates than LoRA ({against}): {YES if len(whole) < len(lora) else NO}."


def of_clip(runs: Sequence[Run]) -> Iterator[str]:
    own = by_title(runs)
    right = own["DDPO, clip 1e-4"]
    for other in ("1e-5", "1e-3"):
        found = difference(right, own[f"DDPO, clip {other}"], end)
        yield f"A clip of 1e-4 ends above one of {other}: {more(found)}."
    for rate in ("3e-3", "1e-3"):
        if f"REINFORCE, {rate}" in own:
            found = difference(right, own[f"REINFORCE, {rate}"], end)
            yield f"Importance sampling (clip 1e-4) ends above the score function at {rate}: {more(found)}."


class Fallen(NamedTuple):
    """A run's best evaluation and its worst one after that, and what the pictures between them lost."""

    best: Mapping[str, Any]
    worst: Mapping[str, Any]
    depth: float  # SD of the base
    low: np.ndarray  # [N] whether a picture is an outlier of the worst
    share: float  # of the fall that outliers account for
    half: float  # the smallest share of the pictures that makes up half of it


def fallen(run: Run) -> Fallen | None:
    """None where no evaluation after the best one is lower.

    An outlier lies below the first quartile of the best evaluation's rewards by more than 1.5 times the distance of its
    quartiles (Tukey's fence).
    """
    best = max(run["curve"], key=lambda point: number(point["sd"]))
    after = [point for point in run["curve"] if point["iteration"] > best["iteration"] and point["sd"] < best["sd"]]
    if not after:
        return None
    worst = min(after, key=lambda point: point["sd"])
    before, now = (np.array(point["values"], dtype=float) for point in (best, worst))
    first, third = np.quantile(before, [0.25, 0.75])
    low, loss = now < first - 1.5 * (third - first), before - now
    largest = np.sort(loss)[::-1].cumsum()
    half = float(np.argmax(largest >= loss.sum() / 2) + 1) / len(loss)
    return Fallen(best, worst, best["sd"] - worst["sd"], low, float(loss[low].sum() / loss.sum()), half)


def of_decay(runs: Sequence[Run]) -> Iterator[str]:
    falls = {name: fallen(own[0]) for name, own in by_title(runs).items()}
    for name, found in falls.items():
        if found is None:
            yield f"Learning rate {name}: no evaluation is lower than one before it."
            continue
        yield (
            f"Learning rate {name}: best {found.best['sd']:+.2f} SD after {found.best['iteration']} iterations, worst "
            f"after that {found.worst['sd']:+.2f} SD after {found.worst['iteration']}; "
            f"{found.low.mean():.0%} of the pictures are outliers, with {found.share:.0%} of the loss; half of the "
            f"loss is that of {found.half:.0%} of the pictures."
        )
    own, other = falls["constant"], falls["decaying to zero"]
    fell = own is not None and own.depth > FALL
    yield f"A run that goes on too long falls: {YES if fell else NO}."
    if fell and own is not None:
        few = own.low.mean() <= FEW and own.share >= 0.5
        yield f"A few low outliers make the fall: {YES if few else NO}."
        kept = other is None or other.depth <= FALL
        yield f"A decaying learning rate mends it: {YES if kept else NO}."
    else:
        yield f"A few low outliers make the fall, and a decaying learning rate mends it: {OPEN}, nothing fell."


RULES = {"prompts": of_prompts, "lora": of_lora, "decay": of_decay, "clip": of_clip}
RULES |= {"steps": of_steps, "kl": of_kl}


def told(name: str, runs: Sequence[Run], pictures: Sequence[str]) -> str:
    """A lesson's part of the page: plots, table, verdicts."""
    shown = "\n".join(f"![{name}]({path})" for path in pictures)
    return f"{shown}\n\n{table(runs)}\n\n" + "\n".join(f"- {line}" for line in RULES[name](runs))
