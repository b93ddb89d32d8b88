"""Ratings: pictures with a number each.

.csv, .tsv, .jsonl, .parquet   columns `image` and `rating`, or names like these; `prompt` if there are prompts
a folder                       metadata.csv or metadata.jsonl in it; or one folder for each rating: 1/, 2.5/, ...
AVA.txt                        the AVA data set's own: 15 numbers a line, with the pictures as ID.jpg in `pictures`

AVA (Murray, Marchesotti and Perronnin 2012, CVPR) writes a line `index ID n1 ... n10 tag tag challenge`, where n_k
people gave the picture k points; its rating here is their mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tastemaker.prompts.entries import COLUMNS as PROMPTS
from tastemaker.prompts.files import lines
from tastemaker.prompts.pairs import ENDINGS
from tastemaker.reward_training.settings import Columns
from tastemaker.reward_training.tables import Embedded, Read, Row, column, labels, number, picture, place_of, rows, text

IMAGES = ("image", "file_name", "file", "picture", "path", "filename", "jpg")
RATINGS = ("rating", "score", "mean", "label", "stars", "aesthetic_score")
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
AVA_NUMBERS, AVA_POINTS = 15, 10  # numbers in a line, of which so many say how often each rating was given


class Rating(NamedTuple):
    """A picture, what it was rated, and its prompt, which may be empty."""

    picture: Path | Embedded
    value: float
    prompt: str
    place: str


def read(data: str, *, columns: Columns, pictures: str = "", key: str = "data") -> Read:
    """The ratings of a file or a folder; `pictures` is the folder that files are named from, if it is another.

    Errors: ValueError naming `key`, and wrong rows by file and line.
    """
    columns.check(("prompt", "image", "rating"), "ratings")
    place, folder = place_of(data, pictures, key)
    table = next((place / name for name in TABLES if (place / name).is_file()), place)
    if table.is_dir() and not any(table.glob("*.parquet")):
        columns.check((), f"{place}, a folder of folders,")
        if pictures:
            raise ValueError(f"pictures has no effect on {place}, whose folders hold the pictures: leave it out.")
        return labels(_of_folders(place, key), _of_row(columns, None), name=str(place), key=key)
    if table.suffix.lower() == ".txt":
        columns.check((), f"{table}, AVA's list,")
        return labels(_of_ava(table, folder, key), _of_row(columns, None), name=str(table), key=key)
    return labels(rows(table, key), _of_row(columns, folder), name=str(table), key=key)


class _of_row:
    """Makes a rating of a row."""

    def __init__(self, columns: Columns, folder: Path | None) -> None:
        self.columns, self.folder = columns, folder

    def __call__(self, row: Row) -> Rating:
        image = column(row, self.columns.image, IMAGES, "pictures", "--columns.image")
        rating = column(row, self.columns.rating, RATINGS, "ratings", "--columns.rating")
        prompt = self.columns.prompt or next((name for name in PROMPTS if name in row.cells), "")
        if prompt:
            found = row.cells[column(row, prompt, (), "prompts", "--columns.prompt")]
            prompt = text(found, prompt) if found not in (None, "") else ""  # those who read it ask for it
        value = number(row.cells[rating], rating)
        return Rating(picture(row.cells[image], self.folder or row.folder, image), value, prompt, row.place)


def _of_folders(place: Path, key: str) -> Iterator[Row]:
    """A folder of folders that are called as their pictures are rated."""
    found = sorted(folder for folder in place.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not found:
        raise ValueError(f"{key}: the folder {place} holds neither {TABLES[0]} nor folders called as ratings: 1, 2.5.")
    for folder in found:
        for file in sorted(one for one in folder.iterdir() if one.suffix.lower() in ENDINGS):
            yield Row(str(file), folder, {"image": file.name, "rating": folder.name})


def _of_ava(path: Path, folder: Path | None, key: str) -> Iterator[Row]:
    if folder is None:
        raise ValueError(f"{key}: {path} is read as the AVA data set's list: say with --pictures where ID.jpg lie.")
    for line, said in lines(path, key):
        words = said.split()
        if len(words) != AVA_NUMBERS or not all(word.isdecimal() for word in words):
            raise ValueError(f"{key}: {path}:{line}: AVA's lines hold {AVA_NUMBERS} whole numbers; found {said!r:.60}.")
        given = [int(word) for word in words[2 : 2 + AVA_POINTS]]
        if not sum(given):
            raise ValueError(f"{key}: {path}:{line}: nobody rated picture {words[1]}.")
        mean = sum(points * people for points, people in enumerate(given, 1)) / sum(given)
        yield Row(f"{path}:{line}", folder, {"image": f"{words[1]}.jpg", "rating": mean})
