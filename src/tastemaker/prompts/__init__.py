"""Prompts: what a picture is asked for, and where the askings come from.

`prompts.py` holds the rows of one draw, `sources.py` the sources and their table, `words.py` the named sets.
`files.py`, `archives.py` and `hub.py` read files, `functions.py` finds users' functions. Standard library only.

Every set of the table is a function here that names it, with its settings: `prompts=tm.prompts.counting(high=5)`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from tastemaker.prompts.prompts import Prompts, PromptSource
from tastemaker.prompts.sources import TABLE, source

__all__ = ["TABLE", "PromptSource", "Prompts", "source"]


def __getattr__(name: str) -> Callable[..., str | dict[str, Any]]:
    if name not in TABLE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_setting, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *TABLE})


def _setting(set_name: str, /, **settings: Any) -> str | dict[str, Any]:
    """A set as `train` and config.yaml name it. Errors: ValueError at once when a setting is not one of the set's."""
    source({"name": set_name, **settings}, key=f"prompts.{set_name}")
    return {"name": set_name, **settings} if settings else set_name
