"""Entries: a prompt with its metadata as sources hold it, what makes it none, and the column that prompts stand in."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

Entry = tuple[str, Any]  # a text and its metadata
COLUMNS = ("prompt", "caption", "text")  # names under which prompts are looked for, in this order


class Entries(Protocol):
    """What a list of prompts needs of its entries; a tuple does."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Entry: ...


@dataclass(frozen=True)
class Rows:
    """Entries made from the rows of a file when they are drawn: a large file costs its text, and little more."""

    rows: Sequence[Any]
    make: Callable[[Any], Entry]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Entry:
        return self.make(self.rows[row])


def collect(found: Iterable[tuple[object, Any]], make: Callable[[Any], Entry], *, name: str, key: str) -> Rows:
    """The rows (place, row) of a file, each tried once; those that repeat an earlier text are counted and kept.

    Errors: ValueError with `key` as the user typed it, the file, and the place in it.
    """
    rows: list[Any] = []
    texts: list[str] = []
    for place, row in found:
        try:
            text = make(row)[0]
            wrong = fault(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{key}: {name}:{place}: {error}") from error
        if wrong:
            raise ValueError(f"{key}: {name}:{place}: the prompt {wrong}: give a text, or take it out.")
        texts.append(text)
        rows.append(row)
    if not rows:
        raise ValueError(f"{key}: {name} holds no prompt: give at least one.")
    warn_of_repeats(texts, name=name, key=key)
    return Rows(rows, make)


def fault(found: object) -> str | None:
    """What keeps a value from being a prompt, in words; None for a prompt."""
    if not isinstance(found, str):
        return "is null" if found is None else f"is {found!r:.80} ({type(found).__name__}), not a text"
    if not found.strip():
        return "is empty"
    if "\0" in found:
        return "holds a zero byte"
    if not found.isascii():
        try:
            found.encode()
        except UnicodeEncodeError as error:
            return f"holds half a character ({found[error.start]!r}), which UTF-8 cannot write"
    return None


def warn_of_repeats(texts: Sequence[str], *, name: str, key: str) -> None:
    """Repeated prompts are kept, for a list may weigh its prompts that way; but it may be an accident."""
    repeats = len(texts) - len(set(texts))
    if repeats:
        first = next(text for text, count in Counter(texts).items() if count > 1)
        warnings.warn(
            f"{key}: {name} repeats prompts: {repeats} of its {len(texts)} rows say what an earlier one says, for "
            f"example {first!r:.80}. They are kept, so these prompts are drawn more often.",
            stacklevel=3,
        )


@contextmanager
def at(place: str) -> Iterator[None]:
    """Errors inside say where it was."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {error}") from error


def column_of(names: Iterable[object], asked: str | None) -> str:
    """The column that holds the prompts: the one that is asked for, or the first of `COLUMNS` that is there."""
    there = [str(one) for one in names]
    found = [column for column in (COLUMNS if asked is None else (asked,)) if column in there]
    if found:
        return found[0]
    columns = ", ".join(f"`{one}`" for one in there) or "nothing"
    if asked is not None:
        raise ValueError(f"there is no `{asked}`; found {columns}.")
    needed = f"none of {', '.join(COLUMNS)} is there; found {columns}."
    raise ValueError(f"{needed} Give the prompts one of these names, or say theirs: FILE#COLUMN.")


def json_row(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ValueError(f'found {text:.80}, but an object such as {{"prompt": "a cat"}} is needed.')
    return row


def json_column(row: dict[str, Any], asked: str | None) -> str:
    """As `column_of`; where no key has a known name, the only one that holds a text."""
    texts = [one for one, value in row.items() if isinstance(value, str)]
    only = texts[0] if len(texts) == 1 and not set(COLUMNS) & set(row) else None
    return column_of(row, asked or only)


def split_row(row: dict[str, Any], column: str) -> Entry:
    """The text under `column`, and the rest as metadata."""
    if column not in row:
        raise ValueError(f"there is no `{column}`; found {', '.join(f'`{one}`' for one in row) or 'nothing'}.")
    text = row.pop(column)
    return text, row
