"""The file of votes: one JSON object a line, whole after every vote, written by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tastemaker.prompts.entries import at, json_row

VOTES = ("left", "right", "tie")
FIRST = b'{"prompt": '  # how each line that we write begins
Row = dict[str, Any]


class VotesFile:
    """Opened, locked and read; `rows` are its votes, the first of which end at the bytes `ends`, from none on.

    What a killed process left half written behind the last line is cut off.
    Errors: ValueError where another process has it, where it cannot be written, and for a line that is no vote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = _locked(path)
        except OSError as error:
            raise ValueError(f"--output {path} cannot be written: {error.strerror}. Name another file.") from error
        try:
            self.rows, self.ends = _read(self.file, path)
        except BaseException:
            os.close(self.file)
            raise

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a vote; it is on the disk when this returns. Errors: OSError, and the file is as before."""
        line, end = json.dumps(row, allow_nan=False).encode() + b"\n", self.ends[-1]
        assert line.startswith(FIRST)
        try:
            _write(self.file, line, end)
        except OSError:
            os.ftruncate(self.file, end)
            raise
        self.rows.append(dict(row))
        self.ends.append(end + len(line))

    def undo(self) -> None:
        """Takes the last vote back."""
        os.ftruncate(self.file, self.ends[-2])
        os.fsync(self.file)
        self.rows.pop()
        self.ends.pop()

    def close(self) -> None:
        """Lets others have the file; where nobody voted there is none."""
        if os.fstat(self.file).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self.file)


def _locked(path: Path) -> int:
    """The file, for as long as this process has it open."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ValueError(f"--output {path} is no plain file: name another.")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that ended just now may have taken its empty file away.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError as error:
            os.close(file)
            raise ValueError(
                f"--output {path} is written by another `tastemaker vote`: end that one, or name another file."
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _read(file: int, path: Path) -> tuple[list[Row], list[int]]:
    """The votes, and where in the file each ends; a half-written last line is cut off, a missing newline added."""
    rows: list[Row] = []
    ends = [0]
    *lines, rest = os.pread(file, os.fstat(file).st_size, 0).split(b"\n")
    for number, line in enumerate([*lines, *([rest] if rest else [])], 1):
        last = number > len(lines)
        if last and (FIRST.startswith(line) or (line.startswith(FIRST) and not line.rstrip().endswith(b"}"))):
            os.ftruncate(file, ends[-1])
        elif line.strip():
            with at(f"{path}:{number}"):
                rows.append(_vote(json_row(line.decode())))
            ends.append(ends[-1] + len(line) + 1)
        else:
            ends[-1] += len(line) + 1
    if rest and os.fstat(file).st_size == ends[-1] - 1:
        _write(file, b"\n", ends[-1] - 1)
    return rows, ends


def _vote(row: Row) -> Row:
    """A vote. Errors: ValueError saying what it lacks."""
    texts = [name for name in ("prompt", "left", "right") if not isinstance(row.get(name), str)]
    if texts:
        raise ValueError(f"not a vote, for it has no {' and no '.join(texts)}: name another file with --output.")
    vote = row.get("vote")
    if vote not in VOTES:
        raise ValueError(f"`vote` is {vote!r:.40}; it is one of {', '.join(VOTES)}.")
    if vote != "tie" and (row.get("winner"), row.get("loser")) != chosen(row):
        raise ValueError(f"`vote` is {vote}, but winner and loser say something else: correct the line.")
    return row


def chosen(row: Mapping[str, Any]) -> tuple[str, str]:
    """Winner and loser of a vote that is no tie."""
    return (row["left"], row["right"]) if row["vote"] == "left" else (row["right"], row["left"])


def _write(file: int, data: bytes, start: int) -> None:
    """All of it, on the disk."""
    while data:
        written = os.pwrite(file, data, start)
        data, start = data[written:], start + written
    os.fsync(file)
