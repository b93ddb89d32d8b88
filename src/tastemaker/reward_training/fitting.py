"""Training a head: AdamW on mini-batches until the validation loss has not fallen for a while; exact resume.

Every epoch's order is drawn by (seed, epoch), so nothing of a random generator has to be kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tastemaker.evaluation.statistics import Interval
from tastemaker.reward_training.bars import bar
from tastemaker.reward_training.features import CHUNK
from tastemaker.reward_training.settings import Training
from tastemaker.rewards.head import Head

STATE, CURSOR = "training.safetensors", "training.json"
STATES = re.compile(r"\d+-training\.safetensors|\.\d+-training\.safetensors\.part|\.?training\.json(\.part)?")
SAVED_EVERY = 10.0  # seconds
MOST = 1.25  # times the share that is wanted for validation: a larger unit is passed over


class Labels(Protocol):
    """What people said, N items of it, beside what a CLIP sees."""

    @property
    def units(self) -> Sequence[tuple[Hashable, ...]]: ...  # [N]: what each is made of, for the split

    def begin(self, items: Tensor, hidden: int) -> Head: ...  # a head that knows nothing, standardised on these items
    def loss(self, head: Head, items: Tensor) -> Tensor: ...  # [n] of items [n]
    def measure(self, head: Head, items: Tensor) -> dict[str, Interval]: ...  # the first is what it is judged by


class Split(NamedTuple):
    """Items to learn from, and items to stop by."""

    train: Tensor
    validation: Tensor

    @property
    def size(self) -> int:
        """How many items there are."""
        return len(self.train) + len(self.validation)


def split(labels: Labels, share: float, seed: int) -> Split:
    """About `share` of the items for validation, both in an order that the seed draws.

    Units are drawn, and all items aside that a drawn one stands in, so that none of them is learned from. One that
    would take far too many items is passed over. Errors: ValueError where no split leaves something on both sides.
    """
    members: dict[Hashable, list[int]] = {}
    for item, units in enumerate(labels.units):
        for unit in units:
            members.setdefault(unit, []).append(item)
    drawn, wanted = [*members], share * len(labels.units)
    aside: set[int] = set()
    for place in shuffled(len(drawn), seed, "split").tolist():
        both = aside | set(members[drawn[place]])
        if len(aside) < wanted and len(both) <= max(1.0, MOST * wanted):
            aside = both
    smallest = min(members.values(), key=len)
    aside = aside or set(smallest)
    if len(aside) == len(labels.units):
        raise ValueError(
            "data: all labels are of one picture or prompt: at least two are needed, one of them to measure by."
        )
    mask = torch.tensor([item in aside for item in range(len(labels.units))])
    sides = ((~mask).nonzero().flatten(), mask.nonzero().flatten())
    train, validation = (side[shuffled(len(side), seed, "labels")] for side in sides)
    return Split(train, validation)


class Epoch(NamedTuple):
    """One pass over the labels."""

    epoch: int
    loss: float  # mean over the pass
    validation: float


class Keeper:
    """Writes down where a training is, so that it can go on; nothing where there is no folder."""

    def __init__(self, folder: Path | None, mark: str, *, every: float | None = None) -> None:
        self.folder, self.mark, self.last = folder, mark, time.monotonic()
        self.every = SAVED_EVERY if every is None else every

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The last state. Errors: ValueError where it is of other labels or settings."""
        if self.folder is None or not (self.folder / CURSOR).is_file():
            return None
        cursor = json.loads((self.folder / CURSOR).read_text(encoding="utf-8"))
        if cursor["mark"] != self.mark:
            raise ValueError(
                f"resume_from_checkpoint: the training in {self.folder} was of other labels or settings. Train anew "
                "with --overwrite, or into another folder."
            )
        file = self.folder / cursor["state"]
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != cursor["sha256"]:
            raise ValueError(f"resume_from_checkpoint: {file} is damaged. Train anew with --overwrite.")
        return cursor, load_file(file)

    def save(self, cursor: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """The tensors first, under a name of their own, then the cursor that names them."""
        if self.folder is None or time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        name = f"{cursor['epoch']}-{STATE}"
        part, text = self.folder / f".{name}.part", self.folder / f".{CURSOR}.part"
        save_file({key: value.contiguous() for key, value in tensors.items()}, part)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        part.replace(self.folder / name)
        text.write_text(json.dumps({**cursor, "mark": self.mark, "state": name, "sha256": digest}), encoding="utf-8")
        text.replace(self.folder / CURSOR)
        self.forget(but=name)

    def forget(self, *, but: str = "") -> None:
        """Removes what was written, halves too; the cursor where nothing stays."""
        if self.folder is None:
            return
        if not but:
            (self.folder / CURSOR).unlink(missing_ok=True)
        for file in self.folder.iterdir():
            if STATES.fullmatch(file.name) and file.name not in (but, CURSOR):
                file.unlink()


class Fit:
    """A head under training."""

    def __init__(self, labels: Labels, split: Split, settings: Training, keeper: Keeper) -> None:
        self.labels, self.split, self.settings, self.keeper = labels, split, settings, keeper
        torch.manual_seed(settings.seed)  # a hidden layer begins with numbers that are drawn
        self.head = head = labels.begin(split.train, settings.hidden)
        self.optimizer = torch.optim.AdamW(
            head.layers.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.epochs: list[Epoch] = []
        self.best, self.best_at = _copied(head), 0

    def run(self, told: Callable[[Epoch], None] = lambda epoch: None) -> Head:
        """Trains until it gets no better, and gives the best head: the one that knows nothing, if no other is better.

        Goes on where the keeper has a state. Errors: ValueError where the loss is not finite.
        """
        lowest = self._validated()
        self._resume()
        lowest = self.epochs[self.best_at - 1].validation if self.best_at else lowest
        for number in bar(range(len(self.epochs) + 1, self.settings.epochs + 1), "epochs"):
            if number - 1 - self.best_at >= self.settings.patience:
                break
            self.epochs.append(Epoch(number, self._pass(number), self._validated()))
            if not math.isfinite(sum(self.epochs[-1])):
                raise ValueError(f"learning_rate {self.settings.learning_rate:g} is too high: the loss is not finite.")
            if self.epochs[-1].validation < lowest:
                lowest, self.best, self.best_at = self.epochs[-1].validation, _copied(self.head), number
            told(self.epochs[-1])
            self.keeper.save(*self._state())
        self.head.load_state_dict(self.best)
        return self.head

    def _pass(self, number: int) -> float:
        order = self.split.train[shuffled(len(self.split.train), self.settings.seed, number)]
        total = 0.0
        for items in torch.split(order, self.settings.batch_size):  # type: ignore[no-untyped-call]
            loss = self.labels.loss(self.head, items).mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += float(loss.detach()) * len(items)
        return total / len(order)

    @torch.no_grad()
    def _validated(self) -> float:
        parts = torch.split(self.split.validation, CHUNK)  # type: ignore[no-untyped-call]
        total = sum(float(self.labels.loss(self.head, part).double().sum()) for part in parts)
        return total / len(self.split.validation)

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"head.{name}": value for name, value in _copied(self.head).items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for place, held in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{place}.{name}": value for name, value in held.items()}
        epochs = [list(epoch) for epoch in self.epochs]
        return {"epoch": len(self.epochs), "best_at": self.best_at, "epochs": epochs}, tensors

    def _resume(self) -> None:
        found = self.keeper.load()
        if found is None:
            return
        cursor, tensors = found
        self.epochs, self.best_at = [Epoch(*epoch) for epoch in cursor["epochs"]], cursor["best_at"]
        self.head.load_state_dict(_under(tensors, "head"))
        self.best = _under(tensors, "best")
        adam = self.optimizer.state_dict()
        for name, value in _under(tensors, "adam").items():
            place, _, part = name.partition(".")
            adam["state"].setdefault(int(place), {})[part] = value
        self.optimizer.load_state_dict(adam)


def shuffled(count: int, *key: object) -> Tensor:
    """The numbers below `count` in an order that the key draws."""
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1)
    return torch.randperm(count, generator=generator)


def _copied(head: Head) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}


def _under(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{start}."): value for name, value in tensors.items() if name.startswith(f"{start}.")}
