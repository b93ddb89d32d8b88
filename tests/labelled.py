"""Pictures of the built-in world with labels that a rule gives, as files that users have."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tastemaker.shapes import material
from tastemaker.shapes.captions import caption


@cache
def drawn(count: int, seed: int = 5) -> tuple[Tensor, tuple[str, ...]]:
    """Pictures [N,3,64,64] in [0,1] and their captions."""
    pictures, scenes = material.drawn(count, seed, progress=False)
    return pictures.permute(0, 3, 1, 2).float() / 255, tuple(caption(scene) for scene in scenes)


def taste(pictures: Tensor) -> Tensor:
    """The hidden rule [N]: dark pictures are liked, in units of a standard deviation."""
    dark = -pictures.mean((1, 2, 3))
    return (dark - dark.mean()) / dark.std()


def folder(place: Path, count: int, seed: int = 5) -> tuple[list[str], tuple[str, ...], Tensor]:
    """The pictures as PNG files: their names, captions and tastes."""
    pictures, captions = drawn(count, seed)
    place.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(place / name)
    return names, captions, taste(pictures)


def table(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A .csv or .jsonl file."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        if file.suffix == ".csv":
            csv.writer(opened).writerows([columns, *rows])
        else:
            opened.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    return str(file)


def ratings(place: Path, count: int, seed: int = 5, noise: float = 0.3) -> str:
    """ratings.csv beside the pictures: the taste and what people add to it."""
    names, captions, tastes = folder(place, count, seed)
    heard = tastes + noise * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    rows = [
        [name, round(float(5 + 2 * value), 2), text] for name, value, text in zip(names, heard, captions, strict=True)
    ]
    return table(place / "ratings.csv", ["image", "rating", "prompt"], rows)


def votes(place: Path, count: int, seed: int = 5) -> str:
    """votes.jsonl beside the pictures, neighbours against each other; every tenth is a tie."""
    names, captions, tastes = folder(place, count, seed)
    rows = []
    for k in range(0, count - 1, 2):
        vote = "tie" if k % 20 == 0 else "left" if tastes[k] > tastes[k + 1] else "right"
        rows.append([captions[k], names[k], names[k + 1], vote])
    return table(place / "votes.jsonl", ["prompt", "left", "right", "vote"], rows)
