"""Files of prompts: .txt, .jsonl, .csv, .tsv, .tar, in UTF-8; read once, rows made into entries as they are drawn."""

import csv
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from tastemaker.prompts.archives import read_tar
from tastemaker.prompts.entries import Entry, Rows, at, collect, column_of, json_column, json_row, split_row
from tastemaker.prompts.functions import missing_file

FORMS = "a .txt file with one prompt a line, or a .jsonl, .csv, .tsv or .tar file"
Row = list[str]


def read(spec: str, key: str) -> Rows:
    """The prompts of `path` or `path#column`.

    .txt: one a line, blank lines left out; metadata None. .jsonl: an object a line. .csv, .tsv: a header and rows.
    There the column is `prompt`, `caption` or `text` unless it is named, and the others are the metadata, a dict.
    .tar: see `archives`. Errors: ValueError with `key` as the user typed it, the file, the line, and what to do.
    """
    path, column = _split(spec)
    if not path.is_file():
        raise ValueError(f"{key}: {missing_file(path)}{_hub_hint(spec)}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{key}: {path} is no kind of prompt file that is read: give {FORMS}.")
    try:
        return reader(path, column, key)
    except OSError as error:
        raise ValueError(f"{key}: {path} cannot be read: {error.strerror or error}.") from error


def _split(spec: str) -> tuple[Path, str | None]:
    """Path and column; the # in the name of a file that exists belongs to the name."""
    path = Path(spec).expanduser()
    before, found, column = spec.rpartition("#")
    return (path, None) if path.is_file() or not found else (Path(before).expanduser(), column)


def _hub_hint(spec: str) -> str:
    plain = spec.count("/") == 1 and spec[0] not in "/.~" and not Path(spec.partition("#")[0]).suffix
    return f" If it is a data set on the hub, write hub:{spec}" if plain else ""


def _text(path: Path, key: str) -> str:
    r"""A file in UTF-8, with or without a byte order mark, every end of a line as \n."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{key}: {path} is written in UTF-16: save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{key}: {path}:{line}: byte {data[error.start]:#04x} is not UTF-8: save the file as UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(f"{key}: {path} holds zero bytes, so it is not a text: give {FORMS}.")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def lines(path: Path, key: str) -> Iterator[tuple[int, str]]:
    """(number, line), blank ones left out."""
    # Not splitlines(): it also cuts at characters that may stand within a prompt.
    return (
        (number, line) for number, line in enumerate(_text(path, key).split("\n"), 1) if line and not line.isspace()
    )


def _txt(path: Path, column: str | None, key: str) -> Rows:
    if column is not None:
        raise ValueError(f"{key}: {path} has no columns, but #{column} is asked for: give the path alone.")
    stripped = ((number, line.strip()) for number, line in lines(path, key))
    return collect(stripped, lambda text: (text, None), name=str(path), key=key)


def _jsonl(path: Path, column: str | None, key: str) -> Rows:
    rest = lines(path, key)
    first = list(islice(rest, 1))
    for number, line in first:
        with at(f"{key}: {path}:{number}"):
            column = json_column(json_row(line), column)
    return collect(chain(first, rest), lambda line: split_row(json_row(line), str(column)), name=str(path), key=key)


def _csv(path: Path, column: str | None, key: str) -> Rows:
    number, header, rows = cells(path, key)
    with at(f"{key}: {path}:{number}"):
        chosen = column_of(header, column)

    def entry(row: Row) -> Entry:
        cells = named(header, row)
        return cells.pop(chosen).strip(), cells

    return collect(rows, entry, name=str(path), key=key)


def cells(path: Path, key: str) -> tuple[int, Row, Iterator[tuple[int, Row]]]:
    """Of a .csv or .tsv file: the header's line, the names in it, and the rows with their lines.

    Errors: ValueError naming `key`, file and line.
    """
    rows = _cells(path, "\t" if path.suffix.lower() == ".tsv" else ",", key)
    number, found = next(rows, (1, []))
    header = [name.strip() for name in found]
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        names = ", ".join(sorted(map(repr, twice)))
        raise ValueError(f"{key}: {path}:{number}: more than one column is called {names}: rename them.")
    return number, header, rows


def named(header: Row, row: Row) -> dict[str, str]:
    """The cells of a row by their columns. Errors: ValueError where they are not equally many."""
    if len(row) != len(header):
        raise ValueError(f"{len(row)} cells, but {len(header)} columns: quote cells that hold the separator.")
    return dict(zip(header, row, strict=True))


def _cells(path: Path, delimiter: str, key: str) -> Iterator[tuple[int, Row]]:
    """(number of its last line, row), empty rows left out. Strict, or an open quote would swallow the rest."""
    lines = (f"{line}\n" for line in _text(path, key).split("\n"))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if any(row):
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{key}: {path}:{reader.line_num}: {error}.") from error


READERS: dict[str, Callable[[Path, str | None, str], Rows]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".tar": read_tar,
}
