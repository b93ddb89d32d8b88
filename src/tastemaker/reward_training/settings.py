"""What a user may say of a reward's training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from tastemaker.rewards import preprocess, weights
from tastemaker.rewards.facts import CLIP_LARGE
from tastemaker.rewards.head import PARTS

Part = Literal["picture", "tokens", "words", "cosine"]
LOOKS: tuple[Part, ...] = ("picture", "tokens")
CACHE = "~/.cache/tastemaker/features"


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns, where they are none of those that are known."""

    prompt: str = ""  # the text that pictures were drawn for
    image: str = ""  # of ratings: the picture's file
    rating: str = ""  # of ratings: the number
    first: str = ""  # of choices: the first picture's file
    second: str = ""  # of choices: the second's
    label: str = ""  # of choices: from 0 to 1, how much the first is preferred

    def check(self, used: Sequence[str], what: str) -> None:
        """Errors: ValueError for a column that was named and has no meaning there."""
        for field_ in fields(self):
            if getattr(self, field_.name) and field_.name not in used:
                raise ValueError(f"columns.{field_.name} has no effect on {what}: leave it out.")


@dataclass(frozen=True)
class Training:
    """How a reward is trained on people's labels."""

    data: str  # the labels: a file or a folder
    test: str = ""  # further labels, that nothing is chosen by: what is learned is measured on them too
    pictures: str = ""  # the folder that files are named from; empty is the folder of the labels
    columns: Columns = field(default_factory=Columns)  # the table's own names
    ties: Literal["half", "leave_out"] = "half"  # of choices: a tie says that neither is better, or nothing
    model: str = CLIP_LARGE.name  # the network that looks: a hub id, a folder, a file, or `shapes`
    revision: str = ""  # the commit or branch of a hub id
    preprocess: str = "torch"  # how pictures are resized: torch, uint8, bilinear
    dtype: str = "float32"  # what the network computes in: float32 or bfloat16
    device: str = "auto"  # where it computes: auto, cuda, mps, xpu or cpu
    features: tuple[Part, ...] = ()  # what the head reads; empty: picture and tokens, of choices with the cosine
    hidden: int = 0  # width of a hidden layer; 0 is a linear head
    validation: float = 0.2  # share of the labels that is kept aside, by which training stops
    learning_rate: float = 3e-3  # of AdamW
    weight_decay: float = 0.1  # of AdamW
    batch_size: int = 64  # labels an optimizer step
    epochs: int = 500  # at most
    patience: int = 20  # epochs without a lower validation loss, after which training stops
    curve: tuple[int, ...] = (100, 500, 2000, 10_000, 50_000)  # numbers of labels that are tried for the learning curve
    seed: int = 0  # of the split and of the order
    cache: str = CACHE  # where what the network saw is kept for the next time; empty keeps nothing

    def __post_init__(self) -> None:
        preprocess.check(self.preprocess)
        weights.check(self.dtype, "auto")
        for name, least in (("hidden", 0), ("batch_size", 1), ("epochs", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {least} or more.")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation:g}; it is a share, above 0 and below 1.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate:g}; it is above 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay:g}; it is 0 or more.")
        for name in ("features", "curve"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} is {','.join(map(str, getattr(self, name)))}; each stands there once.")
        if any(count < 2 for count in self.curve):
            raise ValueError(f"curve is {','.join(map(str, self.curve))}; numbers of labels, 2 and more.")


assert set(LOOKS) <= set(PARTS)
