"""Training a head: AdamW on mini-batches until the validation loss has not fallen for a while; exact resume.

Every epoch's order is drawn by (seed, epoch), so nothing of a random generator has to be kept.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tastemaker.evaluation.statistics import Interval
from tastemaker.reward_training.bars import bar
from tastemaker.reward_training.settings import Training
from tastemaker.rewards.head import Head

STATE, CURSOR = "training.safetensors", "training.json"
SAVED_EVERY = 10.0  # seconds


class Labels(Protocol):
    """What people said, N items of it, beside what a CLIP sees."""

    @property
    def units(self) -> Sequence[Hashable]: ...  # [N]: items of one unit stand on one side of a split

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
    """About `share` of the items for validation, whole units at a time, drawn by the seed; no side is empty.

    Errors: ValueError where there are fewer than two units.
    """
    units = list(dict.fromkeys(labels.units))
    if len(units) < 2:
        raise ValueError(
            "data: all labels are of one picture or prompt: at least two are needed, one of them to measure by."
        )
    order = [units[place] for place in shuffled(len(units), seed, "split").tolist()]
    counts, wanted = Counter(labels.units), share * len(labels.units)
    aside: set[Hashable] = set()
    held = 0
    for unit in order[:-1]:
        if held >= wanted:
            break
        aside.add(unit)
        held += counts[unit]
    mask = torch.tensor([unit in aside for unit in labels.units])
    train = (~mask).nonzero().flatten()
    return Split(train[shuffled(len(train), seed, "labels")], mask.nonzero().flatten())


class Epoch(NamedTuple):
    """One pass over the labels."""

    epoch: int
    loss: float  # mean over the pass
    validation: float


class Keeper:
    """Writes down where a training is, so that it can go on; nothing where there is no folder."""

    def __init__(self, folder: Path | None, mark: str, *, every: float = SAVED_EVERY) -> None:
        self.folder, self.mark, self.every, self.last = folder, mark, every, time.monotonic()

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

    def save(self, cursor: dict[str, Any], tensors: dict[str, Tensor], *, now: bool = False) -> None:
        """The tensors first, under a name of their own, then the cursor that names them."""
        if self.folder is None or not (now or time.monotonic() - self.last >= self.every):
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
        """Removes what was written; the cursor too where nothing stays."""
        if self.folder is None:
            return
        if not but:
            (self.folder / CURSOR).unlink(missing_ok=True)
        for file in self.folder.glob(f"*-{STATE}"):
            if file.name != but:
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
        """Trains until it gets no better, and gives the best head. Goes on where the keeper has a state."""
        self._resume()
        for number in bar(range(len(self.epochs) + 1, self.settings.epochs + 1), "epochs"):
            if number - 1 - self.best_at >= self.settings.patience:
                break
            self.epochs.append(Epoch(number, self._pass(number), self._validated()))
            if not self.best_at or self.epochs[-1].validation < self.epochs[self.best_at - 1].validation:
                self.best, self.best_at = _copied(self.head), number
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
        return float(self.labels.loss(self.head, self.split.validation).mean())

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
