"""By which number the best checkpoints are kept: what the user named, looked up among what a run measures."""

from __future__ import annotations

from collections.abc import Sequence

from tastemaker.rewards.reward import NamedReward
from tastemaker.settings import RunSettings


def by(run: RunSettings, held_out: Sequence[NamedReward], parts: Sequence[str] | None, dashes: str = "") -> str:
    """`reward`, `parts.NAME` or `held_out.NAME`; empty where no best checkpoint is kept.

    parts: of the trained reward, by name; None where nobody was asked yet: then a name may still be one of them.
    Errors: ValueError that names the setting as typed and lists what there is.
    """
    read = [one.name for one in held_out if run.alarms and (run.alarms.oracles or not one.oracle)]
    if run.best_metric is None:
        names = [one.name for one in held_out if run.alarms and not one.oracle]
        first = (run.alarms and run.alarms.best) or next(iter(names), None)
        return f"held_out.{first}" if first and run.best_checkpoints else ""
    found = ["reward", *(f"held_out.{name}" for name in read), *(f"parts.{name}" for name in parts or ())]
    for one in found:
        if run.best_metric and run.best_metric in (one, one.partition(".")[2]):
            return one
    if parts is None and run.best_metric and run.best_metric not in [one.name for one in held_out]:
        return ""
    why = ""
    if run.best_metric in [one.name for one in held_out]:
        why = f" Held-out rewards are measured by the watch, {_missing(run)}."
    there = ", ".join(one.partition(".")[2] or one for one in found)
    raise ValueError(f"{dashes}best_metric is {run.best_metric!r}; it is one of {there}.{why}")


def _missing(run: RunSettings) -> str:
    if run.alarms is None:
        return "and alarms are off"
    return "which asks an oracle only with alarms.oracles"
