"""Prompts: what a picture is asked for, and where the askings come from.

`prompts.py` holds the rows of one draw, `sources.py` the sources and their table, `functions.py` the functions that
users name by file. Standard library only.
"""

from tastemaker.prompts.prompts import Prompts, PromptSource
from tastemaker.prompts.sources import TABLE, source

__all__ = ["TABLE", "PromptSource", "Prompts", "source"]
