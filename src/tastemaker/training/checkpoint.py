"""Checkpoints that are whole or absent: safetensors and JSON in a folder, sealed by a manifest of sha256 sums.

A save writes `.tmp-<name>`, flushes every file to the disk, writes MANIFEST.json last, renames the folder, and only
then removes old checkpoints. So whenever it stops, by a full disk or a power cut too, what bears a checkpoint's name is
whole, and the ones before it are still there. Nothing is ever unpickled.

    checkpoint-<iteration>[-<updates>]/
        state.safetensors  state.json                   the cursor, and what all processes hold alike
        rollout-<rank>.safetensors  rollout-<rank>.json inside an iteration: what one process holds for itself
        MANIFEST.json                                   {"format", "files": {name: {"bytes", "sha256"}}}
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tastemaker.training.encoding import decoded, encoded

FORMAT = 1
MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"checkpoint-(0|[1-9]\d*)(?:-([1-9]\d*))?")
_FILE = re.compile(r"(?:state|rollout-\d+)\.(?:json|safetensors)")


class Cursor(NamedTuple):
    """Where a run stands: so many iterations are finished, and so many updates of the one after them."""

    iteration: int
    updates: int

    @property
    def name(self) -> str:
        return f"checkpoint-{self.iteration}" + (f"-{self.updates}" if self.updates else "")


class Checkpoint(NamedTuple):
    """A checkpoint that was verified and read into memory."""

    path: Path
    cursor: Cursor
    tensors: dict[str, Tensor]
    data: Any
    per_rank: tuple[Any, ...] = ()
    """What each process handed to `save` for itself, by rank; empty between iterations."""


class Processes(Protocol):
    """What saving asks of a `World`. No call may raise Stop: a checkpoint is what a stop is for."""

    rank: int
    size: int

    def barrier(self) -> None: ...
    def broadcast_text(self, text: str | None) -> str: ...
    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class Checkpoints:
    """The checkpoints of the run that owns this folder. (`open` and `newest` only read, also beside a run.)

    limit: how many to keep; None keeps all. With several processes all of them make it, save, and see the same folder.
    """

    def __init__(self, folder: str | Path, *, limit: int | None = None, world: Processes | None = None) -> None:
        if limit is not None and limit < 2:
            raise ValueError(
                f"checkpoints_total_limit is {limit}, it must be at least 2: "
                "should the newest turn out damaged, a run goes on from the one before it."
            )
        self.folder, self.limit, self._world = Path(folder), limit, world
        self._rank = world.rank if world else 0
        if self._rank == 0:
            self._tidy()
        self._together()  # nobody looks for the latest before that

    def save(self, cursor: Cursor, tensors: Mapping[str, Tensor], data: Any, *, per_rank: Any = None) -> Path:
        """Write a checkpoint; one of the same cursor is replaced. What cannot be kept exactly is a ValueError.

        data, per_rank: None, numbers, text, tensors, and lists, tuples and dicts of them. OSError, on every rank, when
        it cannot be written; the checkpoints before it are untouched then.
        """
        final, temporary = self.folder / cursor.name, self.folder / f".tmp-{cursor.name}"
        tensors = self._world.whole(tensors) if self._world else tensors
        parts = {f"rollout-{self._rank}": encoded(per_rank)} if per_rank is not None else {}
        problem = ""
        if self._rank == 0:
            parts["state"] = encoded({"cursor": list(cursor), "tensors": dict(tensors), "data": data})
            shutil.rmtree(temporary, ignore_errors=True)
            problem = _failure(lambda: temporary.mkdir(parents=True))
        self._together()
        problem = problem or _failure(lambda: _write(temporary, parts))
        self._together()
        if self._rank == 0:
            problem = problem or _failure(lambda: self._publish(temporary, final, per_rank is not None))
        heard = self._world.broadcast_text(problem if self._rank == 0 else None) if self._world else ""
        if problem := problem or heard:
            needed = sum(tensor.nbytes for _, lifted in parts.values() for tensor in lifted.values())
            raise OSError(self._trouble(final, temporary, problem, needed))
        return final

    def latest(self) -> Checkpoint | None:
        return newest(self.folder)

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """The checkpoint in exactly this folder. ValueError naming what is wrong with it."""
        path = Path(path)
        if problem := _problem(path):
            inside = sorted(_found(path)) or sorted(_found(path / "checkpoints"))
            hint = f"It holds checkpoints, the last is {inside[-1][1]}" if inside else "Name another one, or `latest`"
            raise ValueError(f"{path} cannot be used as a checkpoint: {problem}. {hint}.")
        return _read(path)

    def forget_after(self, cursor: Cursor) -> None:
        """Remove what lies behind the cursor, whole or damaged.

        A run that goes on from here makes it again, and `latest` must not find what the abandoned one had made.
        """
        if self._rank == 0:
            for path in [path for position, path in _found(self.folder) if position > cursor]:
                remove(path)
        self._together()

    def _publish(self, temporary: Path, final: Path, with_parts: bool) -> None:
        """Seal, rename, prune."""
        for rank in range(self._world.size if self._world and with_parts else 0):
            if not (temporary / f"rollout-{rank}.json").is_file():
                raise OSError(f"rank {rank} left no part of it there (do all processes see this folder?)")
        _seal(temporary)
        aside = final.with_name(f".old-{final.name}")
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        temporary.rename(final)
        _flush(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        self._prune(final)

    def _prune(self, last: Path) -> None:
        if self.limit is None:
            return
        others = [path for _, path in sorted(_found(self.folder)) if path != last]
        whole = [path for path in others if not _problem(path, sums=False)]  # a damaged one is no reserve
        for path in whole[: max(0, len(whole) - (self.limit - 1))]:
            remove(path)

    def _tidy(self) -> None:
        """Remove what an interrupted save left; put back a checkpoint whose replacement did not arrive."""
        for left in self.folder.glob(".*-checkpoint-*"):
            final = left.with_name(left.name.removeprefix(".old-"))
            if left.name.startswith(".old-") and not final.exists():
                left.rename(final)
            elif left.name.startswith((".old-", ".tmp-", ".gone-")):
                shutil.rmtree(left, ignore_errors=True)

    def _together(self) -> None:
        if self._world:
            self._world.barrier()

    def _trouble(self, final: Path, temporary: Path, problem: str, needed: int) -> str:
        if self._rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(next(p for p in self.folder.absolute().parents if p.exists())).free
        return (
            f"{final} could not be written: {problem}. It needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free "
            "there. The checkpoints before it are untouched: make room, then --resume_from_checkpoint latest."
        )


def newest(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, None if there are none at all. Passes over damaged ones with a warning.

    ValueError if all are damaged: to begin again from nothing would not be what was asked for.
    """
    for _, path in (found := sorted(_found(Path(folder)), reverse=True)):
        if not (problem := _problem(path)):
            return _read(path)
        warnings.warn(f"{path} is damaged and passed over: {problem}.", stacklevel=3)
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} is whole. Restore one from a backup, "
            "or start anew in another --output_dir."
        )
    return None


def _found(folder: Path) -> Iterator[tuple[Cursor, Path]]:
    """Folders with a checkpoint's name, in no order; numbers count, never the clock."""
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            yield Cursor(int(match[1]), int(match[2] or 0)), path


def _problem(path: Path, *, sums: bool = True) -> str:
    """What is wrong with this checkpoint, empty if nothing is; sums=False compares sizes only."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"it is of format {manifest['format']!r}, this version reads {FORMAT}"
        files: dict[str, Any] = manifest["files"]
        if strange := [name for name in files if not _FILE.fullmatch(name)]:
            return f"{MANIFEST} lists {strange[0]!r}, which is no file of a checkpoint"
        for name in dict.fromkeys(("state.json", "state.safetensors", *files)):
            if not (path / name).is_file():
                return f"{name} is missing"
            if (size := (path / name).stat().st_size) != files[name]["bytes"]:
                return f"{name} has {size} bytes and should have {files[name]['bytes']}"
            if sums and _sum(path / name) != files[name]["sha256"]:
                return f"{name} is not what was written (sha256 differs)"
    except FileNotFoundError:
        return f"{MANIFEST} is missing" if path.is_dir() else "there is no such folder"
    except (KeyError, TypeError, AttributeError, ValueError):
        return f"{MANIFEST} cannot be read"
    except OSError as error:
        return str(error)
    return ""


def _read(path: Path) -> Checkpoint:
    """Read what `_problem` has verified; files that the manifest does not list are never looked at."""
    ranks = sum(name.startswith("rollout-") for name in json.loads((path / MANIFEST).read_text())["files"]) // 2
    state = _part(path, "state")
    parts = tuple(_part(path, f"rollout-{rank}") for rank in range(ranks))
    return Checkpoint(path, Cursor(*state["cursor"]), state["tensors"], state["data"], parts)


def _part(path: Path, stem: str) -> Any:
    with safe_open(path / f"{stem}.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # the clone outlives the file
    return decoded(json.loads((path / f"{stem}.json").read_text()), tensors)


def _write(folder: Path, parts: Mapping[str, tuple[Any, Mapping[str, Tensor]]]) -> None:
    """Each part's JSON appears last and whole: its presence says that the part is done."""
    for stem, (tree, tensors) in parts.items():
        storages: set[int] = set()
        plain: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            value = tensor.cpu().contiguous()
            at = value.untyped_storage().data_ptr()
            plain[name] = value.clone() if at in storages else value  # safetensors refuses two views of one storage
            storages.add(at)
        save_file(plain, folder / f"{stem}.safetensors")
        _flush(folder / f"{stem}.safetensors")
        unfinished = folder / f"{stem}.part"
        unfinished.write_text(json.dumps(tree, allow_nan=False))
        _flush(unfinished)
        unfinished.rename(folder / f"{stem}.json")


def _seal(folder: Path) -> None:
    written = sorted(path for path in folder.iterdir() if _FILE.fullmatch(path.name))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sum(path)} for path in written}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    _flush(manifest)
    _flush(folder)


def remove(path: Path) -> None:
    """Out of sight first: half of a checkpoint must not bear its name. What cannot be removed stays."""
    gone = path.with_name(f".gone-{path.name}")
    if not _failure(lambda: path.rename(gone)):
        shutil.rmtree(gone, ignore_errors=True)


def _flush(path: Path) -> None:
    """Through to the disk: after a power cut a renamed folder has been seen with empty files in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _failure(action: Callable[[], object]) -> str:
    """Do it; what went wrong with the disk as text, so that all processes can hear of it."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        return str(error) or type(error).__name__
    return ""
