"""The built-in model's files, checked against the sums they were committed with."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

SUMS = "SHA256SUMS.json"


@cache
def folder() -> Path:
    """The base model in diffusers layout. Errors: ValueError naming the file that is missing or not as committed."""
    base = Path(__file__).parent / "base"
    sums: dict[str, str] = json.loads((Path(__file__).parent / SUMS).read_text(encoding="utf-8"))
    for name, expected in sums.items():
        path = base / name
        if not path.is_file():
            raise ValueError(f"the built-in model is incomplete: {path} is missing. Install tastemaker again.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"the built-in model is damaged: {path} is not as released. Install tastemaker again.")
    return base
