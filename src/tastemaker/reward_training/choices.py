"""Choices: two pictures of a prompt, and which of them was preferred.

.jsonl, .csv, .tsv, .parquet, in one of three forms:
    prompt, winner, loser                        one was chosen
    prompt, left, right, vote                    as `tastemaker vote` writes them: left, right, or tie
    caption, jpg_0, jpg_1, label_0 (has_label)   as Pick-a-Pic does: label_0 is 1, 0, or 0.5 for a tie
a folder: one folder a pair, with prompt.txt, winner.png and loser.png
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tastemaker.prompts.entries import COLUMNS as PROMPTS
from tastemaker.prompts.pairs import check_content, pairs
from tastemaker.reward_training.settings import Columns
from tastemaker.reward_training.tables import (
    Embedded,
    Left,
    Read,
    Row,
    column,
    labels,
    number,
    picture,
    place_of,
    rows,
    text,
)

VOTES = {"left": 1.0, "right": 0.0, "tie": 0.5}
FIRSTS = ("jpg_0", "image_0", "picture_0", "left")
SECONDS = ("jpg_1", "image_1", "picture_1", "right")
SHARES = ("label_0", "preference", "share")


class Choice(NamedTuple):
    """Two pictures of a prompt, and how much the first is preferred: 1, 0, 0.5 for a tie, or the share of voters."""

    prompt: str
    first: Path | Embedded
    second: Path | Embedded
    share: float
    place: str


def read(data: str, *, columns: Columns, pictures: str = "", ties: str = "half", key: str = "data") -> Read:
    """The choices of a file or folder; `pictures` is the folder that files are named from, if it is another.

    ties: `half` learns that neither is better, `leave_out` passes them over.
    Errors: ValueError naming `key`, and wrong rows by file and line.
    """
    columns.check(("prompt", "first", "second", "label"), "choices")
    own = [name for name in ("first", "second", "label") if getattr(columns, name)]
    if own and len(own) < 3:
        raise ValueError(f"columns.{own[0]} stands alone: name first, second and label, all three.")
    place, folder = place_of(data, pictures, key)
    make = _of_row(columns, folder, ties)
    if place.is_dir() and not any(place.glob("*.parquet")):
        columns.check((), f"{place}, a folder of pairs,")
        if pictures:
            raise ValueError(f"pictures has no effect on {place}, whose folders hold the pictures: leave it out.")
        return labels(_of_folder(place, key), make, name=str(place), key=key)
    return labels(rows(place, key), make, name=str(place), key=key)


def _of_folder(place: Path, key: str) -> Iterator[Row]:
    try:
        found = pairs(str(place))
    except ValueError as error:
        raise ValueError(f"{key}{str(error).removeprefix('path')}") from error
    for prompt, both in found:
        yield Row(str(Path(both["winner"]).parent), place, {"prompt": prompt, **both})


class _of_row:
    """Makes a choice of a row."""

    def __init__(self, columns: Columns, folder: Path | None, ties: str) -> None:
        self.columns, self.folder, self.ties = columns, folder, ties

    def __call__(self, row: Row) -> Choice:
        cells, said = row.cells, self.columns
        if _no(cells.get("has_label", True)):
            raise Left  # Pick-a-Pic's pairs that nobody judged
        names, share = self._form(row)
        if share == 0.5 and self.ties == "leave_out":
            raise Left
        prompt = text(cells[column(row, said.prompt, PROMPTS, "prompts", "--columns.prompt")], "the prompt")
        first, second = (picture(cells[name], self.folder or row.folder, name) for name in names)
        check_content(cells, {cells[n]: f for n, f in zip(names, (first, second), strict=True) if isinstance(f, Path)})
        if first == second:
            raise ValueError(f"{names[0]} and {names[1]} are the same picture, {first}: there is nothing to choose.")
        return Choice(prompt, first, second, share, row.place)

    def _form(self, row: Row) -> tuple[tuple[str, str], float]:
        """The columns of the two pictures, and how much the first is preferred."""
        cells, said = row.cells, self.columns
        if "vote" in cells and not said.first:
            if cells["vote"] not in VOTES:
                raise ValueError(f"vote is {cells['vote']!r}; it is one of {', '.join(VOTES)}.")
            return _there(cells, "left", "right"), VOTES[cells["vote"]]
        if "winner" in cells and not said.first:
            return _there(cells, "winner", "loser"), 1.0
        first = column(row, said.first, FIRSTS, "first pictures, or winners", "--columns.first")
        second = column(row, said.second, SECONDS, "second pictures", "--columns.second")
        label = column(row, said.label, SHARES, "labels", "--columns.label")
        share = number(cells[label], label)
        if not 0 <= share <= 1:
            raise ValueError(f"{label} is {share:g}; it is from 0 to 1, how much the first picture is preferred.")
        return (first, second), share


def _there(cells: Mapping[str, Any], first: str, second: str) -> tuple[str, str]:
    for name in (first, second):
        if name not in cells:
            raise ValueError(f"there is no column `{name}`; found {', '.join(map(str, cells))}.")
    return first, second


def _no(found: Any) -> bool:
    """Whether a cell says no, as a number, a text or a truth."""
    return str(found).strip().lower() in ("false", "0", "0.0", "no")
