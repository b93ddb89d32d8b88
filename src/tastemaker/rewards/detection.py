"""`counting`: whether a picture shows what its prompt's metadata ask for, in number, colour and place, by a detector.

graded    mean over all questions of how far each is so (`tastemaker.rewards.composition`)
strict    1 where all are so, 0 elsewhere: GenEval's own score
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from tastemaker.rewards import weights
from tastemaker.rewards.composition import KINDS, Wish, answers, queries, read
from tastemaker.rewards.detectors import Detector, load
from tastemaker.rewards.facts import GROUNDING_DINO, OWL
from tastemaker.rewards.reward import Scores

SCORES = ("graded", "strict")
_AT_ONCE = 8  # pictures that a detector sees in one call: they are large to it


@dataclass(frozen=True)
class Counting:
    """Whether pictures show the objects that the prompts' metadata ask for, from 0 to 1, as a detector sees them.

    Metadata as GenEval has them ({"include": [{"class", "count", "color", "position"}], "exclude": [...]}) or the
    questions of the prompts `counting`; a prompt without them scores NaN, with a note. Parts: `count`, `colour`,
    `position` (NaN where not asked), `strict`. Formulas: tastemaker/rewards/composition.py.
    """

    model: str = OWL.name
    """The detector, an OWLv2 or a Grounding DINO: a hub id or a folder in transformers' layout."""
    revision: str = ""
    """The commit or branch of a hub id; the published models have one of their own, which is pinned."""
    score: str = "graded"
    """The mean over all questions (graded), or 1 only where all of them are answered right (strict)."""
    threshold: float = 0.3
    """How sure the detector must be of an object, from 0 to 1."""
    overlap: float = 0.5
    """Of two boxes of a class that share more than this of their union, the surer is kept."""
    dtype: str = "float32"
    """What the network computes in: float32 or bfloat16."""
    device: str = "auto"
    """Where it computes: auto is where the pictures are."""

    name: ClassVar[str] = "counting"

    def __post_init__(self) -> None:
        weights.check(self.dtype, self.device)
        if self.score not in SCORES:
            raise ValueError(f"score is {self.score!r}; it is one of {', '.join(SCORES)}.")
        for key, value in (("threshold", self.threshold), ("overlap", self.overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"{key} is {value}; it is a number from 0 to 1.")

    @cached_property
    def detector(self) -> Detector:
        """Loaded when it is first asked for. Errors: ValueError where it is not to be had."""
        known = GROUNDING_DINO if self.model == GROUNDING_DINO.name else OWL
        place = weights.find(weights.source(self.model, known, self.revision), reward=self.name)
        made = load(place, dtype=weights.DTYPES[self.dtype], reward=self.name)
        if self.device != "auto":
            made.network.to(self.device)
        return made

    @property
    def network(self) -> Any:
        """The detector's network."""
        return self.detector.network

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Scores [B] of pictures [B,3,H,W] in [0,1], without a gradient, on the CPU."""
        asked, notes = _asked(images, prompts)
        parts = {part: torch.full((len(images),), torch.nan) for part in ("graded", "strict", *KINDS)}
        rows = list(asked)
        for first in range(0, len(rows), _AT_ONCE):
            some = rows[first : first + _AT_ONCE]
            seen = weights.together(self.network, images[some], self.device)
            for row, found in zip(some, self.detector(seen, [queries(asked[r]) for r in some]), strict=True):
                said = answers(asked[row], found, threshold=self.threshold, overlap=self.overlap)
                every = [answer for kind in said.values() for answer in kind]
                parts["graded"][row] = sum(every) / len(every)
                parts["strict"][row] = float(min(every) == 1)
                for kind, numbers in said.items():
                    parts[kind][row] = sum(numbers) / len(numbers) if numbers else torch.nan
        value = parts.pop(self.score)
        return Scores(value, parts, notes)


def _asked(images: Tensor, prompts: Sequence[str]) -> tuple[dict[int, tuple[Wish, ...]], tuple[str | None, ...]]:
    """What the prompts ask for, by row; why there is nothing to be said of the other rows."""
    asked: dict[int, tuple[Wish, ...]] = {}
    notes: list[str | None] = [None] * len(images)
    for row, metadata in enumerate(getattr(prompts, "metadata", (None,) * len(images))):
        try:
            wishes = read(metadata)
            if not images[row].isfinite().all():
                raise ValueError("the picture holds numbers that are not finite")
            asked[row] = wishes
        except (TypeError, ValueError) as error:
            notes[row] = f"no score: {error}"
    return asked, tuple(notes)
