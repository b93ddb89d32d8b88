"""Rewards: functions from pictures and prompts to one number a picture.

`named` answers a wrong name without loading torch.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker.prompts.functions import bound, is_function_spec, load_function, unknown
from tastemaker.rewards.terms import is_sum

if TYPE_CHECKING:
    from tastemaker.rewards.reward import NamedReward

# name -> "module:function or class"
TABLE: dict[str, str] = {
    "jpeg_compressibility": "tastemaker.rewards.jpeg:compressibility",
    "jpeg_incompressibility": "tastemaker.rewards.jpeg:incompressibility",
    "shapes_alignment": "tastemaker.shapes.oracle:alignment",
    "jpeg_proxy": "tastemaker.rewards.jpeg_proxy:compressibility",
    "shapes_judge": "tastemaker.shapes.judge:Judge",
    "shapes_taste": "tastemaker.shapes.taste:taste",
    "colour": "tastemaker.shapes.colour:Colour",
    "brightness": "tastemaker.rewards.pixels:brightness",
    "smoothness": "tastemaker.rewards.pixels:smoothness",
    "aesthetic": "tastemaker.rewards.aesthetic:Aesthetic",
    "clip_score": "tastemaker.rewards.clip:ClipScore",
    "pickscore": "tastemaker.rewards.preference:PickScore",
    "hpsv2": "tastemaker.rewards.preference:HPSv2",
    "image_reward": "tastemaker.rewards.image_reward:ImageReward",
    "counting": "tastemaker.rewards.detection:Counting",
    "ocr": "tastemaker.rewards.text:Ocr",
    "mirror_symmetry": "tastemaker.rewards.symmetry:mirror_symmetry",
    "rotational_symmetry": "tastemaker.rewards.symmetry:rotational_symmetry",
    "rotation_invariance": "tastemaker.rewards.symmetry:RotationInvariance",
    "thumbnail": "tastemaker.rewards.symmetry:Thumbnail",
    "vlm": "tastemaker.rewards.vlm:Vlm",
    "remote": "tastemaker.rewards.remote:Remote",
    "isolated": "tastemaker.rewards.environment:Isolated",
    "trained": "tastemaker.rewards.trained:Trained",
}
# Those of them whose score has a gradient to the picture; algorithms that differentiate the reward take no others.
DIFFERENTIABLE: frozenset[str] = frozenset(
    {"jpeg_proxy", "shapes_judge", "colour", "brightness", "smoothness"}
    | {"aesthetic", "clip_score", "pickscore", "hpsv2"}
    | {"trained", "image_reward", "mirror_symmetry", "rotational_symmetry", "rotation_invariance", "thumbnail"}
)

# Public names that need torch: module:attribute, loaded when they are asked for.
_LAZY: dict[str, str] = {
    "NamedReward": "tastemaker.rewards.reward:NamedReward",
    "Remote": "tastemaker.rewards.remote:Remote",
    "Recorded": "tastemaker.rewards.recorded:Recorded",
    "Reward": "tastemaker.rewards.reward:Reward",
    "Scores": "tastemaker.rewards.reward:Scores",
    "Scoring": "tastemaker.rewards.scoring:Scoring",
    "Sum": "tastemaker.rewards.combine:Sum",
    "Vlm": "tastemaker.rewards.vlm:Vlm",
    "adapt": "tastemaker.rewards.reward:adapt",
    "check": "tastemaker.rewards.reward:check",
    "isolated": "tastemaker.rewards.environment:isolated",
    "score": "tastemaker.rewards.reward:score",
}

__all__ = ["DIFFERENTIABLE", "TABLE", "named", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(_LAZY[name])


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def named(spec: Any, *, key: str = "reward") -> "NamedReward":
    """The reward that a user means: a name of the table, `path/to/file.py:function`, the folder of a trained reward, a
    function, an object, or a sum.

    A class is built without arguments. Settings of a function, arguments that have a default, or of a class come as a
    dict: {"name": "file.py:sharpness", "weight": 2}. How a sum is written: `tastemaker.rewards.terms`.
    Errors: ValueError that names `key` as the user typed it.
    """
    if is_sum(spec):
        return _load(_LAZY["adapt"])(_load(_LAZY["Sum"])(spec, key=key))
    settings: dict[str, Any] = {}
    spec = str(spec) if isinstance(spec, Path) else spec
    if isinstance(spec, Mapping):
        settings = dict(spec)
        spec = settings.pop("name", None)
        if not isinstance(spec, str):
            raise ValueError(f"{key}: found settings without a name: give {key}.name, such as {next(iter(TABLE))}.")
    name, found, own = _found(spec, key) if isinstance(spec, str) else (None, spec, {})
    settings = {**own, **settings}
    if settings:
        made = bound(found, settings, key=key, name=str(name), taken=0 if inspect.isclass(found) else 2)
        found = _built(made, settings, key) if inspect.isclass(found) else made
    from tastemaker.rewards.reward import adapt  # torch, only once the name is right

    return adapt(found, name)


def _built(made: Callable[[], Any], settings: Mapping[str, Any], key: str) -> Any:
    """An object of a class; what it says of its settings, in the user's words."""
    try:
        return made()
    except ValueError as error:
        dot = "." if str(error).partition(" ")[0] in settings else ": "
        raise ValueError(f"{key}{dot}{error}") from error


def _found(spec: str, key: str) -> tuple[str, Any, dict[str, Any]]:
    """The name of a reward, what it names, and the settings that it says itself."""
    if spec in TABLE:
        return spec, _load(TABLE[spec]), {}
    if is_function_spec(spec):
        return spec.rpartition(":")[2], load_function(spec, key=key), {}
    if (folder := Path(spec).expanduser()).is_dir():
        return folder.resolve().name, _load(TABLE["trained"]), {"folder": spec}
    also = "`path/to/file.py:function` for a reward of your own, or the folder of one that `train-reward` made"
    raise unknown(spec, TABLE, key=key, kind="reward", also=also)
