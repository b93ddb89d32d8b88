"""The best checkpoints by a number of metrics.jsonl: kept beside the ordinary ones, which are the newest.

What pictures say is said of the weights that drew them: those with which the iteration began, which the end of the one
before handed over. They are held until the pictures are judged, as the checkpoint that was written of them or in
memory, and written only where they turn out to be among the best. One that lies there already is linked, not copied.

    checkpoints/best/checkpoint-<iteration>/     a checkpoint like any other: --resume_from_checkpoint takes it
    best.json                                    {"iteration", "by", "value", "checkpoint"} of the best, and of all
                                                 that are kept, best first, in "kept"

An ordinary checkpoint holds the list as it was then, and what it names stays on the disk until the next one is written:
so a run that goes on from there finds the same ones.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tastemaker.training.checkpoint import Checkpoint, Checkpoints, Cursor, remove
from tastemaker.training.lines import read_lines
from tastemaker.training.merit import Merit, Worth
from tastemaker.world import World

BEST = "best.json"
KEPT = "kept"
HELD = 2**30  # bytes held in memory from one iteration to the next; larger ones are judged only where they are written


class Content(NamedTuple):
    """What a checkpoint between iterations is made of."""

    tensors: Mapping[str, Tensor]
    data: Any

    @property
    def small(self) -> bool:
        return sum(tensor.nbytes for tensor in self.tensors.values()) <= HELD


class Candidate(NamedTuple):
    """Weights that wait for their pictures."""

    cursor: Cursor
    written: Path | None
    content: Content | None


class Best:
    """One run's, so many of them. All devices call it alike; rank 0 decides, and knows the list."""

    def __init__(self, folder: Path, world: World, merit: Merit, keep: int = 1) -> None:
        self.folder, self.world, self.merit, self.keep = folder, world, merit, keep
        self.checkpoints = Checkpoints(folder / "checkpoints" / "best", world=world)
        self.rows: list[dict[str, Any]] = []  # best first
        self._needed: set[Path] = set()  # by a run that goes on from the newest ordinary checkpoint
        self._candidate: Candidate | None = None

    def rewind(self, start: Checkpoint | None, metrics: Path) -> None:
        """The list as it was at this checkpoint, which the run goes on from; all others are removed."""
        cursor = start.cursor if start else Cursor(0, 0)
        self.merit.forget()
        for row in read_lines(metrics):
            if row["iteration"] < cursor.iteration:
                self.merit.see(row)
        self._candidate = self._begun_with(start) if start else None
        if self.world.rank == 0:
            self.rows = self._listed(start) if start else []
            self._needed = self._places()  # with the candidate's
            self._write(self.rows)
            self._tell(self._drop())
        self.world.barrier()

    def offer(self, cursor: Cursor, written: Path | None, content: Callable[[], Content]) -> None:
        """The weights with which the next iteration begins; the list is in what was written of them."""
        if written is not None:
            self._candidate = Candidate(cursor, written, None)
            if self.world.rank == 0:
                self._needed = self._places()
                self._drop()
            return
        found = content()
        if not found.small:
            self._candidate = None
            return
        own = self.world.whole(found.tensors)
        kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in own.items()}
        self._candidate = Candidate(cursor, None, Content(kept, found.data))

    def hold(self, cursor: Cursor) -> None:
        """A stop inside an iteration: the weights with which it began wait on the disk. A collective."""
        if self._candidate is not None and cursor.updates:
            self._kept(self._candidate)

    def settle(self, row: Mapping[str, Any]) -> None:
        """The pictures that the candidate drew are judged, in this row; it is kept if they are good. A collective."""
        self.merit.see(row)
        worth, (candidate, self._candidate) = self.merit.worth(), (self._candidate, None)
        if candidate is None:
            return
        good = self.world.rank == 0 and worth is not None and self._is_good(worth)
        if self.world.broadcast_text("good" if good else ""):
            path = self._kept(candidate)
            if self.world.rank == 0 and path is not None and worth is not None:
                self._note(candidate, worth, path)
        if self.world.rank == 0:
            self._drop()

    def _begun_with(self, start: Checkpoint) -> Candidate | None:
        """The weights with which the iteration began that goes on; a stop inside it had them held."""
        own = Cursor(start.cursor.iteration, 0)
        if not start.cursor.updates:
            content = Content(start.tensors, start.data)
            inside = bool(start.per_rank) and content.small  # its pictures are nobody's but this run's
            return Candidate(own, None, content) if inside else Candidate(own, start.path, None)
        held = self.checkpoints.folder / own.name
        there = self.world.broadcast_text("there" if self.world.rank == 0 and held.is_dir() else "")
        return Candidate(own, held, None) if there else None

    def _listed(self, start: Checkpoint) -> list[dict[str, Any]]:
        """As the checkpoint says; an older one says nothing, and best.json has those from before it."""
        rows = start.data.get("best")
        if rows is None:
            rows = [row for row in listed(self.folder) if row["iteration"] < start.cursor.iteration]
        there = [row for row in rows if (self.folder / row["checkpoint"]).is_dir()]
        return self._ranked(there)

    def _note(self, candidate: Candidate, worth: Worth, path: Path) -> None:
        """Takes it into the list, in whose last place another may have been."""
        where = path.relative_to(self.folder).as_posix()
        row = {"iteration": candidate.cursor.iteration, "by": worth.by, "value": worth.value, "checkpoint": where}
        rows = self._ranked([*self.rows, row])
        if self._write(rows):  # else the list stays what it is on the disk, and this one is removed again
            self.rows = rows

    def _ranked(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As many as are kept, best first; those by another number come last, until others take their places."""
        own = [row for row in rows if row["by"] == self.merit.by]
        others = [row for row in rows if row["by"] != self.merit.by]
        return [*sorted(own, key=lambda one: -one["value"]), *others][: self.keep]

    def _is_good(self, worth: Worth) -> bool:
        own = [row for row in self.rows if row["by"] == self.merit.by]
        return len(own) < self.keep or worth.value > own[-1]["value"] + worth.margin

    def _write(self, rows: list[dict[str, Any]]) -> bool:
        """best.json; False, with a message, where the disk does not take it."""
        try:
            write(self.folder, rows)
        except OSError as error:
            print(f"{self.folder / BEST} was not written: {error}", file=sys.stderr, flush=True)
            return False
        return True

    def _drop(self) -> list[str]:
        """Removes what neither this run needs nor one from the newest ordinary checkpoint on; their names."""
        wanted = self._needed | self._places()
        gone = [path for path in self.checkpoints.folder.glob("checkpoint-*") if path.resolve() not in wanted]
        for path in gone:
            remove(path)
        return sorted(path.name for path in gone)

    def _places(self) -> set[Path]:
        """Where those of the list lie, and what waits for its pictures, if that is on the disk; without links."""
        waiting = {self._candidate.written} if self._candidate and self._candidate.written else set()
        return {path.resolve() for path in {self.folder / row["checkpoint"] for row in self.rows} | waiting}

    def _tell(self, gone: list[str]) -> None:
        """What a run that goes on does with the best ones that it finds."""
        if former := sorted({row["by"] for row in self.rows} - {self.merit.by}):
            what = f"best checkpoints by {', '.join(former)} stay until others by {self.merit.by} take their places"
            print(what, flush=True)
        if gone:
            what = f"removed from {self.checkpoints.folder}: {', '.join(gone)}"
            print(f"{what} (not among the best of the run up to where it goes on)", flush=True)

    def _kept(self, candidate: Candidate) -> Path | None:
        """Where the candidate lies now; None, with a message, where it could not be written."""
        try:
            return self._keep(candidate)
        except OSError as error:  # no disk left: what was learned is worth more than the best of it
            if self.world.rank == 0:
                print(f"the best checkpoint was not kept: {error}", file=sys.stderr, flush=True)
            return None

    def _keep(self, candidate: Candidate) -> Path:
        if candidate.content is not None:
            return self.checkpoints.save(candidate.cursor, *candidate.content)
        assert candidate.written is not None
        path, error = self.checkpoints.folder / candidate.cursor.name, ""
        if self.world.rank == 0 and path.resolve() != candidate.written.resolve():
            part = path.with_name(f".tmp-{path.name}")
            shutil.rmtree(part, ignore_errors=True)
            try:
                shutil.copytree(candidate.written, part, copy_function=_link)
                remove(path)  # a folder of this name is of a run that was left
                part.rename(path)
            except OSError as found:
                shutil.rmtree(part, ignore_errors=True)
                error = str(found)
        if error := self.world.broadcast_text(error):
            raise OSError(error)
        return path


def listed(folder: Path) -> list[dict[str, Any]]:
    """The rows of best.json in a run's folder, best first; an older one has but one. None where it cannot be read."""
    try:
        found = json.loads((folder / BEST).read_text(encoding="utf-8"))
        return list(found.get(KEPT, [found]))
    except (OSError, ValueError, AttributeError):
        return []


def forget_after(folder: Path, iteration: int) -> None:
    """best.json without what later weights were worth; their checkpoints stay."""
    rows = listed(folder)
    if len(left := [row for row in rows if row["iteration"] < iteration]) < len(rows):
        with suppress(OSError):
            write(folder, left)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """best.json with these rows, whole or not at all; none without rows."""
    part = folder / f".{BEST}.part"
    try:
        if rows:
            part.write_text(json.dumps({**rows[0], KEPT: rows}) + "\n", encoding="utf-8")
            part.replace(folder / BEST)
        else:
            (folder / BEST).unlink(missing_ok=True)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _link(source: str, target: str) -> None:
    """The same file by another name; a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
