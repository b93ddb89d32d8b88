"""Other programs' names for what Tastemaker does: scripts and configs that keep running.

`trl.py` has TRL's classes, `ddpo_pytorch.py` and `alignprop.py` read the settings of those two repositories. What each
name becomes, and why some are refused, stands in `fates.py` and, as tables, in docs/guides/coming_from.md.
"""

from importlib import import_module
from typing import Any

# name -> "module:attribute" or "module", imported when it is asked for.
PUBLIC = {
    "DDPOConfig": "tastemaker.compat.configs:DDPOConfig",
    "DDPOTrainer": "tastemaker.compat.trl:DDPOTrainer",
    "AlignPropConfig": "tastemaker.compat.configs:AlignPropConfig",
    "AlignPropTrainer": "tastemaker.compat.trl:AlignPropTrainer",
    "DefaultDDPOStableDiffusionPipeline": "tastemaker.compat.pipeline:DefaultDDPOStableDiffusionPipeline",
    "alignprop": "tastemaker.compat.alignprop",
    "ddpo_pytorch": "tastemaker.compat.ddpo_pytorch",
    "trl": "tastemaker.compat.trl",
}

__all__ = [*PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = PUBLIC[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
