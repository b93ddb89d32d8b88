"""The run's folder: which one, whether it may be used, and that nobody else uses it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

CONFIG = "config.yaml"
LOCK = ".lock"
HELD = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)  # what a disk says of a lock that somebody holds
SHOWN = 200  # letters of what stands in a lock


def choose(output_dir: str | None, stem: str, *, resume: bool, overwrite: bool) -> Path:
    """The folder of a run, not yet made: `output_dir`, or runs/<stem>-<k> with the next free k, with `resume` the last.

    Errors: ValueError when it holds something that is not a run's or is neither to be resumed nor overwritten, and when
    it cannot be written.
    """
    folder = Path(output_dir).expanduser() if output_dir else numbered(Path("runs"), stem, last=resume)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: name a folder.")
    held = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    ours = CONFIG in held
    if held and not (ours and (overwrite or resume)):
        what = f"it holds {', '.join(held[:3])}{' ...' if len(held) > 3 else ''}"
        ways = ", or continue its run with --resume_from_checkpoint latest, or empty it with --overwrite"
        # somebody's other files are not emptied, whatever was asked for
        more = ways if ours else f": there is no {CONFIG} of a run in it, so it is neither continued nor emptied"
        raise ValueError(f"--output_dir {folder} is not empty: {what}. Name another folder{more}.")
    _check_writable(folder)
    return folder


def numbered(parent: Path, stem: str, *, last: bool) -> Path:
    """parent/<stem>-<k>: one above the highest k there is; the highest itself when it is to be gone on with."""
    stem = re.sub(r"[^\w.+-]+", "-", stem).strip("-")
    taken = [
        int(found[1])
        for path in (parent.iterdir() if parent.is_dir() else ())
        if (found := re.fullmatch(re.escape(stem) + r"-(\d+)", path.name))
    ]
    highest = max(taken, default=0)
    return parent / f"{stem}-{highest if last and taken else highest + 1}"


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--output_dir {folder} cannot be made: {there} is a file. Name another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {folder} cannot be written: no permission in {there}. Name another folder.")


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Makes the folder and holds its lock. A second run in it is refused.

    The lock ends with the process, however it ends. Only the disk says whether it is held: what stands in the file is
    for people, since another machine's process is not among those of this one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be written: {error.strerror}. Name another folder.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(_refused(folder, lock, error)) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()} {socket.gethostname()}")
        lock.flush()
        yield folder


def _refused(folder: Path, lock: TextIO, error: OSError) -> str:
    """Why the lock was not given: somebody has it, or the disk has no locks."""
    if error.errno not in HELD:
        return (
            f"--output_dir {folder} cannot be locked ({error.strerror}): its file system has no locks, by which a run "
            "keeps others out. Name a folder on another disk."
        )
    lock.seek(0)
    return (
        f"--output_dir {folder} is used by another run ({_holder(lock.read(SHOWN))}): wait for it, or name another "
        "folder."
    )


def _holder(text: str) -> str:
    """Whose lock it is, by what it wrote there."""
    process, _, machine = "".join(filter(str.isprintable, text)).strip().partition(" ")
    where = f" on {machine}, which is another machine" if machine and machine != socket.gethostname() else ""
    return f"process {process or 'unknown'}{where or (machine and f' on {machine}')}"


def empty(folder: Path, *, but: str = "") -> None:
    """Removes all but the lock, and what is of this name."""
    for path in folder.iterdir():
        if path.name in (LOCK, but):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
