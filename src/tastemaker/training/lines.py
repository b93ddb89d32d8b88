"""Files of JSON lines: what a run writes down row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tastemaker.reports.rows import read_lines as read_lines

SCHEMA = 1


class Lines:
    """A jsonl file whose first line is its schema; lines behind a cursor can be cut off, and one replaced."""

    def __init__(self, path: Path, kind: str, *, write: bool) -> None:
        self.path, self.kind, self.write = path, kind, write

    def add(self, row: Mapping[str, Any]) -> None:
        if not self.write:
            return
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps({"schema": SCHEMA, "kind": self.kind}) + "\n")
            file.write(json.dumps(_plain(row), allow_nan=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        return read_lines(self.path)

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Leaves only the rows that are wanted; a half-written last line goes too."""
        if not self.write or not self.path.exists():
            return
        rows = [row for row in self.rows() if wanted(row)]
        head = json.dumps({"schema": SCHEMA, "kind": self.kind})
        part = self.path.with_suffix(".part")
        part.write_text("\n".join([head, *(json.dumps(row, allow_nan=False) for row in rows)]) + "\n", encoding="utf-8")
        part.replace(self.path)


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
