"""The files of the built-in models, the judge and the CLIP, checked against the sums they were committed with."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

SUMS = "SHA256SUMS.json"
JUDGE = "judge.safetensors"
TASTE = "aesthetic.safetensors"  # the head beside the CLIP


@cache
def folder() -> Path:
    """The base model in diffusers layout. Errors: ValueError naming the file that is missing or not as committed."""
    here = Path(__file__).parent
    return _checked(here / "base", here / SUMS, "model")


@cache
def flow() -> Path:
    """The second model, a flow, without an autoencoder of its own. Errors: as `folder`."""
    place = Path(__file__).parent / "flow"
    return _checked(place, place / SUMS, "model")


@cache
def judge() -> Path:
    """The judge's weights. Errors: ValueError where the file is missing or not as committed."""
    place = Path(__file__).parent / "judge"
    return _checked(place, place / SUMS, "judge") / JUDGE


@cache
def clip() -> Path:
    """The CLIP in transformers layout, with its head for taste beside it. Errors: as `folder`."""
    place = Path(__file__).parent / "clip"
    return _checked(place, place / SUMS, "CLIP")


def _checked(place: Path, table: Path, what: str) -> Path:
    """The folder, if every file of the table is in it, whole."""
    if not table.is_file():
        raise ValueError(f"the built-in {what} is incomplete: {table} is missing. Install tastemaker again.")
    sums: dict[str, str] = json.loads(table.read_text(encoding="utf-8"))
    for name, expected in sums.items():
        path = place / name
        if not path.is_file():
            raise ValueError(f"the built-in {what} is incomplete: {path} is missing. Install tastemaker again.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"the built-in {what} is damaged: {path} is not as released. Install tastemaker again.")
    return place
