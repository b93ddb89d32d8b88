"""The best checkpoint by a held-out reward: kept beside the ordinary ones, which are the newest.

What pictures say is said of the weights that drew them: those with which the iteration began, which the end of the one
before handed over. They are held until the pictures are judged, as the checkpoint that was written of them or in
memory, and written only where they turn out to be the best so far. One that lies there already is linked, not copied.

    checkpoints/best/checkpoint-<iteration>/     a checkpoint like any other: --resume_from_checkpoint takes it
    best.json                                    {"iteration", "by", "value", "checkpoint"}
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

from tastemaker.training.checkpoint import Checkpoints, Cursor
from tastemaker.training.watching import Worth
from tastemaker.world import World

BEST = "best.json"
HELD = 2**30  # bytes held in memory from one iteration to the next; larger ones are judged only where they are written


class Content(NamedTuple):
    """What a checkpoint between iterations is made of."""

    tensors: Mapping[str, Tensor]
    data: Any


class Candidate(NamedTuple):
    """Weights that wait for their pictures."""

    cursor: Cursor
    written: Path | None
    content: Content | None


class Best:
    """One run's. All devices call it alike; rank 0 decides."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.checkpoints = Checkpoints(folder / "checkpoints" / "best", world=world)
        self._candidate: Candidate | None = None

    def rewind(self, cursor: Cursor, written: Path | None) -> None:
        """Forgets a best one from behind the cursor; `written` is the checkpoint that the run goes on from."""
        inside = cursor.updates > 0 or written is None
        self._candidate = None if inside else Candidate(cursor, written, None)
        found = self._record() if self.world.rank == 0 else None
        if found is not None and found["iteration"] > cursor.iteration:
            (self.folder / BEST).unlink()
        self.checkpoints.forget_after(Cursor(cursor.iteration, 0))

    def offer(self, cursor: Cursor, written: Path | None, content: Callable[[], Content]) -> None:
        """The weights with which the next iteration begins."""
        if written is not None:
            self._candidate = Candidate(cursor, written, None)
            return
        found = content()
        small = sum(tensor.nbytes for tensor in found.tensors.values()) <= HELD
        own = self.world.whole(found.tensors) if small else {}
        kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in own.items()}
        self._candidate = Candidate(cursor, None, Content(kept, found.data)) if small else None

    def settle(self, worth: Worth | None) -> None:
        """The pictures that the candidate drew are judged; it is kept if they are the best. A collective."""
        candidate, self._candidate = self._candidate, None
        if candidate is None:
            return
        better = self.world.rank == 0 and worth is not None and self._is_better(worth)
        if not self.world.broadcast_text("better" if better else ""):
            return
        try:
            path = self._keep(candidate)
            if self.world.rank == 0 and worth is not None:
                self._note(candidate, worth, path)
        except (OSError, ValueError) as error:  # no disk left: what was learned is worth more than the best of it
            if self.world.rank == 0:
                print(f"the best checkpoint was not kept: {error}", file=sys.stderr, flush=True)

    def _note(self, candidate: Candidate, worth: Worth, path: Path) -> None:
        """Says which is the best now, and drops the one before."""
        where = path.relative_to(self.folder).as_posix()
        row = {"iteration": candidate.cursor.iteration, "by": worth.by, "value": worth.value, "checkpoint": where}
        part = self.folder / f".{BEST}.part"
        part.write_text(json.dumps(row) + "\n", encoding="utf-8")
        part.replace(self.folder / BEST)
        for other in self.checkpoints.folder.glob("checkpoint-*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)

    def _is_better(self, worth: Worth) -> bool:
        best = self._record()
        return best is None or best["by"] != worth.by or worth.value > best["value"] + worth.margin

    def _record(self) -> dict[str, Any] | None:
        file = self.folder / BEST
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

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
