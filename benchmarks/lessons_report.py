"""The lessons in numbers: their tables, and by which rule a claim appears."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tastemaker.evaluation.statistics import Interval, over_seeds

Run = Mapping[str, Any]  # a line of lessons.jsonl
NAN = math.nan
LOST = 5.0  # points of the oracle's colour or shape: a run that loses more has left its prompts
FALL = 0.5  # standard deviations below the best evaluation: less is no fall
FEW = 0.1  # of the pictures
YES, NO, OPEN = "**appears**", "**does not appear here**", "**cannot be told**"
WORDS = {
    "count=4": "4 prompts",
    "count=24": "24 prompts",
    "count=120": "all 120 prompts",
    "lora=on": "LoRA",
    "lora=off": "whole network",
    "lr_scheduler=constant": "constant",
    "lr_scheduler=linear": "decaying to zero",
    "lesson_clip": "DDPO",
    "lesson_reinforce": "REINFORCE",
}


class Lesson(NamedTuple):
    """The recipes whose sweeps it takes, and whether it looks at every picture's reward."""

    recipes: tuple[str, ...]
    values: bool = False


LESSONS = {
    "prompts": Lesson(("lesson_prompts",)),
    "lora": Lesson(("lesson_lora",)),
    "decay": Lesson(("lesson_decay",), values=True),
    "clip": Lesson(("lesson_clip", "lesson_reinforce")),
}


# ---- runs


def title(run: Run) -> str:
    """What a reader calls a variant: `LoRA, 1e-4`, `DDPO, clip 1e-4`."""
    parts = [WORDS.get(part, part) for part in run["variant"].split(", ")]
    parts = [part.removeprefix("learning_rate=").replace("clip=", "clip ") for part in parts]
    return ", ".join([*([WORDS[run["recipe"]]] if run["recipe"] in WORDS else []), *parts])


def by_title(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of one variant, in the order of their seeds."""
    names = dict.fromkeys(map(title, runs))
    return {name: sorted((one for one in runs if title(one) == name), key=lambda one: one["seed"]) for name in names}


def end(run: Run) -> float:
    """The change at the last evaluation, in standard deviations; NaN where the run broke."""
    return NAN if run["broke"] else number(run["curve"][-1]["sd"])


def way(run: Run) -> float:
    """The mean change over all evaluations after the first: higher for a run that learned sooner."""
    return NAN if run["broke"] else float(np.mean([number(point["sd"]) for point in run["curve"][1:]]))


def lost(run: Run) -> float:
    """Points of the oracle that colour or shape lost, whichever lost more; positive is lost."""
    first, last = run["curve"][0], run["curve"][-1]
    return max(100 * (first[name] - last[name]) for name in ("colour", "shape"))


def difference(one: Sequence[Run], other: Sequence[Run], of: Callable[[Run], float]) -> Interval:
    """How much more `one` has, over pairs of the same seed."""
    found = {run["seed"]: of(run) for run in other}
    return over_seeds([of(run) - found[run["seed"]] for run in one if run["seed"] in found])


def number(value: float | None) -> float:
    """What JSON has as null is no number."""
    return NAN if value is None else value


# ---- the table


def table(runs: Sequence[Run]) -> str:
    """A row a variant, in Markdown."""
    head = ("", "runs", "change (SD)", "on the way (SD)", "count", "colour", "shape", "diversity", "queries", "seconds")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    starts = [run["curve"][0] for run in runs]
    base = ["base", "", "", "", *_oracle(starts), _mean(starts, "diversity", 1, 3), "", ""]
    lines.append("| " + " | ".join(base) + " |")
    lines += ["| " + " | ".join(_cells(name, own)) + " |" for name, own in by_title(runs).items()]
    return "\n".join(lines)


def _cells(name: str, runs: Sequence[Run]) -> Iterator[str]:
    whole = [run for run in runs if not run["broke"]]
    ends = [run["curve"][-1] for run in whole]
    yield name
    yield f"{len(runs)}" + (f", {len(runs) - len(whole)} broke" if len(whole) < len(runs) else "")
    if not whole:
        yield "-"
    elif len(whole) == 1:
        yield f"{end(whole[0]):+.2f} [{ends[0]['low']:+.2f}, {ends[0]['high']:+.2f}] over prompts"
    else:
        yield f"{_shown(over_seeds([end(run) for run in whole]))} ({' '.join(f'{end(run):+.2f}' for run in whole)})"
    yield _shown(over_seeds([way(run) for run in whole]))
    yield from _oracle(ends)
    yield _mean(ends, "diversity", 1, 3)
    yield f"{max((one['queries'] for one in ends), default=0):,}"
    yield _mean(ends, "seconds", 1, 0)


def _oracle(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_mean(points, name, 100, 1) for name in ("count", "colour", "shape")]


def _mean(points: Sequence[Mapping[str, Any]], name: str, factor: float, digits: int) -> str:
    values = [number(point[name]) * factor for point in points]
    return f"{np.mean(values):.{digits}f}" if values and not np.isnan(values).any() else "-"


def _shown(found: Interval) -> str:
    if math.isnan(found.mean):
        return "-"
    return f"{found.mean:+.2f}" + ("" if math.isnan(found.low) else f" [{found.low:+.2f}, {found.high:+.2f}]")


# ---- verdicts


def more(found: Interval) -> str:
    """Whether a difference is there: clear of zero over seeds, on the claim's side or on the other."""
    if not found.clear_of_zero:
        return f"{OPEN} ({_shown(found)} SD)"
    return f"{YES if found.mean > 0 else NO + ', the contrary does'} ({_shown(found)} SD)"


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


def told(name: str, runs: Sequence[Run], pictures: Sequence[str]) -> str:
    """A lesson's part of the page: plots, table, verdicts."""
    shown = "\n".join(f"![{name}]({path})" for path in pictures)
    return f"{shown}\n\n{table(runs)}\n\n" + "\n".join(f"- {line}" for line in RULES[name](runs))
