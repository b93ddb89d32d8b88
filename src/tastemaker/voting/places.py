"""The folders that are voted on, as they were named: one, or two that are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tastemaker.voting.pictures import SAMPLES

EVALUATION = "evaluation.json"


def places(named: Sequence[Path]) -> list[Path]:
    """One folder or two; an evaluation's own folder stands for its two models, the base first.

    Errors: ValueError where they are none or too many, or the same one twice.
    """
    if not 1 <= len(named) <= 2:
        raise ValueError(f"vote takes one folder, or two that are compared; found {len(named) or 'none'}.")
    if len(named) == 2 and named[0].resolve() == named[1].resolve():
        raise ValueError(f"{named[0]} is named twice: name two folders, or one to vote on pairs within it.")
    folder = named[0]
    return _models(folder) if len(named) == 1 and (folder / EVALUATION).is_file() else list(named)


def titles(folders: Sequence[Path]) -> list[str]:
    """What two folders are called when they are told apart: their own names, with as much more as that takes."""
    parts = [folder.absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts))):
        found = ["/".join(one[-depth:]) for one in parts]
        if len(set(found)) == len(found):
            return found
    return [str(folder) for folder in folders]


def _models(folder: Path) -> list[Path]:
    """The two folders of an evaluation's pictures."""
    found = sorted(one.parent for one in folder.glob(f"images/*/{SAMPLES}"))
    if len(found) != 2:
        many = f"the pictures of {len(found)} models" if found else "no pictures with their prompts"
        raise ValueError(
            f"{folder} holds {many}. Name two folders of its images/, as `tastemaker evaluate --output` leaves them."
        )
    try:
        rows = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))["rows"]
        bases = {re.sub(r"[^\w.-]+", "-", row["base"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / EVALUATION} is not what `tastemaker evaluate` writes: {error!r}.") from error
    return sorted(found, key=lambda one: one.name not in bases)
