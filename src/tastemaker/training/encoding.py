"""Plain data as JSON with its tensors beside it, exactly: what comes back is equal, of the same types, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MARK = "$"  # {"$tuple": [...]}, {"$float": "nan"}, {"$tensor": name}, {"$dict": [[key, value], ...]}


def encoded(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """The tree for `json.dumps`, and its tensors by name.

    None, bool, int, float, str, tensors, and lists, tuples and dicts of them. Anything else, a NamedTuple or a numpy
    number too, is refused with its place: it would come back as something else.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, "", tensors), tensors


def decoded(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encoded` was given."""
    if type(tree) is list:
        return [decoded(value, tensors) for value in tree]
    if type(tree) is not dict:
        return tree
    for mark, value in tree.items():
        if mark == "$tuple":
            return tuple(decoded(part, tensors) for part in value)
        if mark == "$float":
            return float(value)
        if mark == "$tensor":
            return tensors[value]
        if mark == "$dict":
            return {decoded(key, tensors): decoded(part, tensors) for key, part in value}
    return {key: decoded(value, tensors) for key, value in tree.items()}


def _encode(tree: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    kind = type(tree)
    if tree is None or kind in (bool, int, str):
        return tree
    if kind is float:
        # Python writes the shortest text that reads back as the same float; JSON has none for these three
        return tree if math.isfinite(tree) else {"$float": repr(tree)}
    if isinstance(tree, Tensor):
        while place in tensors:  # {"a/b": t, "a": {"b": t}}
            place += "'"
        tensors[place] = tree.detach()
        return {"$tensor": place}
    if kind is list or kind is tuple:
        values = [_encode(value, f"{place}/{k}", tensors) for k, value in enumerate(tree)]
        return values if kind is list else {"$tuple": values}
    if kind is dict:
        if all(type(key) is str and not key.startswith(_MARK) for key in tree):
            return {key: _encode(value, f"{place}/{key}" if place else key, tensors) for key, value in tree.items()}
        pairs = [(_encode(key, place, tensors), _encode(v, f"{place}/{key}", tensors)) for key, v in tree.items()]
        return {"$dict": pairs}
    raise ValueError(
        f"{place or 'the data'} is a {kind.__name__}, which a checkpoint cannot keep. "
        "Give it as None, numbers, text, tensors, or lists, tuples and dicts of them."
    )
