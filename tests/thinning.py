"""Which of many parameters are tried for each change; the others are left to `make test-slow`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(names: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """All of them as parameters, those that are not among `quick` marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow, id=_id(name)) for name in names]


def thinned(names: Iterable[Any], every: int, first: int = 0) -> list[Any]:
    """All of them as parameters; of so many in a row one is quick."""
    found = list(names)
    return slow_but(found, found[first::every])


def _id(name: Any) -> str:
    return "-".join(map(str, name)) if isinstance(name, tuple) else str(name)
