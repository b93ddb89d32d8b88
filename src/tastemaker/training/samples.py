"""The pictures that a run keeps, of training and of evaluations, each with its row in samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tastemaker.reports.pictures import save
from tastemaker.training.lines import Lines

SAMPLES = "samples.jsonl"
PREFIXES = {"training": "", "evaluation": "evaluation-"}  # of the files' names, before the picture's id


class Samples:
    """One kind of a run's pictures. Those that are made again replace the old ones."""

    def __init__(self, folder: Path, kind: Literal["training", "evaluation"], *, write: bool) -> None:
        self.folder, self.kind, self.write = folder, kind, write
        self.lines = Lines(folder / SAMPLES, "samples", write=write)

    def add(
        self, iteration: int, name: int, picture: Tensor, *, prompt: str, reward: float, parts: Mapping[str, float]
    ) -> dict[str, Any]:
        """A picture [3,H,W] in [0, 1] and what it scored; NaN, no score, is written as null. Returns its row."""
        file = self.folder / "samples" / str(iteration) / f"{PREFIXES[self.kind]}{name}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        save(picture, file)
        row = {"iteration": iteration, "id": name, "prompt": prompt, "reward": reward, "parts": parts}
        row |= {"file": file.relative_to(self.folder).as_posix(), "kind": self.kind}
        self.lines.add(row)
        return row

    def forget(self, made_again: Callable[[int], bool]) -> None:
        """Removes the rows and pictures of these iterations; a picture that was saved before its row was, too."""
        if not self.write:
            return
        self.lines.keep(lambda row: row["kind"] != self.kind or not made_again(row["iteration"]))
        for folder in list((self.folder / "samples").glob("*")):
            if folder.name.isdecimal() and made_again(int(folder.name)):
                for file in self.files(int(folder.name)).values():
                    file.unlink()
                if not any(folder.iterdir()):
                    folder.rmdir()

    def files(self, iteration: int) -> dict[int, Path]:
        """The pictures of an iteration by their ids."""
        prefix = PREFIXES[self.kind]
        found = (self.folder / "samples" / str(iteration)).glob(f"{prefix}*.webp")
        names = ((file.stem.removeprefix(prefix), file) for file in found)
        return {int(name): file for name, file in names if name.isdecimal()}


def list_pictures(folder: Path, rows: Iterable[tuple[int, str, str]]) -> None:
    """Writes samples.jsonl anew for pictures of no run: (id, prompt, file in the folder) each."""
    lines = Lines(folder / SAMPLES, "samples", write=True)
    lines.path.unlink(missing_ok=True)
    for name, prompt, file in rows:
        lines.add({"id": name, "prompt": prompt, "file": file})
