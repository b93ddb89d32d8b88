"""What a CLIP sees of many pictures: each is looked at once, and what was seen is kept for the next time."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tastemaker.policy.pictures import pixels, read_picture
from tastemaker.reward_training.bars import bar
from tastemaker.reward_training.tables import Embedded
from tastemaker.rewards import weights
from tastemaker.rewards.head import Looking, Seen

BATCH = 32  # pictures that the network looks at together
TEXTS = 256  # prompts that it reads together
SHARD = 512  # pictures of a file of what was seen: so much work at most is lost by a kill
SCHEMA = 1


@dataclass(frozen=True)
class Eye(Looking):
    """The network that looks at labels: as in rewards, but for what is said where it is missing."""

    name: ClassVar[str] = "train-reward"

    @cached_property
    def _place(self) -> Path:
        wanted = weights.source(self.model, self.published, self.revision)
        return weights.find(wanted, reward=self.name, instead="give a folder or file with --model PATH")


class Gallery(NamedTuple):
    """What was seen of M distinct pictures, and which of them each of the N pictures is."""

    seen: Seen  # [M,D], [M,H]
    which: Tensor  # [N]

    def take(self, rows: Tensor) -> Seen:
        places = self.which[rows]
        return Seen(self.seen.picture[places], self.seen.tokens[places])


class Cache:
    """Files of what one network saw, by the pictures' contents; without a folder nothing is kept."""

    def __init__(self, folder: str, network: Looking) -> None:
        self.folder: Path | None = None
        if folder:
            mark = weights.digest(network.network)
            mark.update(f"{SCHEMA} {network.preprocess}".encode())
            self.folder = Path(folder).expanduser() / mark.hexdigest()[:32]

    def find(self, wanted: set[bytes]) -> dict[bytes, tuple[Tensor, Tensor]]:
        """What is there of the wanted pictures. A damaged file counts as none."""
        found: dict[bytes, tuple[Tensor, Tensor]] = {}
        for file in sorted(self.folder.glob("*.safetensors")) if self.folder and self.folder.is_dir() else ():
            try:
                held = load_file(file)
                marks = [bytes(row.tolist()) for row in held["marks"]]
            except (SafetensorError, OSError, KeyError):
                warnings.warn(f"{file} is damaged and passed over: what it held is looked at again.", stacklevel=2)
                continue
            for mark, *both in zip(marks, held["picture"].unbind(), held["tokens"].unbind(), strict=True):
                if mark in wanted:
                    found[mark] = (both[0].clone(), both[1].clone())
        return found

    def keep(self, marks: Sequence[bytes], seen: Seen) -> None:
        """Writes a file, whole or not at all; several processes may write the same pictures."""
        if self.folder is None or not marks:
            return
        name = hashlib.sha256(b"".join(marks)).hexdigest()[:24]
        part = self.folder / f"{name}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = {"marks": torch.tensor([list(mark) for mark in marks], dtype=torch.uint8)}
            save_file(held | {"picture": seen.picture.contiguous(), "tokens": seen.tokens.contiguous()}, part)
            part.replace(self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:  # a full disk costs the next training time, and this one nothing
            warnings.warn(f"what was seen is not kept in {self.folder}: {error}", stacklevel=2)
            with suppress(OSError):
                part.unlink(missing_ok=True)


def marks_of(pictures: Sequence[Path | Embedded]) -> list[bytes]:
    """SHA-256 of the contents of each. Errors: ValueError for a file that cannot be read."""
    found = []
    for picture in bar(pictures, "reading"):
        try:
            found.append(hashlib.sha256(picture.read_bytes()).digest())
        except OSError as error:
            raise ValueError(f"{picture} cannot be read: {error.strerror or error}.") from error
    return found


def look(pictures: Sequence[Path | Embedded], marks: Sequence[bytes], network: Looking, cache: Cache) -> Gallery:
    """What the network sees of the pictures, whose contents have these marks.

    Errors: ValueError naming a broken one.
    """
    first: dict[bytes, int] = {}
    for place, mark in enumerate(marks):
        first.setdefault(mark, place)
    known = cache.find(set(first))
    new = [mark for mark in first if mark not in known]
    held: list[bytes] = []
    for group, seen in _looked([(mark, pictures[first[mark]]) for mark in new], network):
        known.update(zip(group, zip(seen.picture, seen.tokens, strict=True), strict=True))
        held += group
        if len(held) >= SHARD:
            cache.keep(held, _stacked(known, held))
            held = []
    cache.keep(held, _stacked(known, held) if held else Seen(torch.empty(0), torch.empty(0)))
    order = {mark: place for place, mark in enumerate(first)}
    return Gallery(_stacked(known, list(first)), torch.tensor([order[mark] for mark in marks]))


def _stacked(known: dict[bytes, tuple[Tensor, Tensor]], marks: Sequence[bytes]) -> Seen:
    both = [known[mark] for mark in marks]
    return Seen(torch.stack([one[0] for one in both]), torch.stack([one[1] for one in both]))


def texts(prompts: Sequence[str], network: Looking) -> tuple[Tensor, Tensor]:
    """Vectors [P,D] of the distinct prompts, and which of them each is [N]."""
    names = list(dict.fromkeys(prompts))
    groups = [names[k : k + TEXTS] for k in range(0, len(names), TEXTS)]
    found = [network.read(group).float().cpu() for group in bar(groups, "reading prompts", unit=TEXTS)]
    order = {name: place for place, name in enumerate(names)}
    return torch.cat(found), torch.tensor([order[one] for one in prompts])


def _looked(pictures: list[tuple[bytes, Path | Embedded]], network: Looking) -> Iterator[tuple[list[bytes], Seen]]:
    groups = [pictures[k : k + BATCH] for k in range(0, len(pictures), BATCH)]
    for group in bar(groups, "looking", unit=BATCH):
        shown = [pixels(read_picture(io.BytesIO(one.read_bytes()), str(one))) for _, one in group]
        seen = network.look_at(torch.cat([network.prepared(one[None]) for one in shown]))
        yield [mark for mark, _ in group], Seen(seen.picture.float().cpu(), seen.tokens.float().cpu())
