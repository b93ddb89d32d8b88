"""How a weighted sum of rewards is written: read without torch, and without looking any name up.

jpeg_proxy:0.3,my_reward.py:sharp:-1,brightness                      a text; without a weight it is 1
jpeg_proxy:0.3,colour:2{colour: blue, clip: [0, 1]}                  in braces what stands beside a name in YAML
{sum: [{name: jpeg_proxy, weight: 0.3}, {name: colour, colour: blue}], standardise: group}                  YAML
{"jpeg_proxy": 0.3, judge: 1}    [("jpeg_proxy", 0.3), (judge, {"weight": 1, "at_least": -2})]              Python

Of a term `weight`, `clip`, `at_least` and `floor` are the sum's; other keys are the reward's own settings, and one of
its own that has such a name stands in `settings: {weight: 2}`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from tastemaker.prompts.functions import is_function_spec

Term = dict[str, Any]  # name: a reward's name or the reward itself; weight; what else the sum does with it; settings

OPTIONS = ("weight", "clip", "at_least", "floor")
STANDARDISE = ("group", "iteration")
WEIGHTED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)


def split(text: str) -> list[str]:
    """The parts between commas; a comma in brackets of any kind belongs to its part."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def is_sum(spec: Any) -> bool:
    """Whether this is written as a sum: with a comma, a weight, braces, in parentheses, with `sum`, or as a list."""
    if isinstance(spec, str):
        return len(split(spec)) > 1 or any((WEIGHTED.fullmatch(spec), _braced(spec)[1], _bare(spec) != spec.strip()))
    if isinstance(spec, Mapping):
        return "sum" in spec or is_sum(spec.get("name", ""))
    return isinstance(spec, list | tuple)


def whole(spec: Any, *, key: str) -> dict[str, Any]:
    """A sum as a recipe writes it, `{sum: terms}`, with `standardise` where that is said."""
    said = spec["standardise"] if _is_whole(spec) and "standardise" in spec else ""
    if said not in ("", None, "none", *STANDARDISE):
        raise ValueError(f"{key}.standardise is {said!r}; it is one of {', '.join(STANDARDISE)}, or none.")
    return {"sum": read(spec, key=key)} | ({} if said == "" else {"standardise": None if said == "none" else said})


def read(spec: Any, *, key: str) -> list[Term]:
    """The terms, each {name, weight, settings}. Errors: ValueError that names `key` as the user typed it."""
    if isinstance(spec, str):
        terms = [_of_text(text, spec, key) for text in split(_bare(spec))]
    elif _is_whole(spec):
        part = "sum" if "sum" in spec else "name"
        for other in (one for one in spec if one not in (part, "standardise")):
            raise ValueError(
                f"{key}.{other}: a sum has no setting of its own but `standardise`. Those of a term stand beside its "
                "name, in a recipe: `reward: {sum: [{name: NAME, weight: 0.5, SETTING: VALUE}, ...]}`."
            )
        return read(spec[part], key=key)
    elif isinstance(spec, Mapping):
        terms = [_of_pair(name, weight, key) for name, weight in spec.items()]
    elif isinstance(spec, list | tuple):
        terms = [_of_entry(one, key) for one in spec]
    else:
        terms = [_term({"name": spec}, key)]
    if not terms:
        raise ValueError(f"{key}: found a sum without terms; give at least one, such as `jpeg_proxy:1`.")
    return terms


def reward_of(term: Mapping[str, Any]) -> Any:
    """The reward of a term as it stands alone: its name, or its name and its own settings."""
    own = {name: value for name, value in term.items() if name not in ("name", "settings", *OPTIONS)}
    own |= term.get("settings", {})
    return {"name": term["name"], **own} if own else term["name"]


def as_text(terms: Iterable[Mapping[str, Any]]) -> str:
    """Terms in a line, to be read by people: `jpeg_proxy:0.3,colour:1 (colour blue)`."""
    return ",".join(_said(**one) for one in terms)


def _said(name: Any, weight: float, **settings: Any) -> str:
    more = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{name}:{weight:g}" + (f" ({more})" if more else "")


def _is_whole(spec: Any) -> bool:
    return isinstance(spec, Mapping) and ("sum" in spec or is_sum(spec.get("name", "")))


def _bare(text: str) -> str:
    """Without the parentheses around a sum that stands in a list of rewards."""
    text = text.strip()
    return text[1:-1] if text.startswith("(") and text.endswith(")") and len(split(text)) == 1 else text


def _braced(text: str) -> tuple[str, str]:
    """What stands before the braces at the end, and the braces."""
    text = text.strip()
    head, brace, rest = text.partition("{")
    return (head.strip(), brace + rest) if brace and head and text.endswith("}") else (text, "")


def _of_text(text: str, whole: str, key: str) -> Term:
    if not text:
        raise ValueError(f"{key}: a term is missing in `{whole}`: write NAME:WEIGHT,NAME:WEIGHT.")
    text, braces = _braced(text)
    options = _options(text, braces, key) if braces else {}
    if found := WEIGHTED.fullmatch(text):
        return _of_pair(found[1], {"weight": found[2], **options}, key)
    name, colon, rest = text.rpartition(":")
    if colon and not (is_function_spec(text) and name.endswith(".py")):
        return _of_pair(name, rest, key)  # something else stands in the place of the weight
    return _of_pair(text, options, key)


def _options(name: str, braces: str, key: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(braces)
    except yaml.YAMLError as error:
        raise ValueError(f"{key}: `{braces}` behind `{name}` is not of the form {{KEY: VALUE, KEY: VALUE}}.") from error
    assert isinstance(found, dict)
    for unsaid in (one for one, value in found.items() if value is None and ":" in str(one)):
        raise ValueError(f"{key}: `{unsaid}` behind `{name}` needs a blank after its colon: {{KEY: VALUE}}.")
    return found


def _of_entry(entry: Any, key: str) -> Term:
    if isinstance(entry, str):
        return _of_text(entry, entry, key)
    if isinstance(entry, Mapping):
        if "name" not in entry:
            raise ValueError(f"{key}: a term of a sum is {{name: NAME, weight: NUMBER}}; found {dict(entry)!r}.")
        return _term(entry, key)
    if isinstance(entry, list | tuple):
        if len(entry) != 2:
            raise ValueError(f"{key}: a term of a sum is a pair (reward, weight); found {len(entry)} entries.")
        return _of_pair(entry[0], entry[1], key)
    return _term({"name": entry}, key)


def _of_pair(reward: Any, weight: Any, key: str) -> Term:
    """A reward and its weight, or what all the sum does with it."""
    named = reward if isinstance(reward, Mapping) else {"name": reward}
    return _term({**named, **(weight if isinstance(weight, Mapping) else {"weight": weight})}, key)


def _term(entry: Mapping[str, Any], key: str) -> Term:
    """A term in its one form: numbers are numbers, and what is not said does not stand there."""
    name, own = entry["name"], {one: entry[one] for one in entry if one not in ("name", "settings", *OPTIONS)}
    more = entry.get("settings") or {}
    if not isinstance(more, Mapping) or own.keys() & more.keys():
        raise ValueError(f"{key}: `settings` of `{name}` is {more!r}; it holds what does not stand beside its name.")
    own |= {one: value for one, value in more.items() if one not in ("name", "settings", *OPTIONS)}
    hidden = {one: value for one, value in more.items() if one not in own}
    term: Term = {"name": name, "weight": _number(entry.get("weight", 1.0), f"{key}: the weight of `{name}`")}
    if entry.get("clip") is not None:
        term["clip"] = _limits(entry["clip"], f"{key}: the clip of `{name}`")
    for limit in ("at_least", "floor"):
        if entry.get(limit) is not None:
            term[limit] = _number(entry[limit], f"{key}: {limit} of `{name}`")
    if "at_least" in term and ("clip" in term or term["weight"] <= 0):
        raise ValueError(
            f"{key}: at_least of `{name}` costs weight x what is missing: the weight is positive, and there is no clip."
        )
    return term | own | ({"settings": hidden} if hidden else {})


def _limits(found: Any, what: str) -> list[float | None]:
    """[low, high], of which one may be open."""
    said = f"{what} is {found!r}; it is [LOW, HIGH], and null leaves one open."
    if not isinstance(found, list | tuple) or len(found) != 2 or found[0] is found[1] is None:
        raise ValueError(said)
    low, high = (None if one is None else _number(one, what) for one in found)
    if low is not None and high is not None and not low < high:
        raise ValueError(said)
    return [low, high]


def _number(found: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {found!r}; it is a finite number.")
    return number
