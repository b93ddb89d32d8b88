"""Prompts: what a picture is asked for, and where the askings come from.

`prompts.py` holds the rows of one draw, `sources.py` the sources and their table, `words.py` the named sets.
`files.py`, `archives.py` and `hub.py` read files, `functions.py` finds users' functions. Standard library only.
"""

from tastemaker.prompts.prompts import Prompts, PromptSource
from tastemaker.prompts.sources import TABLE, source

__all__ = ["TABLE", "PromptSource", "Prompts", "source"]
