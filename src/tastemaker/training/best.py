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
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tastemaker.training.checkpoint import Checkpoint, Checkpoints, Cursor
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
            self._write()
            self._drop()
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
        if rows is None and (self.folder / BEST).is_file():
            found = json.loads((self.folder / BEST).read_text(encoding="utf-8"))
            rows = [row for row in found.get(KEPT, [found]) if row["iteration"] < start.cursor.iteration]
        there = [row for row in rows or () if (self.folder / row["checkpoint"]).is_dir()]
        return [row for row in there if row["by"] == self.merit.by][: self.keep]

    def _note(self, candidate: Candidate, worth: Worth, path: Path) -> None:
        """Takes it into the list, in whose last place another may have been."""
        where = path.relative_to(self.folder).as_posix()
        row = {"iteration": candidate.cursor.iteration, "by": worth.by, "value": worth.value, "checkpoint": where}
        self.rows = sorted([*self.rows, row], key=lambda one: -one["value"])[: self.keep]
        self._write()

    def _is_good(self, worth: Worth) -> bool:
        return len(self.rows) < self.keep or worth.value > self.rows[-1]["value"] + worth.margin

    def _write(self) -> None:
        if not self.rows:
            (self.folder / BEST).unlink(missing_ok=True)
            return
        part = self.folder / f".{BEST}.part"
        part.write_text(json.dumps({**self.rows[0], KEPT: self.rows}) + "\n", encoding="utf-8")
        part.replace(self.folder / BEST)

    def _drop(self) -> None:
        """Removes what neither this run needs nor one from the newest ordinary checkpoint on; out of sight first."""
        wanted = self._needed | self._places()
        for path in self.checkpoints.folder.glob("checkpoint-*"):
            if path not in wanted:
                gone = path.with_name(f".gone-{path.name}")
                path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _places(self) -> set[Path]:
        """Where those of the list lie, and what waits for its pictures, if that is on the disk."""
        waiting = {self._candidate.written} if self._candidate and self._candidate.written else set()
        return {self.folder / row["checkpoint"] for row in self.rows} | waiting

    def _kept(self, candidate: Candidate) -> Path | None:
        """Where the candidate lies now; None, with a message, where it could not be written."""
        try:
            return self._keep(candidate)
        except (OSError, ValueError) as error:  # no disk left: what was learned is worth more than the best of it
            if self.world.rank == 0:
                print(f"the best checkpoint was not kept: {error}", file=sys.stderr, flush=True)
            return None

    def _keep(self, candidate: Candidate) -> Path:
        if candidate.content is not None:
            return self.checkpoints.save(candidate.cursor, *candidate.content)
        assert candidate.written is not None
        path, error = self.checkpoints.folder / candidate.cursor.name, ""
        if self.world.rank == 0 and not path.exists():
            part = path.with_name(f".tmp-{path.name}")
            shutil.rmtree(part, ignore_errors=True)
            try:
                shutil.copytree(candidate.written, part, copy_function=_link)
                part.rename(path)
            except OSError as found:
                shutil.rmtree(part, ignore_errors=True)
                error = str(found)
        if error := self.world.broadcast_text(error):
            raise OSError(error)
        return path


def _link(source: str, target: str) -> None:
    """The same file by another name; a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
