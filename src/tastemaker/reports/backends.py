"""How each tracker is begun, by accelerate's classes, and how numbers, a histogram and pictures reach it."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TrackioTracker, WandBTracker
from PIL import Image

from tastemaker.reports import secrets
from tastemaker.reports.trackers import HOME, Entry

PROJECT = "tastemaker"
SWANLAB_ASKS = "SWANLAB_PROBE_RUNTIME"  # for the host, the folder and the command; `false` keeps them here
# The other trackers that accelerate sends pictures to -> how each wants one.
GRIDS: dict[str, Callable[[Image.Image], Any]] = {
    "aim": lambda sheet: (sheet, ""),
    "clearml": np.asarray,
    "swanlab": lambda sheet: [sheet],
}
# How those call a run that remember it elsewhere than in a file of our naming.
CALLED: dict[str, Callable[[Any], Any]] = {
    "aim": lambda run: run.hash,
    "clearml": lambda task: task.id,
    "comet_ml": lambda experiment: experiment.get_key(),
    "mlflow": lambda run: run.info.run_id,
    "swanlab": lambda run: run.id,
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
    with _without_secrets_of_the_command():
        return _begin(name, folder, settings, before)


@contextmanager
def _without_secrets_of_the_command() -> Iterator[None]:
    """W&B, Comet and SwanLab keep the command line, where there may be a key; SwanLab does not take it from here."""
    said, public = sys.argv, secrets.command(sys.argv)
    before = os.environ.get(SWANLAB_ASKS)
    sys.argv = public
    if said != public:
        os.environ[SWANLAB_ASKS] = "false"
    try:
        yield
    finally:
        sys.argv = said
        os.environ.pop(SWANLAB_ASKS, None)
        os.environ |= {} if before is None else {SWANLAB_ASKS: before}


def _begin(name: str, folder: Path, settings: Mapping[str, Any], before: str | None) -> tuple[Any, str]:
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
    return tracker, str(CALLED[name](tracker.tracker)) if name in CALLED else folder.name


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
    home, again = folder / HOME, before is not None
    known: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": home},
        "aim": {"run_name": folder.name, "logging_dir": str(home), "run_hash": before},
        # By itself ClearML empties the last task of the same name. Continued from 0 it keeps the steps that it is told.
        "clearml": {
            "run_name": PROJECT,
            "task_name": folder.name,
            "reuse_last_task_id": before or False,
            "continue_last_task": 0 if again else False,
        },
        "comet_ml": {"run_name": PROJECT, "experiment_key": before},
        "dvclive": {"dir": str(home / "dvclive"), "resume": again},
        "mlflow": {"experiment_name": PROJECT, "run_name": folder.name, "run_id": before},
        "swanlab": {
            "run_name": PROJECT,
            "experiment_name": folder.name,
            "logdir": str(home / "swanlab"),
            "id": before,
            "resume": "allow" if again else None,
        },
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
