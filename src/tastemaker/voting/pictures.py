"""What can be voted on: the pictures of a folder, each with its prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tastemaker.prompts.entries import at, column_of, fault, json_row
from tastemaker.prompts.files import cells, lines, named

SAMPLES = "samples.jsonl"  # left by train, sample and evaluate
METADATA = ("metadata.jsonl", "metadata.csv")
PROMPT = "prompt.txt"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
LARGEST = 32 * 2**20  # bytes of a picture
HEAD = 12  # bytes that tell what a file is
KINDS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/bmp": re.compile(rb"BM"),
}
FORMS = (
    f"a folder that train, sample or evaluate left ({SAMPLES}), pictures with {' or '.join(METADATA)}, pictures each "
    f"with a .txt of its name beside it, or a folder a prompt, with {PROMPT} in it"
)


class Picture(NamedTuple):
    """A file and its prompt. `place`: of which of the folders that were named, 0 or 1; `name`: the file's in there."""

    prompt: str
    file: Path  # as `settled`
    name: str
    place: int = 0


def pictures(folder: Path, *, place: int = 0, prompt: str | None = None) -> list[Picture]:
    """The pictures of a folder, in its order. `prompt`: what those show that stand without one.

    Errors: ValueError beginning with the file (and line) that is no picture, is missing, or has no prompt.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give {FORMS}.")
    reader = _reader(folder)
    if reader is None:
        rows = list(_plain(folder, prompt))
    elif prompt is not None:
        raise ValueError(f"--prompt has no effect: the pictures of {folder} have prompts of their own.")
    else:
        rows = list(reader(folder))
    if not rows:
        raise ValueError(f"{folder} holds no picture with a prompt: give {FORMS}.")
    found = {}  # a picture that is made again has a second row
    for text, file in rows:
        whole = settled(file)
        found[whole] = Picture(text, whole, file.relative_to(folder).as_posix(), place)
    return list(found.values())


def settled(file: Path) -> Path:
    """One path of a file, by whatever way its folder is reached; a file that is a link stays one."""
    return file.parent.resolve() / file.name


def kind(head: bytes) -> str | None:
    """The media type of a file that begins so; None where it is no picture that a browser shows."""
    return next((name for name, magic in KINDS.items() if magic.match(head)), None)


def _reader(folder: Path) -> Callable[[Path], Iterator[tuple[str, Path]]] | None:
    """How the folder says its prompts, where it is not of plain pictures."""
    if (folder / SAMPLES).is_file():
        return _samples
    if any((folder / name).is_file() for name in METADATA):
        return _metadata
    return _folders if next(folder.glob(f"*/{PROMPT}"), None) else None


def _samples(folder: Path) -> Iterator[tuple[str, Path]]:
    """Rows of samples.jsonl; its last line may be half written while a run goes on."""
    path = folder / SAMPLES
    rows = list(lines(path, "PLACE"))
    if rows and not path.read_bytes().endswith(b"\n"):
        rows.pop()
    for number, line in rows:
        with at(f"{path}:{number}"):
            row = json_row(line)
            if "schema" not in row:
                yield _text(row.get("prompt")), _checked(folder, row.get("file"), "file")


def _metadata(folder: Path) -> Iterator[tuple[str, Path]]:
    """Rows of metadata.jsonl or metadata.csv: file_name, and prompt, caption or text."""
    path = next(folder / name for name in METADATA if (folder / name).is_file())
    rows = _objects(path) if path.suffix == ".jsonl" else _cells(path)
    for number, row in rows:
        with at(f"{path}:{number}"):
            if "file_name" not in row:
                raise ValueError(f"there is no `file_name`; found {', '.join(f'`{one}`' for one in row)}.")
            yield _text(row[column_of(row, None)]), _checked(folder, row["file_name"], "file_name")


def _objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in lines(path, "PLACE"):
        with at(f"{path}:{number}"):
            row = json_row(line)
        yield number, row


def _cells(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    _, header, rows = cells(path, "PLACE")
    for number, row in rows:
        with at(f"{path}:{number}"):
            found: dict[str, object] = dict(named(header, row))
        yield number, found


def _folders(folder: Path) -> Iterator[tuple[str, Path]]:
    """A folder a prompt."""
    for inner in sorted((one for one in folder.iterdir() if one.is_dir()), key=_natural):
        if (inner / PROMPT).is_file():
            text = _read(inner / PROMPT)
            yield from ((text, file) for file in _files(inner))
        elif any(_files(inner)):
            raise ValueError(f"{inner} holds pictures, but no {PROMPT}: write into that file what they show.")


def _plain(folder: Path, prompt: str | None) -> Iterator[tuple[str, Path]]:
    """Pictures with NAME.txt beside NAME.png; `prompt` is of those without."""
    for file in _files(folder):
        beside = file.with_suffix(".txt")
        if not beside.is_file() and prompt is None:
            raise ValueError(f"{file} has no prompt: write it into {beside.name} beside it, or give --prompt TEXT.")
        if beside.is_file():
            yield _read(beside), file
        elif prompt is not None:
            with at("--prompt"):
                yield _text(prompt), file


def _files(folder: Path) -> list[Path]:
    found = [one for one in folder.iterdir() if one.suffix.lower() in ENDINGS and one.is_file()]
    return [_checked(folder, one.name, "picture") for one in sorted(found, key=_natural)]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts 2.png before 10.png."""
    return [(bool(text), int(digits or 0), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", path.name)]


def _checked(folder: Path, name: object, role: str) -> Path:
    """A picture's file. Errors: ValueError where it is missing, too large, or no picture."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"there is no `{role}`: give the file of that picture, as seen from {folder}.")
    file = folder / name
    if not file.is_relative_to(folder) or ".." in Path(name).parts:
        raise ValueError(f"{role}: {file} lies outside of {folder}: give the folder that holds it.")
    if not file.is_file():
        raise ValueError(f"{role}: there is no {file}.")
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    if kind(head) is None:
        raise ValueError(f"{role}: {file} is no picture: give {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{role}: {file} is larger than {LARGEST // 2**20} MB: give a smaller picture.")
    return file


def _read(path: Path) -> str:
    """A prompt's own file."""
    with at(str(path)):
        try:
            return _text(path.read_text(encoding="utf-8-sig").strip())
        except UnicodeDecodeError as error:
            raise ValueError("it is not UTF-8: save it so.") from error


def _text(found: object) -> str:
    """A prompt. Errors: ValueError where it is none."""
    if wrong := fault(found):
        raise ValueError(f"the prompt {wrong}: give a text, or take the picture out.")
    assert isinstance(found, str)
    return found.strip()
