"""The runs of the lessons: what they are called, what is compared between them, and their table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tastemaker.evaluation.statistics import Interval, over_seeds

Run = Mapping[str, Any]  # a line of lessons.jsonl
NAN = math.nan
LOST = 5.0  # points of the oracle's colour or shape: a run that loses more has left its prompts
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
    "lesson_kl_ddpo": "DDPO",
    "lesson_steps": "DRaFT",
    "truncation=uniform": "AlignProp",
    "kl=0": "DRaFT",
    "diversity=10": "a bonus for diversity",
    "reward_dropout=true": "dropout in the reward",
}


class Lesson(NamedTuple):
    """The recipes whose sweeps it takes, whether it looks at every picture's reward, which reward counts, and a prompt
    that is drawn with every variant, where pictures of one are to be seen.
    """

    recipes: tuple[str, ...]
    values: bool = False
    judge: str = ""  # the one that is trained on where it is not named
    prompt: str = ""


LESSONS = {
    "prompts": Lesson(("lesson_prompts",)),
    "lora": Lesson(("lesson_lora",)),
    "decay": Lesson(("lesson_decay",), values=True),
    "clip": Lesson(("lesson_clip", "lesson_reinforce")),
    "steps": Lesson(("lesson_steps", "lesson_uniform"), judge="jpeg_compressibility"),
    "kl": Lesson(("lesson_kl", "lesson_remedies", "lesson_kl_ddpo"), prompt="three yellow hearts"),
}


# ---- runs


def title(run: Run) -> str:
    """What a reader calls a variant: `LoRA, 1e-4`, `DDPO, clip 1e-4`."""
    parts = [WORDS.get(part, part) for part in run["variant"].split(", ")]
    parts = [re.sub("^kl=", "DRaFT+, kl ", part) for part in parts]
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


def more(found: Interval, unit: str = "SD") -> str:
    """Whether a difference is there: clear of zero over seeds, on the claim's side or on the other."""
    if not found.clear_of_zero:
        return f"{OPEN} ({_shown(found)} {unit})"
    return f"{YES if found.mean > 0 else NO + ', the contrary does'} ({_shown(found)} {unit})"
