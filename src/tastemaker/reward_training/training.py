"""From labels to a folder that `--reward FOLDER` loads: read, look, fit, measure, write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from tastemaker.evaluation.statistics import Interval
from tastemaker.reward_training import showing
from tastemaker.reward_training.features import Eye
from tastemaker.reward_training.fitting import Epoch, Fit, Keeper, Labels, Split, split
from tastemaker.reward_training.material import Material, apart, gathered, parts_of, read
from tastemaker.reward_training.settings import Training
from tastemaker.rewards.head import Head
from tastemaker.rewards.trained import CARD, HEAD, KINDS, SCHEMA
from tastemaker.rewards.weights import BUILT_IN

OURS = (CARD, HEAD, f".{CARD}.part", f".{HEAD}.part", *showing.FILES)  # what a training writes


class Point(NamedTuple):
    """Of a learning curve: so many labels, and how good a head is that had no others."""

    labels: int
    measures: dict[str, Interval]


class Taught(NamedTuple):
    """What came out of a training."""

    folder: Path
    kind: str
    labels: int  # to learn from and to stop by
    validation: dict[str, Interval]
    test: dict[str, Interval] | None
    curve: list[Point]
    epochs: list[Epoch]
    best: int  # the epoch whose head is kept
    split_by: str
    passed_over: int


def teach(
    kind: str, settings: Training, folder: Path, *, device: str = "cpu", version: str = "", anew: bool = False
) -> Taught:
    """Trains a reward of a kind, `regression` or `preference`, and writes it to the folder, which is there.

    A training that was stopped goes on where the folder holds its state, unless it is to begin `anew`; labels and
    settings must be its. Errors: ValueError for labels, pictures or networks that will not do, before anything is
    written, and where nothing could be learned.
    """
    assert kind in KINDS, kind
    settings = replace(settings, features=parts_of(kind, settings), model=_placed(settings.model))
    found = read(kind, settings, settings.data, "data")
    further = read(kind, settings, settings.test, "test") if settings.test else None
    network = Eye(settings.model, settings.revision, settings.dtype, device, settings.preprocess)
    material = gathered(kind, settings, found, network, "data")
    tested = gathered(kind, settings, further, network, "test") if further else None
    if tested is not None:
        apart(material, tested)
    halves = split(material.labels, settings.validation, settings.seed)
    keeper = Keeper(folder, material.mark)
    if anew:
        keeper.forget()
    fit = Fit(material.labels, halves, settings, keeper)
    head = fit.run()
    if not fit.best_at:
        raise ValueError(f"data: nothing could be learned: no head tells the {len(halves.validation)} labels that were "
                         "kept aside better than one that knows nothing.")  # fmt: skip
    own, test = material.labels.measure(head, halves.validation), _measured(tested, head)
    curve = [*_curve(material.labels, tested, halves, settings), Point(halves.size, test or own)]
    about = (fit.epochs, fit.best_at, material.split_by, material.passed_over)
    taught = Taught(folder, kind, halves.size, own, test, curve, *about)
    _write(taught, settings, head, network, material, version)
    keeper.forget()
    return taught


def _placed(model: str) -> str:
    """A network that lies on this machine, from wherever it is asked for."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() and model not in BUILT_IN else model


def _curve(labels: Labels, tested: Material | None, halves: Split, settings: Training) -> list[Point]:
    """Heads that had fewer labels, to learn from and to stop by: those counts of the curve that there are more than."""
    found = []
    for count in sorted(settings.curve):
        if count >= halves.size:
            break
        aside = min(max(1, round(settings.validation * count)), len(halves.validation))
        few = Split(halves.train[: count - aside], halves.validation[:aside])
        try:
            head = Fit(labels, few, settings, Keeper(None, "")).run()
        except ValueError:  # these few are all ties, or all the same, or too few to be apart
            continue
        found.append(Point(count, _measured(tested, head) or labels.measure(head, halves.validation)))
    return found


def _measured(tested: Material | None, head: Head) -> dict[str, Interval] | None:
    if tested is None:
        return None
    return tested.labels.measure(head, torch.arange(len(tested.labels.units)))


def _write(taught: Taught, settings: Training, head: Head, network: Eye, material: Material, version: str) -> None:
    """The card last: a folder without it is no reward. What may fail comes before an older one goes."""
    folder = taught.folder
    showing.curves(taught.kind, [(one.labels, one.measures) for one in taught.curve], taught.epochs, folder)
    showing.extremes(head, material, folder)
    part = folder / f".{HEAD}.part"
    save_file(
        {**{name: value.contiguous() for name, value in head.state_dict().items()}, "probe": network.probe()}, part
    )
    card = folder / f".{CARD}.part"
    card.write_text(json.dumps(_card(taught, settings, version), indent=1), encoding="utf-8")
    (folder / CARD).unlink(missing_ok=True)
    part.replace(folder / HEAD)
    card.replace(folder / CARD)


def _card(taught: Taught, settings: Training, version: str) -> dict[str, Any]:
    said = asdict(settings)
    return {
        "schema": SCHEMA,
        "kind": taught.kind,
        "network": {name: said[name] for name in ("model", "revision", "preprocess")},
        "features": list(settings.features),
        "labels": taught.labels,
        "passed_over": taught.passed_over,
        "split_by": taught.split_by,
        "validation": _plain(taught.validation),
        "test": _plain(taught.test) if taught.test else None,
        "learning_curve": [{"labels": one.labels, **_plain(one.measures)} for one in taught.curve],
        "epochs": len(taught.epochs),
        "best_epoch": taught.best,
        "settings": {name: said[name] for name in said if name not in ("device", "cache")},
        "tastemaker": version,
    }


def _plain(measures: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        name: {key: None if value != value else value for key, value in one._asdict().items()}
        for name, one in measures.items()
    }
