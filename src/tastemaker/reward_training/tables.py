"""Rows of .csv, .tsv, .jsonl and .parquet files, each with its place, and what is wrong with them, by line."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tastemaker.prompts.entries import json_row
from tastemaker.prompts.files import cells, lines, named

FORMS = ".csv, .tsv, .jsonl or .parquet"
TOLD = 5  # wrong rows that a message names
Label = TypeVar("Label")


class Row(NamedTuple):
    """A row of a file: where it stands, the folder that its files are beside, and its cells by column."""

    place: str
    folder: Path
    cells: Mapping[str, Any]


class Left(Exception):
    """A row that says nothing: it is passed over and counted."""


class Read(NamedTuple):
    """The labels of a file, and how many rows were passed over."""

    labels: list[Any]
    passed_over: int


def place_of(data: str, pictures: str, key: str) -> tuple[Path, Path | None]:
    """The labels' file or folder, and the folder that files are named from, if it is another.

    Errors: ValueError where they are not there.
    """
    place, folder = Path(data).expanduser().resolve(), Path(pictures).expanduser().resolve() if pictures else None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"pictures: there is no folder {folder}.")
    if not place.exists():
        raise ValueError(f"{key}: there is no {place}.")
    return place, folder


def rows(path: Path, key: str) -> Iterator[Row]:
    """The rows of a file, or of a folder's .parquet files, in order.

    Errors: ValueError naming `key`, the file, and the line.
    """
    if path.is_dir():
        for shard in sorted(path.glob("*.parquet")):
            yield from _parquet(shard, key)
        return
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{key}: {path} is no file that is read: give {FORMS}, or a folder.")
    yield from reader(path, key)


def labels(found: Iterable[Row], make: Callable[[Row], Label], *, name: str, key: str) -> Read:
    """What the rows say. Errors: ValueError naming the first wrong rows by their lines, and how many there are."""
    made: list[Label] = []
    wrong: list[str] = []
    passed, bad = 0, 0
    for row in found:
        try:
            made.append(make(row))
        except Left:
            passed += 1
        except ValueError as error:
            bad += 1
            wrong += [f"{row.place}: {error}"] if len(wrong) < TOLD else []
    if bad:
        raise ValueError(told(key, wrong, bad))
    if not made:
        raise ValueError(
            f"{key}: {name} holds no label: " + ("all rows are passed over." if passed else "it is empty.")
        )
    return Read(made, passed)


def told(key: str, wrong: Sequence[str], count: int) -> str:
    """A message of the first wrong rows, and how many more there are."""
    more = f"\n... and {count - len(wrong)} more rows" if count > len(wrong) else ""
    return f"{key}: " + "\n".join(wrong) + more


def _csv(path: Path, key: str) -> Iterator[Row]:
    _, header, found = cells(path, key)
    for number, row in found:
        try:
            yield Row(f"{path}:{number}", path.parent, named(header, row))
        except ValueError as error:
            raise ValueError(f"{key}: {path}:{number}: {error}") from error


def _jsonl(path: Path, key: str) -> Iterator[Row]:
    for number, line in lines(path, key):
        try:
            row = json_row(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{key}: {path}:{number}: {error}") from error
        yield Row(f"{path}:{number}", path.parent, row)


class Embedded(NamedTuple):
    """A picture that is a cell of a .parquet file; read when it is asked for."""

    file: Path
    written: int  # when, in nanoseconds: a file that is written anew is another
    group: int
    row: int
    column: str

    def read_bytes(self) -> bytes:
        found = _group(self.file, self.written, self.group, self.column)[self.row]
        held = found.get("bytes") if isinstance(found, Mapping) else found
        if held is None:
            raise ValueError(f"{self} holds no picture.")
        return bytes(held)

    def __str__(self) -> str:
        return f"{self.file} ({self.column}, row {self.row + 1} of group {self.group + 1})"


def _parquet(path: Path, key: str) -> Iterator[Row]:
    number, opened, written = 0, _opened(path, key), path.stat().st_mtime_ns
    schema = opened.schema_arrow
    pictures = [name for name in schema.names if _holds_pictures(schema, name)]
    columns = [name for name in schema.names if name not in pictures]
    for group in range(opened.num_row_groups):
        for place, row in enumerate(opened.read_row_group(group, columns=columns).to_pylist()):
            number += 1
            held = {name: Embedded(path, written, group, place, name) for name in pictures}
            yield Row(f"{path}: row {number}", path.parent, {**row, **held})


def _holds_pictures(schema: Any, name: str) -> bool:
    """Bytes, alone or as `datasets` writes them, {bytes, path}."""
    kind = str(schema.field(name).type)
    return kind in ("binary", "large_binary") or kind.startswith("struct<bytes: ")


def _opened(path: Path, key: str = "data") -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(
            f"{key}: {path} needs `pyarrow`, which is not installed here: pip install 'tastemaker[data]'"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {path} cannot be read: {error}") from error


@lru_cache(maxsize=4)  # neighbours in a file are asked for one after the other, two columns a row
def _group(path: Path, written: int, group: int, column: str) -> Sequence[Any]:
    found: Sequence[Any] = _opened(path).read_row_group(group, columns=[column])[column].to_pylist()
    return found


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}

# ---- cells


def column(row: Row, asked: str, known: Sequence[str], what: str, setting: str) -> str:
    """The column that holds `what`: the one that is asked for, or the first of the known that is there."""
    if asked:
        if asked not in row.cells:
            raise ValueError(f"there is no column `{asked}` ({setting}); found {', '.join(row.cells) or 'nothing'}.")
        return asked
    there = next((name for name in known if name in row.cells), None)
    if there is None:
        raise ValueError(
            f"there is no column with {what}: none of {', '.join(known)} is there; found "
            f"{', '.join(map(str, row.cells)) or 'nothing'}. Say its name with {setting}."
        )
    return there


def number(found: Any, what: str) -> float:
    """A cell that is a number. Errors: ValueError for what is none, and for nan and infinity."""
    try:
        value = math.nan if isinstance(found, bool) or found is None else float(found)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{what} is {found!r:.60}; it is a number.")
    return value


def picture(found: Any, folder: Path, what: str) -> Path | Embedded:
    """A cell that names a file beside the table, or is a picture itself. Errors: ValueError where it is neither."""
    if isinstance(found, Embedded):
        return found
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{what} is {found!r:.60}; it is the name of a file.")
    try:
        file = folder / Path(found).expanduser()
        there = file.is_file()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, somebody who has no home
        there = False
    if not there:
        raise ValueError(f"{what}: there is no file {str(folder / found):.300}.")
    return file


def text(found: Any, what: str) -> str:
    """A cell that is a text."""
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{what} is {found!r:.60}; it is a text.")
    return found.strip()
