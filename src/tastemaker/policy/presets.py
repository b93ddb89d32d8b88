"""What known models of the hub bring: the values of `presets.yaml`, which has the reason beside each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_suffix(".yaml")


def preset(model: str) -> dict[str, Any]:
    """The defaults of a known hub id, in the form of a tastemaker.json; nothing for others."""
    found = _presets().get(model)
    if found is None:
        return {}
    without = {name: {"guidance": 1.0} for name in found.get("unguided", ())}
    return {"defaults": found["defaults"], "algorithms": without}


@cache
def _presets() -> dict[str, dict[str, Any]]:
    """Hub id -> its family's entry."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {model: entry for entry in entries for model in entry["models"]}
