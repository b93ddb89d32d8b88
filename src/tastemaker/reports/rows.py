"""A run's files of JSON lines, read as they are: of a run that was killed, up to the line that was half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of one of a run's jsonl files, without the schema line and without a half-written last one."""
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if isinstance(row, dict) and "schema" not in row:
            rows.append(row)
    return rows
