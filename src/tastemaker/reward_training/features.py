"""What a CLIP sees of many pictures: each is looked at once, and what was seen is kept for the next time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tastemaker.policy.pictures import pixels, read_picture
from tastemaker.reward_training.bars import bar
from tastemaker.reward_training.tables import Embedded
from tastemaker.rewards import weights
from tastemaker.rewards.head import Looking, Seen, rows

BATCH = 32  # pictures, or prompts, that the network takes together
SHARD = 512  # of them in a file of what was seen: so much work at most is lost by a kill
CHUNK = 4096  # rows that are made at a time
SCHEMA = 1
_PASSING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # of a config: they change no number


@dataclass(frozen=True)
class Eye(Looking):
    """The network that looks at labels: as in rewards, but for what is said where it is missing."""

    name: ClassVar[str] = "train-reward"

    @cached_property
    def _place(self) -> Path:
        wanted = weights.source(self.model, self.published, self.revision)
        return weights.find(wanted, reward=self.name, instead="give a folder or file with --model PATH")

    @cached_property
    def mark(self) -> str:
        """Of all that decides what it sees: tensors, config, and how pictures are resized."""
        found = weights.digest(self.network)
        said = {key: value for key, value in self.network.config.to_dict().items() if key not in _PASSING}
        found.update(f"{SCHEMA} {self.preprocess} {json.dumps(said, sort_keys=True, default=str)}".encode())
        return str(found.hexdigest()[:32])


class Cache:
    """Files of what one network made of pictures, or of texts, by their contents; without a folder nothing is kept."""

    def __init__(self, folder: str, mark: str) -> None:
        self.folder = Path(folder).expanduser() / mark if folder else None

    def find(self, wanted: dict[bytes, int], take: Callable[[int, dict[str, Tensor], int], None]) -> set[bytes]:
        """Calls `take` (place, tensors, row) for what is there of the wanted; returns which. A damaged file is none."""
        found: set[bytes] = set()
        for file in sorted(self.folder.glob("*.safetensors")) if self.folder and self.folder.is_dir() else ():
            try:
                held = load_file(file)
                marks = [bytes(row.tolist()) for row in held.pop("marks")]
            except (SafetensorError, OSError, KeyError):
                warnings.warn(f"{file} is damaged and passed over: what it held is looked at again.", stacklevel=2)
                continue
            for row, mark in enumerate(marks):
                if mark in wanted and mark not in found:
                    found.add(mark)
                    take(wanted[mark], held, row)
        return found

    def keep(self, marks: Sequence[bytes], held: dict[str, Tensor]) -> None:
        """Writes a file, whole or not at all; several processes may write the same."""
        if self.folder is None or not marks:
            return
        name = hashlib.sha256(b"".join(marks)).hexdigest()[:24]
        part = self.folder / f"{name}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"marks": torch.tensor([list(mark) for mark in marks], dtype=torch.uint8), **held}, part)
            part.replace(self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:  # a full disk costs the next training time, and this one nothing
            warnings.warn(f"what was seen is not kept in {self.folder}: {error}", stacklevel=2)
            with suppress(OSError):
                part.unlink(missing_ok=True)


class Table:
    """Tensors with a row for each of some distinct things, taken from a cache or made in batches."""

    def __init__(self, marks: Sequence[bytes], cache: Cache) -> None:
        self.order: dict[bytes, int] = {}
        for mark in marks:
            self.order.setdefault(mark, len(self.order))
        self.which = torch.tensor([self.order[mark] for mark in marks], dtype=torch.long)
        self.held: dict[str, Tensor] = {}
        self.cache = cache

    def fill(self, make: Callable[[list[int]], dict[str, Tensor]], what: str) -> None:
        """`make` gives what is to be held of so many things, by the places where each is first asked for."""
        first: dict[bytes, int] = {}
        for place, row in enumerate(self.which.tolist()):
            first.setdefault(self.marks[row], place)
        known = self.cache.find(
            self.order, lambda place, held, row: self._put([place], {k: v[row : row + 1] for k, v in held.items()})
        )
        new = [mark for mark in self.order if mark not in known]
        begun = 0
        groups = [new[k : k + BATCH] for k in range(0, len(new), BATCH)]
        for group in bar(groups, what, unit=BATCH):
            self._put([self.order[mark] for mark in group], make([first[mark] for mark in group]))
            begun += len(group)
            if begun % SHARD == 0 or begun == len(new):
                self._keep(new[(begun - 1) // SHARD * SHARD : begun])

    @cached_property
    def marks(self) -> list[bytes]:
        """The things in order."""
        return list(self.order)

    def _put(self, places: list[int], found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            if name not in self.held:
                self.held[name] = torch.empty(len(self.order), *value.shape[1:])
            self.held[name][places] = value

    def _keep(self, marks: list[bytes]) -> None:
        places = [self.order[mark] for mark in marks]
        self.cache.keep(marks, {name: value[places] for name, value in self.held.items()})


def marks_of(pictures: Sequence[Path | Embedded]) -> list[bytes]:
    """SHA-256 of the contents of each. Errors: ValueError for a file that cannot be read."""
    found = []
    for picture in bar(pictures, "reading"):
        try:
            found.append(hashlib.sha256(picture.read_bytes()).digest())
        except OSError as error:
            raise ValueError(f"{picture} cannot be read: {error.strerror or error}.") from error
    return found


def look(pictures: Sequence[Path | Embedded], marks: Sequence[bytes], network: Looking, cache: Cache) -> Table:
    """What the network sees of the pictures, whose contents have these marks: `picture` [M,D] and `tokens` [M,H].

    Errors: ValueError naming a broken one.
    """

    def seen(places: list[int]) -> dict[str, Tensor]:
        files = [pictures[place] for place in places]
        shown = [network.prepared(pixels(read_picture(io.BytesIO(f.read_bytes()), str(f)))[None]) for f in files]
        return {name: value.float().cpu() for name, value in network.look_at(torch.cat(shown))._asdict().items()}

    table = Table(marks, cache)
    table.fill(seen, "looking")
    return table


def read(prompts: Sequence[str], network: Looking, cache: Cache) -> Table:
    """Vectors of the prompts: `words` [P,D]."""
    table = Table([hashlib.sha256(f"text {prompt}".encode()).digest() for prompt in prompts], cache)
    table.fill(lambda places: {"words": network.read([prompts[k] for k in places]).float().cpu()}, "reading prompts")
    return table


@dataclass(frozen=True)
class Rows:
    """Rows [N,F] for a head, made when they are asked for: a million of them would not fit.

    of: which of the table's pictures each is [N]; texts: the prompts' vectors, where a part reads them.
    """

    parts: Sequence[str]
    seen: Table
    of: Tensor
    texts: Table | None = None

    def __len__(self) -> int:
        return len(self.of)

    def __call__(self, items: Tensor) -> Tensor:
        """Of these items [n,F]."""
        held, places = self.seen.held, self.of[items]
        words = None if self.texts is None else self.texts.held["words"][self.texts.which[items]]
        return rows(self.parts, Seen(held["picture"][places], held["tokens"][places]), words)

    @property
    def width(self) -> int:
        return self(torch.tensor([0])).shape[1]

    def chunks(self, items: Tensor) -> Iterator[Tensor]:
        """The rows of these items, some at a time."""
        return (self(part) for part in torch.split(items, CHUNK))  # type: ignore[no-untyped-call]
