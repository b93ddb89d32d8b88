"""Preferences: prompts with two pictures each, the one that was preferred and the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tastemaker.prompts.entries import Entry, at, column_of, json_row, split_row
from tastemaker.prompts.files import lines

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
BOTH = ("winner", "loser")


def pairs(path: str = "") -> list[Entry]:
    """Prompts with metadata {"winner": file, "loser": file}, of a .jsonl file or a folder.

    A file has one object a line: `prompt` (or `caption`, `text`), `winner` and `loser`, files beside it. Lines with
    "vote": "tie", as `tastemaker vote` writes them, are passed over. A folder has
    one folder a pair: prompt.txt, and winner and loser as .png, .jpg or .webp.

    Errors: ValueError beginning with `path`, naming what is missing and where.
    """
    if not path:
        raise ValueError("path is missing: give a .jsonl file or a folder of pairs.")
    place = Path(path).expanduser()
    if place.is_dir():
        return _of_folder(place)
    if not place.is_file():
        raise ValueError(f"path: there is no {place}.")
    return _of_file(place)


def _of_file(place: Path) -> list[Entry]:
    found, ties = [], 0
    for number, line in lines(place, "path"):
        with at(f"path: {place}:{number}"):
            row = json_row(line)
            text, rest = split_row(row, column_of(row, None))
            if rest.get("vote") == "tie":
                ties += 1
                continue
            both = {one: _file(place.parent, rest.get(one), one) for one in BOTH}
            check_content(rest, {rest[one]: file for one, file in both.items()})
            if both["winner"].samefile(both["loser"]):
                raise ValueError(f"winner and loser are both {both['winner']}: name two pictures, or take it out.")
            found.append((text, {one: str(file) for one, file in both.items()}))
    if not found and ties:
        raise ValueError(f"path: {place} holds no pair that was decided: all its {ties} votes are ties.")
    if not found:
        raise ValueError(f"path: {place} holds no pair.")
    return found


def content(file: Path) -> str:
    """What tells a picture from another of the same name: the beginning of its SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def check_content(row: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Whether the files, by their names in a row, still hold what was voted on, where the row says what that was.

    Errors: ValueError naming one that does not.
    """
    said = row.get("content")
    for name, file in files.items():
        if isinstance(said, Mapping) and said.get(name, found := content(file)) != found:
            raise ValueError(
                f"{file} is not the picture any more that was voted on: it was drawn anew. Take the line out, and give "
                "new pictures another folder."
            )


def _file(folder: Path, name: object, role: str) -> Path:
    if not isinstance(name, str) or not name:
        raise ValueError(f"there is no `{role}`: give the file of that picture.")
    file = folder / Path(name).expanduser()
    if not file.is_file():
        raise ValueError(f"{role}: there is no {file}.")
    return file


def _of_folder(place: Path) -> list[Entry]:
    found = []
    for folder in sorted(one for one in place.iterdir() if one.is_dir()):
        with at(f"path: {folder}"):
            if not (folder / "prompt.txt").is_file():
                raise ValueError("there is no prompt.txt.")
            text = (folder / "prompt.txt").read_text(encoding="utf-8-sig").strip()
            found.append((text, {one: str(_picture(folder, one)) for one in BOTH}))
    if not found:
        raise ValueError(f"path: {place} holds no folder of a pair.")
    return found


def _picture(folder: Path, role: str) -> Path:
    files = [folder / f"{role}{ending}" for ending in ENDINGS]
    there = [file for file in files if file.is_file()]
    if len(there) != 1:
        raise ValueError(f"{len(there)} files are called {role}{ENDINGS[0]}, {', '.join(ENDINGS[1:])}; one is needed.")
    return there[0]
