"""From what people said and the files that they saw to labels beside rows of numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tastemaker.evaluation.statistics import FEW
from tastemaker.reward_training import choices, ratings
from tastemaker.reward_training.choices import Choice
from tastemaker.reward_training.features import Cache, Eye, Rows, Table, look, marks_of
from tastemaker.reward_training.features import read as read_prompts
from tastemaker.reward_training.fitting import Labels
from tastemaker.reward_training.preference import Preference
from tastemaker.reward_training.ratings import Rating
from tastemaker.reward_training.regression import Regression
from tastemaker.reward_training.settings import LOOKS, Part, Training
from tastemaker.reward_training.tables import TOLD, Embedded, Read, told
from tastemaker.rewards.head import reads

# What decides what is learned, beside the labels and the network: a training goes on only where all of it is the same.
DECIDING = (
    *("model", "revision", "preprocess", "dtype", "features", "hidden", "validation", "learning_rate"),
    *("weight_decay", "batch_size", "epochs", "patience", "seed"),
)


class Material(NamedTuple):
    """Labels, how many rows said nothing, by what they are split, a mark of all of it, and the pictures that were rated
    or chosen between, with their rows of numbers and their prompts."""

    labels: Labels
    passed_over: int
    split_by: str
    mark: str
    pictures: list[Path | Embedded]
    rows: list[Rows]  # of the pictures, one after the other
    prompts: list[str]
    table: Table


def parts_of(kind: str, settings: Training) -> tuple[Part, ...]:
    """The parts of a row: what was asked for, or what fits the kind."""
    return settings.features or (LOOKS if kind == "regression" else (*LOOKS, "cosine"))


def read(kind: str, settings: Training, data: str, key: str) -> Read:
    """The labels of a file or folder, each row checked, before any network is loaded."""
    if kind == "preference":
        return choices.read(data, columns=settings.columns, pictures=settings.pictures, ties=settings.ties, key=key)
    if settings.ties != "half":
        raise ValueError("ties has no effect on ratings, which have none: leave it out.")
    found = ratings.read(data, columns=settings.columns, pictures=settings.pictures, key=key)
    silent = next((one for one in found.labels if not one.prompt), None)
    if silent is not None and reads(settings.features):
        raise ValueError(
            f"features is {','.join(settings.features)}, which reads prompts, but {silent.place} has none: "
            "leave words and cosine out, or name the prompts' column with --columns.prompt."
        )
    return found


def gathered(kind: str, settings: Training, found: Read, network: Eye, key: str) -> Material:
    """Labels beside what the network sees. Errors: ValueError naming pictures that are broken or the same twice."""
    cache = Cache(settings.cache, network.mark if settings.cache else "")
    make = _of_choices if kind == "preference" else _of_ratings
    return make(settings, found, network, cache, key)


def apart(material: Material, tested: Material) -> None:
    """Errors: ValueError where pictures of the test are in the data too."""
    both = material.table.order.keys() & tested.table.order.keys()
    if both:
        one = next(p for p, row in zip(tested.pictures, tested.table.which.tolist(), strict=True)
                   if tested.table.marks[row] in both)  # fmt: skip
        raise ValueError(
            f"test: {len(both):,} of its {len(tested.table.order):,} pictures are in the data too, such as {one}: what "
            "was learned from them says nothing about others. Give other pictures."
        )


def _of_ratings(settings: Training, found: Read, network: Eye, cache: Cache, key: str) -> Material:
    labels: list[Rating] = found.labels
    pictures = [one.picture for one in labels]
    marks = marks_of(pictures)
    table, prompts = look(pictures, marks, network, cache), [one.prompt for one in labels]
    parts = parts_of("regression", settings)
    rows = Rows(parts, table, table.which, read_prompts(prompts, network, cache) if reads(parts) else None)
    values = torch.tensor([one.value for one in labels], dtype=torch.float32)
    mark = _mark(settings, network, [(m.hex(), one.value, one.prompt) for m, one in zip(marks, labels, strict=True)])
    regression = Regression(rows, values, [(one,) for one in marks])
    return Material(regression, found.passed_over, "picture", mark, pictures, [rows], prompts, table)


def _of_choices(settings: Training, found: Read, network: Eye, cache: Cache, key: str) -> Material:
    labels: list[Choice] = found.labels
    count = len(labels)
    pictures = [one.first for one in labels] + [one.second for one in labels]
    marks = marks_of(pictures)
    _refuse_twins(labels, marks, key)
    table, prompts = look(pictures, marks, network, cache), [one.prompt for one in labels]
    parts = parts_of("preference", settings)
    texts = read_prompts(prompts, network, cache) if reads(parts) else None
    first, second = (Rows(parts, table, table.which[k * count : (k + 1) * count], texts) for k in (0, 1))
    shares = torch.tensor([one.share for one in labels], dtype=torch.float32)
    units, by = _units(prompts, marks)
    said = [
        (a.hex(), b.hex(), one.share, one.prompt)
        for a, b, one in zip(marks[:count], marks[count:], labels, strict=True)
    ]
    mark = _mark(settings, network, said)
    preference = Preference(first, second, shares, units)
    return Material(preference, found.passed_over, by, mark, pictures, [first, second], prompts * 2, table)


def _units(prompts: Sequence[str], marks: Sequence[bytes]) -> tuple[list[tuple[Hashable, ...]], str]:
    """By what choices are split: prompts, those that share pictures taken for one; pictures, where these are few."""
    count = len(prompts)
    parent: dict[Hashable, Hashable] = {}

    def root(one: Hashable) -> Hashable:
        while parent.setdefault(one, one) != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for k, prompt in enumerate(prompts):
        for mark in (marks[k], marks[count + k]):
            parent[root(mark)] = root(("prompt", prompt))
    roots = [root(("prompt", prompt)) for prompt in prompts]
    if len(set(roots)) >= FEW:
        return [(one,) for one in roots], "prompt"
    return [(marks[k], marks[count + k]) for k in range(count)], "picture"


def _refuse_twins(labels: Sequence[Choice], marks: Sequence[bytes], key: str) -> None:
    twins = [one for k, one in enumerate(labels) if marks[k] == marks[len(labels) + k]]
    if twins:
        wrong = [f"{one.place}: {one.first} and {one.second} are the same picture" for one in twins[:TOLD]]
        raise ValueError(f"{told(key, wrong, len(twins))}\nThere is nothing to choose between: take these rows out.")


def _mark(settings: Training, network: Eye, labels: Sequence[Any]) -> str:
    said = [getattr(settings, name) for name in DECIDING]
    return hashlib.sha256(repr((said, network.mark, network.device, labels)).encode()).hexdigest()
