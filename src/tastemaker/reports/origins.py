"""config.yaml line by line: every setting with who set it, which stands behind it as a comment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml


class Line(NamedTuple):
    """A line of config.yaml; of a part with settings of its own the value is None."""

    text: str
    depth: int
    key: str
    value: Any
    note: str


def lines(text: str) -> list[Line]:
    """config.yaml, one setting a line; none where a text goes over several lines or somebody has edited it."""
    found = []
    try:
        for line in text.splitlines():
            body, mark, note = line.rpartition("  # ")
            try:
                ((key, value),) = yaml.safe_load(body if mark else line).items()
            except yaml.YAMLError:  # the mark stands inside a text, which is cut there
                ((key, value),), note = yaml.safe_load(line).items(), ""
            note = note if mark else ""
            found.append(Line(line, (len(line) - len(line.lstrip())) // 2, str(key), value, note))
    except (yaml.YAMLError, AttributeError, ValueError):
        return []
    return found


def origins(found: Sequence[Line]) -> dict[str, str]:
    """Path of a setting -> the note behind it."""
    above: list[str] = []
    notes = {}
    for line in found:
        above = [*above[: line.depth], line.key]
        notes[".".join(above)] = line.note
    return notes
