"""What a run shows: evaluations written down, pictures before and after, the curve, and the last words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tastemaker.evaluation.diversity import Diversity
from tastemaker.evaluation.diversity import compare as compare_diversity
from tastemaker.evaluation.evaluate import Change, Trial, Verdict, compare
from tastemaker.evaluation.statistics import FEW, bootstrap
from tastemaker.prompts.prompts import Prompts
from tastemaker.reports.curve import learning_curve
from tastemaker.reports.pictures import grid
from tastemaker.reports.trackers import Trackers
from tastemaker.training.checkpoint import Cursor
from tastemaker.training.lines import Lines, read_lines
from tastemaker.training.record import METRICS
from tastemaker.training.samples import Samples

EVALUATIONS = "evaluations.jsonl"
SHOWN = 8  # pictures of an evaluation that are kept, and stand in before_after.png


class Results:
    """The evaluations of one run. The first is of the base model; later ones are compared with it, pair by pair."""

    def __init__(
        self,
        folder: Path,
        trial: Trial,
        prompts_name: str,
        sampler: str,
        *,
        metric: str = "",
        write: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        self.folder, self.trial, self.prompts_name, self.sampler = folder, trial, prompts_name, sampler
        self.metric = metric  # of diversity; empty where it is not measured
        self.write, self.trackers = write, trackers or Trackers(folder, {})
        self.lines = Lines(folder / EVALUATIONS, "evaluations", write=write)
        self.samples = Samples(folder, "evaluation", write=write)
        self.base: dict[str, torch.Tensor] = {}
        self.changes: dict[str, Change] = {}
        self.base_diversity: dict[int, float] = {}
        self.diversity: Diversity | None = None

    def rewind(self, cursor: Cursor) -> None:
        """Forgets evaluations behind the cursor, which are made again, and reads the base's values."""
        # the evaluation before an iteration is not made again once the iteration has changed the weights
        first = cursor.iteration + (cursor.updates > 0)
        self.lines.keep(lambda row: row["iteration"] < first)
        self.samples.forget(lambda made: made >= first)
        for row in self.lines.rows()[:1]:
            self.base = {name: torch.tensor([_number(v) for v in values]) for name, values in row["values"].items()}
            known = row.get("diversity", {"metric": "", "values": []})
            found = known["values"] if known["metric"] == self.metric else []  # two metrics' numbers do not compare
            self.base_diversity = {group: _number(value) for group, value in enumerate(found)}

    def add(self, iteration: int, verdict: Verdict) -> dict[str, Change]:
        """Writes an evaluation down and returns the changes from the base; one made again replaces its record."""
        if not self.base or iteration == 0:
            self.base, self.base_diversity = verdict.values, verdict.diversity
        self.changes = changes = compare(self.base, verdict.values, self.trial.prompts, self.trial.seed)
        groups = self.trial.prompts.groups
        means = {n: bootstrap(v.numpy(), groups, key=(self.trial.seed, n)) for n, v in verdict.values.items()}
        self.lines.keep(lambda row: row["iteration"] != iteration)
        row = {
            "iteration": iteration,
            "prompts": self.prompts_name,
            "pictures": len(self.trial.prompts),
            "sampler": self.sampler,
            "steps": self.trial.steps,
            "guidance": self.trial.guidance,
            "reward": {name: found._asdict() for name, found in means.items()},
            "change": {name: _flat(change) for name, change in changes.items()},
            "values": {name: value.tolist() for name, value in verdict.values.items()},
        }
        if verdict.diversity:
            row["diversity"] = self._diversity(verdict.diversity)
        if not self.lines.rows():  # said once: they are those of all evaluations
            row |= {"texts": _texts(self.trial.prompts), "groups": list(groups)}
        self.lines.add(row)
        if self.write:
            self.trackers.evaluation(row, self._keep_pictures(iteration, verdict))
        return changes

    def _diversity(self, found: dict[int, float]) -> dict[str, Any]:
        """The diversity of an evaluation, its change from the base, and every prompt's, in the order of the prompts."""
        self.diversity = compare_diversity(self.metric, self.base_diversity, found, seed=self.trial.seed)
        interval, change = self.diversity.tuned, self.diversity.change
        values = [found[group] for group in sorted(found)]
        return {"metric": self.metric, **interval._asdict(), "change": change._asdict(), "values": values}

    def _keep_pictures(self, iteration: int, verdict: Verdict) -> list[dict[str, Any]]:
        self.samples.forget(lambda made: made == iteration)
        pictures, (reward, *others) = dict(zip(verdict.ids, verdict.pictures, strict=True)), verdict.values
        return [
            self.samples.add(
                iteration,
                b,
                pictures[b].float() / 255,
                prompt=self.trial.prompts.texts[b],
                reward=float(verdict.values[reward][b]),
                parts={name: float(verdict.values[name][b]) for name in others},
            )
            for b in self._shown(verdict.ids)
        ]

    def _shown(self, ids: Sequence[int]) -> list[int]:
        """The pictures that are kept: one a prompt, spread evenly from the lowest to the highest reward of the base.

        Where there are fewer prompts than that, second pictures of them are taken too.
        """
        own, copies, order = set(ids), Counter[int](), []
        for b, group in zip(self.trial.prompts.ids, self.trial.prompts.groups, strict=True):
            copies[group] += 1
            if b in own:
                order.append((copies[group], b))
        rows = [b for _, b in sorted(order)]
        rows = rows[: max(SHOWN, sum(copy == 1 for copy, _ in order))]
        value = next(iter(self.base.values())).nan_to_num()
        rows.sort(key=lambda b: (float(value[b]), b))
        count = min(SHOWN, len(rows))
        return sorted(rows[round(k * (len(rows) - 1) / max(count - 1, 1))] for k in range(count))

    def sentences(self) -> list[str]:
        """The last evaluation against the first, a line a score."""
        prompts = self.trial.prompts
        return sentences(self.changes, len(prompts), len(set(prompts.groups)), self.prompts_name, self.diversity)

    def before_after(self) -> Path | None:
        """Rows of pictures of the first and the last evaluation, same prompts, same noise."""
        rows = self.lines.rows()
        if len(rows) < 2:
            return None
        found = [self.samples.files(row["iteration"]) for row in (rows[0], rows[-1])]
        ids = sorted(set(found[0]) & set(found[1]))
        if not ids:
            return None
        path = self.folder / "before_after.png"
        name = next(iter(self.base))
        notes = [[f"{_number(row['values'][name][b]):.3g}" for b in ids] for row in (rows[0], rows[-1])]
        texts = self.trial.prompts.texts
        pictures = [[Image.open(one[b]).convert("RGB") for b in ids] for one in found]
        grid(pictures, [texts[b] for b in ids], ["before", "after"], path, notes=notes)
        return path

    def curve(self, reward: str) -> Path:
        """Mean reward of the training pictures, iteration by iteration, and of the evaluations with their intervals."""
        path = self.folder / "curve.svg"
        learning_curve(read_lines(self.folder / METRICS), self.lines.rows(), reward, path)
        return path


def sentences(
    changes: dict[str, Change], pictures: int, prompts: int, prompts_name: str, diversity: Diversity | None = None
) -> list[str]:
    """What changed from so many pictures of so many prompts, a line a score."""
    few = "; of few prompts, so too narrow" if prompts < FEW else ""
    lines = [f"{pictures} pictures of {prompts_name}, same prompts and noise before and after (95 % intervals{few}):"]
    diverse = f"diversity, {diversity.metric}" if diversity else ""
    width = max(map(len, [*changes, diverse]), default=0)
    for name, found in changes.items():
        low, high = found.change.low, found.change.high
        relative = f"{100 * found.change.mean / abs(found.base.mean):+.0f} %, " if found.base.mean else ""
        deviations = "" if np.isnan(found.deviations) else f"{found.deviations:+.2f} SD, "  # the base's did not vary
        lines.append(
            f"  {name:<{width}}  {found.base.mean:.4g} -> {found.tuned.mean:.4g}   {found.change.mean:+.3g} "
            f"[{low:+.3g}, {high:+.3g}]   {relative}{deviations}{found.wins.mean:.0%} of pairs won"
        )
    if diversity and not np.isnan(diversity.change.mean):
        base, tuned, change = diversity.base.mean, diversity.tuned.mean, diversity.change
        relative = f"   {100 * change.mean / base:+.0f} %" if base else ""
        lines.append(
            f"  {diverse:<{width}}  {base:.4g} -> {tuned:.4g}   {change.mean:+.3g} "
            f"[{change.low:+.3g}, {change.high:+.3g}]{relative}"
        )
    return lines


def _texts(prompts: Prompts) -> list[str]:
    """The text of every group, in their order."""
    found = dict(zip(prompts.groups, prompts.texts, strict=True))
    return [found[group] for group in sorted(found)]


def _flat(change: Change) -> dict[str, Any]:
    return {
        "mean": change.change.mean,
        "low": change.change.low,
        "high": change.change.high,
        "deviations": change.deviations,
        "wins": change.wins.mean,
    }


def _number(value: float | None) -> float:
    return float(np.nan) if value is None else float(value)
