"""From what people said and the files that they saw to labels beside rows of numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tastemaker.reward_training import choices, ratings
from tastemaker.reward_training.choices import Choice
from tastemaker.reward_training.features import Cache, Gallery, look, marks_of, texts
from tastemaker.reward_training.fitting import Labels
from tastemaker.reward_training.preference import Preference
from tastemaker.reward_training.ratings import Rating
from tastemaker.reward_training.regression import Regression
from tastemaker.reward_training.settings import LOOKS, Part, Training
from tastemaker.reward_training.tables import TOLD, Embedded, Read
from tastemaker.rewards.head import READING, Looking, rows

FEW = 20  # prompts, below which a split by prompt would leave too few on a side


class Material(NamedTuple):
    """Labels, how many rows said nothing, by what they are split, a mark of all of it, and the pictures that were rated
    or chosen between, with their row of numbers and their prompt."""

    labels: Labels
    passed_over: int
    split_by: str
    mark: str
    pictures: list[Path | Embedded]
    rows: Tensor
    prompts: list[str]


def parts_of(kind: str, settings: Training) -> tuple[Part, ...]:
    """The parts of a row: what was asked for, or what fits the kind."""
    return settings.features or (LOOKS if kind == "regression" else (*LOOKS, "cosine"))


def read(kind: str, settings: Training, data: str, key: str) -> Read:
    """The labels of a file or folder, each row checked, before any network is loaded."""
    if kind == "preference":
        return choices.read(data, columns=settings.columns, pictures=settings.pictures, ties=settings.ties, key=key)
    found = ratings.read(data, columns=settings.columns, pictures=settings.pictures, key=key)
    silent = next((one for one in found.labels if not one.prompt), None)
    if silent is not None and not READING.isdisjoint(parts_of(kind, settings)):
        raise ValueError(
            f"features is {','.join(settings.features)}, which reads prompts, but {silent.place} has none: "
            "leave words and cosine out, or name the prompts' column with --columns.prompt."
        )
    return found


def gathered(kind: str, settings: Training, found: Read, network: Looking, cache: Cache, key: str) -> Material:
    """Labels beside what the network sees. Errors: ValueError naming pictures that are broken or the same twice."""
    make: Callable[..., Material] = _of_choices if kind == "preference" else _of_ratings
    return make(settings, found, network, cache, key)


def _of_ratings(settings: Training, found: Read, network: Looking, cache: Cache, key: str) -> Material:
    labels: list[Rating] = found.labels
    pictures = [one.picture for one in labels]
    marks = marks_of(pictures)
    gallery = look(pictures, marks, network, cache)
    prompts = [one.prompt for one in labels]
    seen = _rows(parts_of("regression", settings), gallery, torch.arange(len(labels)), prompts, network)
    values = torch.tensor([one.value for one in labels], dtype=torch.float32)
    mark = _mark(settings, [(mark.hex(), one.value, one.prompt) for mark, one in zip(marks, labels, strict=True)])
    return Material(Regression(seen, values, marks), found.passed_over, "picture", mark, pictures, seen, prompts)


def _of_choices(settings: Training, found: Read, network: Looking, cache: Cache, key: str) -> Material:
    labels: list[Choice] = found.labels
    pictures = [one.first for one in labels] + [one.second for one in labels]
    marks = marks_of(pictures)
    _refuse_twins(labels, marks, key)
    gallery = look(pictures, marks, network, cache)
    prompts = [one.prompt for one in labels]
    parts = parts_of("preference", settings)
    both = [_rows(parts, gallery, torch.arange(len(labels)) + k * len(labels), prompts, network) for k in (0, 1)]
    shares = torch.tensor([one.share for one in labels], dtype=torch.float32)
    by_prompt = len(set(prompts)) >= FEW
    units: Sequence[Hashable] = prompts if by_prompt else [one.place for one in labels]
    mark = _mark(
        settings,
        [(a.hex(), b.hex(), one.share, one.prompt) for a, b, one in zip(marks, marks[len(labels) :], labels)],  # noqa: B905
    )
    preference = Preference(both[0], both[1], shares, prompts, units)
    by = "prompt" if by_prompt else "pair"
    return Material(preference, found.passed_over, by, mark, pictures, torch.cat(both), prompts * 2)


def _refuse_twins(labels: Sequence[Choice], marks: Sequence[bytes], key: str) -> None:
    twins = [one for k, one in enumerate(labels) if marks[k] == marks[len(labels) + k]]
    if twins:
        said = "\n".join(f"{one.place}: {one.first} and {one.second} are the same picture" for one in twins[:TOLD])
        more = f"\n... and {len(twins) - TOLD} more rows" if len(twins) > TOLD else ""
        raise ValueError(f"{key}: {said}{more}\nThere is nothing to choose between: take these rows out.")


def _rows(parts: Sequence[Part], gallery: Gallery, items: Tensor, prompts: Sequence[str], network: Looking) -> Tensor:
    if READING.isdisjoint(parts):
        return rows(parts, gallery.take(items), None)
    vectors, index = texts(prompts, network)
    return rows(parts, gallery.take(items), vectors[index])


def _mark(settings: Training, labels: Sequence[Any]) -> str:
    """Of the labels and of all settings that decide what is learned: a training goes on only where it is the same."""
    said = [
        getattr(settings, name)
        for name in (
            *("model", "revision", "preprocess", "dtype", "features", "hidden", "validation", "learning_rate"),
            *("weight_decay", "batch_size", "epochs", "patience", "seed"),
        )
    ]
    return hashlib.sha256(repr((said, labels)).encode()).hexdigest()
