"""What a training shows: how good it gets with labels and epochs, and what the reward likes best and least."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tastemaker.evaluation.statistics import Interval
from tastemaker.policy.pictures import read_picture
from tastemaker.reports.pictures import grid
from tastemaker.reports.plot import Series, line_chart
from tastemaker.reward_training.fitting import Epoch
from tastemaker.reward_training.material import Material
from tastemaker.rewards.head import Head

LABELS, EPOCHS, EXTREMES = "learning_curve.svg", "epochs.svg", "best_and_worst.png"
FILES = (LABELS, EPOCHS, EXTREMES)
ACROSS = 8  # pictures of a row


def curves(
    kind: str, points: Sequence[tuple[int, Mapping[str, Interval]]], epochs: Sequence[Epoch], folder: Path
) -> None:
    """Charts of the measure against the number of labels, and of the losses against epochs."""
    name = next(iter(points[0][1]))
    means, lows, highs = zip(*(measures[name] for _, measures in points), strict=True)
    series = Series("", [count for count, _ in points], means, lows, highs)
    line_chart([series], title=f"{kind}: {name} by labels", x="labels", y=name, path=folder / LABELS)
    both = [
        Series("learned from", [one.epoch for one in epochs], [one.loss for one in epochs]),
        Series("validation", [one.epoch for one in epochs], [one.validation for one in epochs]),
    ]
    line_chart(both, title=f"{kind}: loss by epoch", x="epoch", y="loss", path=folder / EPOCHS)


def extremes(head: Head, material: Material, folder: Path) -> None:
    """The pictures of the labels that the reward likes best, those in the middle, and those it likes least."""
    with torch.no_grad():
        values = torch.cat([head(part) for one in material.rows for part in one.chunks(torch.arange(len(one)))])
    first = {picture: place for place, picture in reversed([*enumerate(material.pictures)])}
    order = sorted(first.values(), key=lambda place: -float(values[place]))
    across = min(ACROSS, max(1, len(order) // 3))
    middle = (len(order) - across) // 2
    chosen = [order[:across], order[middle : middle + across], order[-across:]]
    pictures = [[read_picture(io.BytesIO(material.pictures[k].read_bytes()), "") for k in row] for row in chosen]
    notes = [[f"{float(values[k]):.3g}  {material.prompts[k]}".strip() for k in row] for row in chosen]
    grid(pictures, titles=["best", "median", "worst"], path=folder / EXTREMES, notes=notes)
