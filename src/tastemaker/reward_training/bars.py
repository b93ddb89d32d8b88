"""Progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def bar(items: Sequence[Item], what: str, *, unit: int = 1) -> Iterator[Item]:
    """The items one by one, with a bar where there is a terminal; each stands for `unit` of what is counted."""
    shown = tqdm(total=len(items) * unit, desc=f"  {what}", leave=False, disable=not sys.stderr.isatty())
    try:
        for item in items:
            yield item
            shown.update(unit)
    finally:
        shown.close()
