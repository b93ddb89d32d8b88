"""`ocr`: whether the text that a prompt quotes stands in the picture, as an OCR engine reads it.

    whole    1 - d(read, wanted) / max(|read|, |wanted|)          what else is written costs, too
    part     1 - min over stretches s of read of d(s, wanted) / |wanted|

d is the edit distance: the fewest letters to insert, delete or replace. Case and spaces do not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from tastemaker.rewards.reward import ContractError, Scores

MATCHES = ("whole", "part")
_QUOTED = re.compile(r"[\"“”„]([^\"“”„]+)[\"“”]|‘([^‘’]+)’|«([^»]+)»|(?<!\w)'([^']+)'(?!\w)")


@dataclass(frozen=True)
class Ocr:
    """Whether the text that a prompt quotes (a sign that says "open") stands in the picture, from 0 to 1.

    value [B] = 1 - d / n, with d the edit distance from what the engine reads to the quoted text and n the longer one's
    letters; case and spaces do not count. A prompt without quotes scores NaN. Parts: `exact`, 1 where d is 0, and
    `letters`, as many as were read. Formulas: tastemaker/rewards/text.py.
    """

    match: str = "whole"
    """Whether all that is read must be the quoted text (whole), or a stretch of it (part), whatever else is written."""

    name: ClassVar[str] = "ocr"

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ValueError(f"match is {self.match!r}; it is one of {', '.join(MATCHES)}.")

    @cached_property
    def engine(self) -> Any:
        """RapidOCR, with the networks that come with it. Errors: ContractError where it is not installed."""
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ContractError(
                "reward `ocr` reads pictures with rapidocr, which is not installed here: pip install 'tastemaker[ocr]'"
            ) from error
        return RapidOCR(params={"Global.log_level": "error"})

    @property
    def network(self) -> None:
        """None of torch's. Runs ask for it before they load a model, and so hear in time of what is not installed."""
        _ = self.engine

    def read(self, picture: Tensor) -> str:
        """The text in one picture [3,H,W] in [0,1], as it is read: line by line."""
        from PIL import Image

        levels = (255 * picture.detach().float()).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return " ".join(self.engine(Image.fromarray(levels)).txts or ())

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Scores [B] of pictures [B,3,H,W] in [0,1], on the CPU, without a gradient."""
        _ = self.engine  # said even where no prompt has quotes
        rows = torch.full((3, len(images)), torch.nan)
        notes: list[str | None] = []
        for row, (picture, prompt) in enumerate(zip(images, prompts, strict=True)):
            wanted = letters(quoted(prompt))
            if not wanted or not picture.isfinite().all():
                why = (
                    "the picture holds numbers that are not finite"
                    if wanted
                    else f"the prompt quotes no text: {prompt}"
                )
                notes.append(f"no score: {why}")
                continue
            text = self.read(picture)
            found = letters(text)
            away = distance(found, wanted, part=self.match == "part")
            longest = len(wanted) if self.match == "part" else max(len(found), len(wanted))
            rows[:, row] = torch.tensor([1 - away / longest, float(away == 0), len(found)])
            notes.append(f"read: {text}" if text else "read: nothing")
        return Scores(rows[0], {"exact": rows[1], "letters": rows[2]}, tuple(notes))


def quoted(prompt: str) -> str:
    """What stands in quotes, one after the other; an apostrophe within a word is none."""
    return " ".join(next(filter(None, groups)) for groups in _QUOTED.findall(prompt))


def letters(text: str) -> str:
    """What of a text counts."""
    return "".join(text.casefold().split())


def distance(read: str, wanted: str, *, part: bool = False) -> int:
    """Edit distance; with `part` that of the stretch of `read` that is nearest."""
    row = list(range(len(wanted) + 1))  # from what is read so far to each beginning of what is wanted
    best = row[-1]
    for n, letter in enumerate(read, 1):
        before, row = row, [0 if part else n]
        for k, other in enumerate(wanted):
            row.append(min(before[k] + (letter != other), before[k + 1] + 1, row[k] + 1))
        best = min(best, row[-1])
    return best if part else row[-1]
