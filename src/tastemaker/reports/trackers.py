"""Trackers: what `--report_to` names is given every iteration's numbers, the spread of its rewards, and its pictures.

Everything is logged at the iteration's number, under these names:

    reward/mean std min max failed, reward/parts/PART   scores of the iteration's pictures, all devices together
    reward/histogram                                    the scores themselves
    samples                                             the pictures that the run keeps of them: `prompt | reward`
    update/STATISTIC                                    loss, grad_norm, ...: the mean over the iteration's updates
    held_out/REWARD                                     mean scores of the evaluation before the iteration
    seconds/PART queries images network_calls/... memory/...                 what it cost
    evaluation/REWARD/mean low high                     an evaluation, with its 95 % interval
    evaluation/REWARD/change change_low change_high change_deviations wins   against the base model, paired
    evaluation/diversity/mean low high change_mean ...  of the pictures of a prompt
    evaluation/samples                                  the pictures that it keeps
    evaluate/REWARD/mean low high change ...            `tastemaker evaluate`, without a step

TensorBoard, W&B and trackio are given all of it, accelerate's other trackers the numbers and, where accelerate can, the
pictures. Numbers that are not finite are left out. metrics.jsonl and evaluations.jsonl hold everything, whatever
becomes of a tracker: one that fails while the run goes on is named once and given nothing more.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tastemaker.reports import secrets
from tastemaker.reports.pictures import grid

# What accelerate has a tracker for -> what pip installs for it.
PACKAGES = {
    "tensorboard": "'tastemaker[tensorboard]'",
    "wandb": "'tastemaker[wandb]'",
    "trackio": "'tastemaker[trackio]'",
    "aim": "'aim<4'",
    "clearml": "clearml",
    "comet_ml": "comet_ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
}
HOME = "trackers"  # the folder in a run's folder for what trackers write on this machine
RUNS = "runs.json"  # in it: how each tracker calls this run, so that a resumed one goes on there
MOST, ACROSS = 32, 8  # pictures a tracker is given at once, and of them side by side in a grid
WORDS = 48  # letters of a prompt below a picture of a grid, so that the reward behind them is not cut off


class Entry(NamedTuple):
    """What is logged at once: everything by its name."""

    scalars: dict[str, float]
    step: int | None
    histograms: dict[str, list[float]]
    pictures: dict[str, list[tuple[Image.Image, str]]]  # each with its caption
    sheets: dict[str, Image.Image]  # the same pictures as one, captions below them


def need(names: Sequence[str], *, key: str = "--report_to") -> None:
    """Refuses a tracker that there is not, and one whose package is missing. Imports none of them.

    Errors: ValueError naming the key, with the line that installs the package.
    """
    for name in names:
        if name not in (*PACKAGES, "all") and tuple(names) != ("none",):
            near = difflib.get_close_matches(name, PACKAGES, 1)
            guess = f"  Did you mean `{near[0]}`?" if near else ""
            known = ", ".join(PACKAGES)
            raise ValueError(f"{key} {name}: there is no such tracker.{guess}  There are {known}; all; none.")
    if "all" in names and not _meant(names):
        raise ValueError(f"{key} all: no tracker is installed: pip install {PACKAGES['tensorboard']}")
    for name in _meant(names):
        if not _installed(name):
            raise ValueError(f"{key} {name}: the package {name} is not installed: pip install {PACKAGES[name]}")


def _meant(names: Sequence[str]) -> list[str]:
    """`none` is none, `all` are those whose packages are installed."""
    if tuple(names) == ("none",):
        return []
    installed = [name for name in PACKAGES if _installed(name)] if "all" in names else []
    return list(dict.fromkeys(one for name in names for one in (installed if name == "all" else [name])))


def _installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # the folder ./wandb of an earlier run is no package


def start(names: Sequence[str], folder: Path, settings: Mapping[str, Any], *, key: str = "--report_to") -> Trackers:
    """Begins a run of the folder's name in each tracker, or goes on with the one the folder had there. Rank 0 only.

    Each is asked for its run by what runs.json says it is called there; where that file is broken, all begin anew. Of
    a run without network W&B, Comet and SwanLab write a second file with the same name in it, for the later upload.
    settings: the run's, nested; trackers get them with dotted names and without secrets. Trackers' own variables
    (WANDB_PROJECT, WANDB_MODE, TRACKIO_SPACE_ID, MLFLOW_TRACKING_URI, ...) mean what they mean everywhere.
    Errors: ValueError naming the tracker that does not start, with its reason.
    """
    meant = _meant(names)
    if not meant:
        return Trackers(folder, {})
    from tastemaker.reports import backends

    folder = folder.resolve()  # its name, also where it was given as `.`
    file, running = folder / HOME / RUNS, Trackers(folder, {})
    file.parent.mkdir(parents=True, exist_ok=True)
    runs, flat = _runs(file), flattened(settings)
    for name in meant:
        try:
            running.alive[name], runs[name] = backends.begin(name, folder, flat, runs.get(name))
        except Exception as error:  # whatever another's package raises: no login, no network, no space
            running.finish()
            raise ValueError(f"{key} {name} did not start: {_reason(error)}") from error
        part = file.with_name(f".{RUNS}.part")  # whole or not at all: a resumed run reads it
        part.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    return running


def _runs(file: Path) -> dict[str, str]:
    """How each tracker called the run of this folder; nothing where the file cannot be read, which is said."""
    try:
        found = json.loads(file.read_bytes()) if file.exists() else {}
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            raise ValueError("it holds no names of runs")
        return found
    except (OSError, ValueError) as error:
        what = (
            f"{file} cannot be read ({_reason(error)}), so the trackers begin new runs instead of going on with theirs."
        )
        warnings.warn(what, RuntimeWarning, stacklevel=3)
        return {}


class Trackers:
    """The trackers of one run; there may be none. Only rank 0 has any."""

    def __init__(self, folder: Path, alive: Mapping[str, Any]) -> None:
        self.folder, self.alive = folder, dict(alive)

    @property
    def raw(self) -> list[Any]:
        """accelerate's tracker objects, without those that were lost; `.tracker` is the package's own run."""
        return list(self.alive.values())

    def iteration(self, row: Mapping[str, Any], rewards: Sequence[float], samples: Sequence[Mapping[str, Any]]) -> None:
        """An iteration: its row of metrics.jsonl, all its rewards, and the rows of samples.jsonl of its pictures."""
        tree = {k: v for k, v in row.items() if k not in ("iteration", "updates")} | {"update": _means(row["updates"])}
        found = [value for value in rewards if math.isfinite(value)]
        self._log(tree, row["iteration"], {"reward/histogram": found} if found else {}, {"samples": samples})

    def evaluation(self, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """An evaluation: its row of evaluations.jsonl, and the rows of samples.jsonl of its pictures."""
        tree = {name: {**interval, **_change(row["change"].get(name))} for name, interval in row["reward"].items()}
        if found := row.get("diversity"):
            tree["diversity"] = {key: value for key, value in found.items() if key not in ("values", "change")}
            tree["diversity"] |= {f"change_{key}": value for key, value in found["change"].items()}
        self._log({"evaluation": tree}, row["iteration"], {}, {"evaluation/samples": samples})

    def comparison(self, scores: Mapping[str, Any]) -> None:
        """What `tastemaker evaluate` found: a dataclass of numbers by the name of the score."""
        self._log({"evaluate": {name: asdict(found) for name, found in scores.items()}}, None, {}, {})

    def finish(self) -> None:
        """Ends every tracker's run; nothing is logged afterwards."""
        self._each(lambda name, tracker: tracker.finish())
        self.alive = {}

    def _log(
        self,
        tree: Mapping[str, Any],
        step: int | None,
        histograms: dict[str, list[float]],
        samples: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        if not self.alive:
            return
        from tastemaker.reports import backends

        shown = {name: rows[:: -(-len(rows) // MOST)] for name, rows in samples.items() if rows}
        pictures = {name: [self._picture(row) for row in rows] for name, rows in shown.items()}
        sheets = {name: _sheet(pictures[name], rows) for name, rows in shown.items()}
        entry = Entry(_scalars(tree), step, histograms, pictures, sheets)
        self._each(lambda name, tracker: backends.send(name, tracker, entry))

    def _picture(self, row: Mapping[str, Any]) -> tuple[Image.Image, str]:
        with Image.open(self.folder / row["file"]) as picture:
            return picture.convert("RGB"), f"{row['prompt']} | {_score(row['reward'])}"

    def _each(self, act: Callable[[str, Any], object]) -> None:
        """Acts on every tracker, and lets one go that raises: no network and no full disk there ends a training run."""
        for name, tracker in list(self.alive.items()):
            try:
                act(name, tracker)
            except Exception as error:
                del self.alive[name]
                what = f"tracker {name} was lost ({_reason(error)}). It is given nothing more; the run goes on."
                warnings.warn(what, RuntimeWarning, stacklevel=4)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """Nested settings as dotted names and plain values, lists as JSON; (removed) stands for every secret."""
    flat: dict[str, str | float | bool] = {}
    for key, value in secrets.cleaned(settings).items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat[f"{prefix}{key}"] = json.dumps(value, default=_as_text, ensure_ascii=False)
        else:
            known = isinstance(value, str | int | float)
            flat[f"{prefix}{key}"] = value if known else "none" if value is None else _as_text(value)
    return flat


def _as_text(value: object) -> str:
    return secrets.text(str(value))


def _scalars(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a tree by their paths."""
    found: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[f"{prefix}{key}"] = value
    return found


def _means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every statistic over the updates that have a finite one."""
    names = dict.fromkeys(name for update in updates for name in update)
    columns = {name: list(_finite(update.get(name) for update in updates)) for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items() if column}


def _finite(values: Iterator[float | None]) -> Iterator[float]:
    return (value for value in values if value is not None and math.isfinite(value))


def _change(found: Mapping[str, float] | None) -> dict[str, float]:
    """A change from the base model, as trackers name its parts."""
    if found is None:
        return {}
    bounds = {f"change_{name}": found[name] for name in ("low", "high", "deviations")}
    return {"change": found["mean"], **bounds, "wins": found["wins"]}


def _sheet(pictures: Sequence[tuple[Image.Image, str]], samples: Sequence[Mapping[str, Any]]) -> Image.Image:
    """The pictures in rows as one, each with `prompt | reward` below it."""
    notes = [f"{_short(row['prompt'])} | {_score(row['reward'])}" for row in samples]
    starts = range(0, len(pictures), ACROSS)
    return grid(
        [[one for one, _ in pictures[k : k + ACROSS]] for k in starts], notes=[notes[k : k + ACROSS] for k in starts]
    )


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= WORDS else f"{prompt[: WORDS - 3].rstrip()}..."


def _score(reward: float | None) -> str:
    return "no score" if reward is None or not math.isfinite(reward) else f"{reward:.4g}"


def _reason(error: Exception) -> str:
    return secrets.text(f"{type(error).__name__}: {error}".strip(": "))
