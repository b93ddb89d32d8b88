"""From names, recipes and flags to frozen dataclasses: paper < model < recipe < flags."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tastemaker.build import Where, attribute, build, entry_of, plain, suggest
from tastemaker.layers import ELSEWHERE, RESOLVED, SHORT, Layer, Mark, Switch, layer, leave_open, read_recipe, stack
from tastemaker.policy.load import BUILT_IN, SAYS, folder
from tastemaker.policy.presets import preset
from tastemaker.prompts.sources import TABLE as PROMPTS
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.rewards.terms import is_sum, whole

if TYPE_CHECKING:
    from tastemaker.settings import RunSettings

RECIPES = Path(__file__).parent / "recipes"
FULL_LEARNING_RATE = 1e-5  # without LoRA: what the seed systems' papers use on the whole network

# A model may state these for all algorithms; one that has no such field passes over them.
SHARED = ("steps", "guidance")


@dataclass(frozen=True)
class Resolved:
    """A run with nothing left open; `origin` says of every path of `tree` where its value comes from."""

    name: str  # the algorithm's
    algorithm: Any
    run: RunSettings
    tree: dict[str, Any]
    origin: dict[str, str]
    where: Where  # the algorithm's settings, as they were written


def algorithms() -> Mapping[str, str]:
    """The table of algorithms, name -> "module:Class"."""
    table: Mapping[str, str] = importlib.import_module("tastemaker.algorithms").TABLE
    return table


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def find(target: str) -> Path | None:
    """The recipe file of a name or path, None for an algorithm; a wrong name is a ValueError. Imports nothing heavy."""
    if target in algorithms():
        return None
    if target in recipes():
        return recipes()[target]
    if target.endswith((".yaml", ".yml")) or os.sep in target:
        path = Path(target).expanduser()
        if path.is_file():
            return path
        raise ValueError(f"there is no recipe file {target} (looked from {Path.cwd()}).")
    near = suggest(target, [*algorithms(), *recipes()])
    guess = f"  Did you mean `{near}`?" if near else ""
    raise ValueError(
        f"{target!r} is neither an algorithm nor a recipe.{guess}  Algorithms: {', '.join(algorithms())}.  "
        f"Recipes: {', '.join(recipes()) or 'none yet'}, or the path of a .yaml file."
    )


def algorithm_of(target: str) -> str:
    """The algorithm of a name, recipe or recipe's path."""
    return _algorithm_name(target, _asked(target, {}, "flag"))


def asked(target: object, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe and the flags say before the model has had its say, as a tree that nobody has checked yet."""
    return stack(_asked(target, flags, "flag"))[0]


def resolve(
    target: object, flags: Mapping[str, Any], model_defaults: Mapping[str, Any], *, spelling: str = "flag"
) -> Resolved:
    """All settings of a run.

    `target`: the name of an algorithm or recipe, a recipe's path, or an algorithm object, whose `given` fields stay.
    `flags`: a tree as `flags.parse` makes it, or plain keyword arguments (`spelling="argument"`).
    `model_defaults`: what the model brings (`brought`).
    Errors: ValueError with the key as the user wrote it and, for a recipe, the line.
    """
    from tastemaker.settings import RunSettings

    layers = _asked(target, flags, spelling)
    if isinstance(target, str):
        name, default, given = _algorithm_name(target, layers), None, frozenset[str]()
        kind = attribute(algorithms()[name])
    else:
        name = entry_of(algorithms(), type(target)) or type(target).__name__.lower()
        default, given = target, _given(target)
        kind = type(target)
    own = {field.name for field in fields(kind) if field.init}
    stated = {key: getattr(target, key) for key in given} | stack(layers)[0].get("algorithm", {})
    closed = given | kind.settled(stated)
    layers = [_model_layer(model_defaults, name, own, closed, RunSettings), *_environment(), *layers]
    tree, marks = stack(layers)
    if "learning_rate" not in given:
        _without_lora(tree, marks)
    for recipe in (one for one in layers if one.resolved):
        leave_open(tree, marks, {**plain(RunSettings()), "algorithm": plain(kind())}, recipe.origin)
    values = {key: value for key, value in tree.pop("algorithm", {}).items() if key != "name"}
    _known(tree, RunSettings, own, marks)
    if isinstance(tree.get("reward"), dict) and "sum" in tree["reward"]:
        tree["reward"].setdefault("standardise", None)
    run = build(RunSettings, tree, Where(marks=marks))
    where = Where("algorithm", name, marks)
    algorithm = build(kind, values, where, default)
    _required(run, spelling)
    made = {"algorithm": {"name": name, **plain(algorithm)}, **plain(run)}
    origin = _origins(made, marks, {f"algorithm.{key}": spelling for key in given})
    return Resolved(name, algorithm, run, made, origin, where)


def _asked(target: object, flags: Mapping[str, Any], spelling: str) -> list[Layer]:
    layers = []
    if isinstance(target, str):
        recipe = find(target)
        base = {"algorithm": {"name": target}}
        layers.append(read_recipe(recipe, recipe.stem) if recipe else layer(spelling, base, lambda path: target))
    dashes = "--" if spelling == "flag" else ""
    return [_with_terms(one) for one in (*layers, layer(spelling, flags, lambda path: dashes + path))]


def _with_terms(one: Layer) -> Layer:
    """A sum of rewards in its one form: another layer's sum or name takes its place, and does not mix with it."""
    spec = one.tree.get("reward")
    if not is_sum(spec):
        return one
    return one._replace(tree={**one.tree, "reward": whole(spec, key=one.spelled["reward"])})


def _algorithm_name(target: str, layers: list[Layer]) -> str:
    tree, marks = stack(layers)
    part = tree.get("algorithm")
    if not isinstance(part, dict) or "name" not in part:
        raise ValueError(
            f"{target}: a recipe names its algorithm: `algorithm: NAME`, one of {', '.join(algorithms())}."
        )
    name = str(part["name"])
    if name not in algorithms():
        near = suggest(name, algorithms())
        guess = f"  Did you mean `{near}`?" if near else ""
        where = Where("algorithm", marks=marks)
        raise ValueError(f"{where}: {name!r} is none of {', '.join(algorithms())}.{guess}")
    return name


def _given(algorithm: object) -> frozenset[str]:
    if not is_dataclass(algorithm) or isinstance(algorithm, type):
        raise ValueError(
            f"algorithm is {algorithm!r}; it is a name ({', '.join(algorithms())}), a recipe, or an algorithm object."
        )
    return frozenset(algorithm.given)  # type: ignore[attr-defined]  # noted by Algorithm.__new__


def _model_layer(defaults: Mapping[str, Any], name: str, own: set[str], closed: frozenset[str], run: type) -> Layer:
    """What the model says for all algorithms, and then for this one, without what it has no say in."""
    for key in defaults:
        if key not in ("defaults", "algorithms", "parts"):  # the last is read by `policy.load`
            raise ValueError(f"tastemaker.json: {key} is neither `defaults` nor `algorithms`.")
    flat = {field.name for field in fields(run)}
    common = dict(defaults.get("defaults", {}))
    for key in common:
        if key not in flat | own and key not in SHARED:
            raise ValueError(f"tastemaker.json: defaults.{key} is neither a setting of a run nor of {name}.")
    mine = {key: value for key, value in common.items() if key in own} | defaults.get("algorithms", {}).get(name, {})
    tree = {key: value for key, value in common.items() if key in flat}
    tree["algorithm"] = {key: value for key, value in mine.items() if key not in closed}
    return layer("model", tree, lambda path: f"tastemaker.json: {path}")


def _environment() -> list[Layer]:
    """`accelerate config` and `accelerate launch` hand their mixed precision on in a variable."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if not precision:
        return []
    return [layer("accelerate", {"mixed_precision": precision}, lambda path: "ACCELERATE_MIXED_PRECISION")]


def _without_lora(tree: dict[str, Any], marks: dict[str, Mark]) -> None:
    """The whole network wants a smaller step than an adapter: a default of paper or model gives way."""
    off = "lora" in tree and tree["lora"] in (None, Switch.OFF, "none", "null")
    path = "algorithm.learning_rate"
    if off and (path not in marks or marks[path].origin == "model"):
        tree.setdefault("algorithm", {})["learning_rate"] = FULL_LEARNING_RATE
        marks[path] = Mark("without LoRA", "learning_rate")


def _known(tree: Mapping[str, Any], run: type, own: set[str], marks: Mapping[str, Mark]) -> None:
    names = [field.name for field in fields(run)]
    elsewhere = {key: path for key, path in ELSEWHERE.items() if key not in names}
    elsewhere |= {key: f"algorithm.{key}" for key in own}
    for key in tree:
        if key not in names:
            raise Where(marks=marks).unknown(key, [*names, *SHORT], elsewhere)


def _required(run: RunSettings, spelling: str) -> None:
    fit = {
        "model": f"a built-in one ({', '.join(BUILT_IN)}), a hub id, or a folder in diffusers layout",
        "reward": f"{', '.join(list(REWARDS)[:3])}, or path/to/file.py:function",
        "prompts": f"{', '.join(list(PROMPTS)[:3])}, or a file of prompts",
    }
    for key, examples in fit.items():
        if getattr(run, key) is None:
            written = f"--{key}" if spelling == "flag" else key
            raise ValueError(
                f"{written} is missing, and neither the model nor a recipe brings one. Give {written}: {examples}."
            )


def _origins(
    tree: Mapping[str, Any], marks: Mapping[str, Mark], given: Mapping[str, str], base: str = "default", at: str = ""
) -> dict[str, str]:
    """Who set each leaf: a layer, the caller's object, or nobody: then it is the default of a paper or of the part."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        path = at + key
        by = marks[path].origin if path in marks else ""
        if isinstance(value, Mapping) and value:
            chosen = (
                by or f"{path}.name" in marks
            )  # a part that somebody chose brings its own defaults, not the paper's
            below = given.get(path) or ("paper" if path == "algorithm" else "default" if chosen else base)
            found |= _origins(value, marks, given, below, f"{path}.")
        else:
            whole = marks[at[:-1]].origin if key in ("name", "sum") and at[:-1] in marks else ""
            found[path] = by or whole or given.get(path, base)
    return found


def brought(model: object) -> dict[str, Any]:
    """What a model brings: its folder's tastemaker.json, or the preset of a known hub id."""
    home = folder(model) if isinstance(model, str) else None
    return model_defaults(home) if home else preset(str(model))


def model_defaults(folder: Path) -> dict[str, Any]:
    """What a model's folder says in its tastemaker.json; nothing when it has none."""
    file = folder / SAYS
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: it is a mapping with `defaults` and `algorithms`.")
    return found


def as_yaml(tree: Mapping[str, Any], origin: Mapping[str, str]) -> str:
    """The resolved tree as a recipe, each value with its origin behind it."""
    lines = [(f"{RESOLVED}: true", "every setting, and where it comes from"), *_yaml_lines(tree, origin, "")]
    width = min(60, max((len(text) for text, note in lines if note), default=0))
    return "\n".join(f"{text:<{width}}  # {note}" if note else text for text, note in lines) + "\n"


def _yaml_lines(tree: Mapping[str, Any], origin: Mapping[str, str], at: str) -> Iterator[tuple[str, str]]:
    indent = "  " * at.count(".")
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", ""
            yield from _yaml_lines(value, origin, f"{at}{key}.")
        else:
            text = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]
            yield f"{indent}{key}: {text}", origin.get(at + key, "")
