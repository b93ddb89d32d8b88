"""How each tracker is begun, by accelerate's classes, and how numbers, a histogram and pictures reach it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TrackioTracker, WandBTracker
from PIL import Image

from tastemaker.reports.trackers import HOME, Entry

PROJECT = "tastemaker"
# The other trackers that accelerate sends pictures to -> how each wants one.
GRIDS: dict[str, Callable[[Image.Image], Any]] = {
    "aim": lambda sheet: (sheet, ""),
    "clearml": np.asarray,
    "swanlab": lambda sheet: [sheet],
}


class Resuming(WandBTracker):
    """W&B drops what is logged before its own step, and after a resume that stands behind what is made again.

    So the x-axis is a number of our own, `iteration`, and what comes late is put at W&B's present step.
    """

    def start(self) -> None:
        super().start()
        self.run.define_metric("iteration")
        self.run.define_metric("*", step_metric="iteration")

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:  # kwargs: the base's own
        if step is not None:
            values = {**values, "iteration": step}
            step = step if step >= self.run.step else None
        super().log(values, step=step, **kwargs)


def begin(name: str, folder: Path, settings: Mapping[str, Any], before: str | None) -> tuple[Any, str]:
    """A tracker that is ready to log, and how it calls the run.

    before: how it called the run of this folder, where there was one already.
    """
    PartialState()  # accelerate's trackers ask it which process they are in, even to log nothing
    if name == "wandb":
        return _wandb(folder, settings, before)
    if name == "trackio":
        resume = "never" if before is None else "allow"
        tracker = TrackioTracker(PROJECT, name=before or folder.name, resume=resume, config=dict(settings))
        tracker.start()
        return tracker, str(tracker.run.name)
    tracker = LOGGER_TYPE_TO_CLASS[name](**_arguments(name, folder, before))
    tracker.start()
    if before is None:
        tracker.store_init_configuration(dict(settings))
    return tracker, str(tracker.tracker.info.run_id) if name == "mlflow" else folder.name


def _wandb(folder: Path, settings: Mapping[str, Any], before: str | None) -> tuple[Any, str]:
    identity = os.environ.get("WANDB_RUN_ID") or before or uuid.uuid4().hex[:8]
    tracker = Resuming(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", folder.name),
        id=identity,
        resume=None if before is None else "allow",
        dir=str(folder / HOME),
        config=dict(settings),
    )
    tracker.start()
    return tracker, identity


def _arguments(name: str, folder: Path, before: str | None) -> dict[str, Any]:
    """How accelerate's class of a tracker is told the project, the run's name, and where to write."""
    home = folder / HOME
    known: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": home},
        "aim": {"run_name": folder.name, "logging_dir": str(home)},
        "clearml": {"run_name": PROJECT, "task_name": folder.name},
        "comet_ml": {"run_name": PROJECT},
        "dvclive": {"dir": str(home / "dvclive"), "resume": before is not None},
        "mlflow": {"experiment_name": PROJECT, "run_name": folder.name, "run_id": before},
        "swanlab": {"run_name": PROJECT, "experiment_name": folder.name, "logdir": str(home / "swanlab")},
    }
    return known[name]


def send(name: str, tracker: Any, entry: Entry) -> None:
    """Logs an entry: the numbers to every tracker, the rest to those that a function below or GRIDS prepares it for."""
    values: dict[str, Any] = dict(entry.scalars)
    if name in GRIDS and entry.sheets:
        tracker.log_images({key: GRIDS[name](sheet) for key, sheet in entry.sheets.items()}, step=entry.step)
    if name == "tensorboard":
        _to_tensorboard(tracker.tracker, entry)
    elif name == "wandb":
        values |= _for_wandb(entry)
    elif name == "trackio":
        values |= _for_trackio(entry)
    tracker.log(values, step=entry.step)


def _to_tensorboard(writer: Any, entry: Entry) -> None:
    for name, numbers in entry.histograms.items():
        writer.add_histogram(name, np.array(numbers), entry.step)
    for name, sheet in entry.sheets.items():
        writer.add_image(name, np.asarray(sheet), entry.step, dataformats="HWC")


def _for_wandb(entry: Entry) -> dict[str, Any]:
    import wandb

    values: dict[str, Any] = {name: wandb.Histogram(numbers) for name, numbers in entry.histograms.items()}
    for name, pictures in entry.pictures.items():
        values[name] = [wandb.Image(one, caption=caption) for one, caption in pictures]
    return values


def _for_trackio(entry: Entry) -> dict[str, Any]:
    import trackio

    values: dict[str, Any] = {name: trackio.Histogram(numbers) for name, numbers in entry.histograms.items()}
    for name, sheet in entry.sheets.items():  # it takes one picture a name
        values[name] = trackio.Image(sheet, caption="\n".join(caption for _, caption in entry.pictures[name]))
    return values
