"""Folders of tiny pictures to vote on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from tastemaker.voting.pictures import Picture
from tastemaker.voting.plan import Shown


def picture(file: Path, shade: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """A picture of one colour; other shades are other bytes, and equally many."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade // 256 % 256, 90)).save(file)
    return file


def sampled(folder: Path, prompts: Sequence[str], *, first: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """As `tastemaker sample` leaves them: a prompt a picture, each of another shade from `first` on."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Mapping[str, object]] = [{"schema": 1, "kind": "samples"}]
    for k, prompt in enumerate(prompts):
        picture(folder / f"{k}.png", first + k, size)
        rows.append({"id": k, "prompt": prompt, "file": f"{k}.png"})
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def names(pairs: Sequence[Shown]) -> list[tuple[str, str]]:
    """Left and right by their names in their folders."""
    return [(one.left.name, one.right.name) for one in pairs]


def told(found: Sequence[Picture]) -> list[tuple[str, str]]:
    """Prompts and names."""
    return [(one.prompt, one.name) for one in found]
