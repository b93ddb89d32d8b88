"""How a weighted sum of rewards is written: read without torch, and without looking any name up.

jpeg_proxy:0.3,my_reward.py:sharp:-1,brightness                      a text; without a weight it is 1
{sum: [{name: jpeg_proxy, weight: 0.3}, {name: colour, colour: blue}]}      YAML; other keys are the term's settings
{"jpeg_proxy": 0.3, judge: 1}    [("jpeg_proxy", 0.3), (judge, 1)]          Python
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tastemaker.prompts.functions import is_function_spec

Term = dict[str, Any]  # name: a reward's name or the reward itself; weight; settings

WEIGHTED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)


def is_sum(spec: Any) -> bool:
    """Whether this is written as a sum: with a comma, a weight, `sum`, or as a list."""
    if isinstance(spec, str):
        return "," in spec or WEIGHTED.fullmatch(spec) is not None
    if isinstance(spec, Mapping):
        return "sum" in spec or is_sum(spec.get("name", ""))
    return isinstance(spec, list | tuple)


def read(spec: Any, *, key: str) -> list[Term]:
    """The terms, each {name, weight, settings}. Errors: ValueError that names `key` as the user typed it."""
    if isinstance(spec, str):
        terms = [_of_text(text.strip(), spec, key) for text in spec.split(",")]
    elif isinstance(spec, Mapping) and ("sum" in spec or is_sum(spec.get("name", ""))):
        part = "sum" if "sum" in spec else "name"
        for other in (one for one in spec if one != part):
            raise ValueError(
                f"{key}.{other}: a sum has no settings of its own. Those of a term stand beside its name, in a recipe: "
                "`reward: {sum: [{name: NAME, weight: 0.5, SETTING: VALUE}, ...]}`."
            )
        return read(spec[part], key=key)
    elif isinstance(spec, Mapping):
        terms = [_term(name, weight, key) for name, weight in spec.items()]
    elif isinstance(spec, list | tuple):
        terms = [_of_entry(one, key) for one in spec]
    else:
        terms = [_term(spec, 1.0, key)]
    if not terms:
        raise ValueError(f"{key}: found a sum without terms; give at least one, such as `jpeg_proxy:1`.")
    return terms


def as_text(terms: Iterable[Mapping[str, Any]]) -> str:
    """Terms in a line, to be read by people: `jpeg_proxy:0.3,colour:1 (colour blue)`."""
    return ",".join(_said(**one) for one in terms)


def _said(name: Any, weight: float, **settings: Any) -> str:
    more = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{name}:{weight:g}" + (f" ({more})" if more else "")


def _of_text(text: str, whole: str, key: str) -> Term:
    if not text:
        raise ValueError(f"{key}: a term is missing in `{whole}`: write NAME:WEIGHT,NAME:WEIGHT.")
    if found := WEIGHTED.fullmatch(text):
        return _term(found[1], found[2], key)
    name, colon, rest = text.rpartition(":")
    if colon and not (is_function_spec(text) and name.endswith(".py")):
        return _term(name, rest, key)  # something else stands in the place of the weight
    return _term(text, 1.0, key)


def _of_entry(entry: Any, key: str) -> Term:
    if isinstance(entry, str):
        return _of_text(entry, entry, key)
    if isinstance(entry, Mapping):
        settings = dict(entry)
        if "name" not in settings:
            raise ValueError(f"{key}: a term of a sum is {{name: NAME, weight: NUMBER}}; found {dict(entry)!r}.")
        return _term(settings.pop("name"), settings.pop("weight", 1.0), key) | settings
    if isinstance(entry, list | tuple):
        if len(entry) != 2:
            raise ValueError(f"{key}: a term of a sum is a pair (reward, weight); found {len(entry)} entries.")
        reward, weight = entry
        if isinstance(reward, Mapping):
            return _of_entry({**reward, "weight": weight}, key)
        return _term(reward, weight, key)
    return _term(entry, 1.0, key)


def _term(name: Any, weight: Any, key: str) -> Term:
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}: the weight of `{name}` is {weight!r}; it is a finite number.")
    return {"name": name, "weight": number}
