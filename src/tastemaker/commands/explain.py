"""`tastemaker explain [NAME]`: what an algorithm, recipe, reward, prompt set, model, sampler or setting is."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tastemaker import config, flags
from tastemaker.algorithms import NEEDS
from tastemaker.build import attribute, suggest
from tastemaker.layers import SHORT
from tastemaker.policy import load
from tastemaker.prompts.sources import TABLE as PROMPTS
from tastemaker.rewards import DIFFERENTIABLE
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.rewards.facts import FACTS

# The settings of a run and their groups; their classes are not imported for a list of names.
PARTS = {
    "run": "tastemaker.settings:RunSettings",
    "lora": "tastemaker.policy.adapter:LoRA",
    "evaluation": "tastemaker.settings:Evaluation",
    "plan": "tastemaker.settings:PlanSettings",
}


def main(argv: Sequence[str]) -> int:
    """Print what a name stands for; all names without one."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print("tastemaker explain [NAME]: what an algorithm, recipe, reward, prompt set, model, sampler or setting is,")
        print("with its settings and their defaults; without a name, all that there is and what goes with what")
        return 0
    if tree or len(words) > 1:
        raise ValueError(f"tastemaker explain takes one name and no flags; found {' '.join(argv)}.")
    sys.stdout.write(explain(words[0]) if words else names())
    return 0


def names() -> str:
    """Every name that can be explained, a line each, by kind, and what goes with what."""
    from tastemaker import manual

    shelves = [
        ("Algorithms: tastemaker train NAME", {name: _of_algorithm(name) for name in config.algorithms()}),
        ("Recipes, an algorithm with all that it needs: tastemaker train NAME", _of_recipes()),
        (
            "Models: --model NAME, a hub id such as owner/name, a folder in diffusers layout, or a .safetensors file",
            dict.fromkeys(load.BUILT_IN, "Comes with the package, small enough for a CPU."),
        ),
        ("Rewards: --reward NAME, path/to/file.py:function, or a sum NAME:WEIGHT,NAME:WEIGHT", _of_rewards()),
        ("Prompts: --prompts NAME, a file of them, or path/to/file.py:function", _of_prompts()),
        ("Settings: tastemaker explain NAME", {name: manual.headline(entry) for name, entry in PARTS.items()}),
        ("Which goes with which", _pairs()),
    ]
    text = "\n".join(f"{title}\n{manual.listing(rows)}" for title, rows in shelves if rows)
    return f"{text}\nMore on each, or on a setting such as learning_rate: tastemaker explain NAME\n"


def _of_algorithm(name: str) -> str:
    from tastemaker import manual

    needs = f"  Takes {NEEDS[name]}." if name in NEEDS else ""
    return manual.headline(config.algorithms()[name].partition(":")[0]) + needs


def _of_recipes() -> dict[str, str]:
    """The first line of each header."""
    return {
        name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for name, path in config.recipes().items()
    }


def _of_rewards() -> dict[str, str]:
    from tastemaker import manual

    return {name: f"{manual.headline(entry)}  {_gradient(name)}" for name, entry in REWARDS.items()}


def _gradient(reward: str) -> str:
    kind = "Differentiable" if reward in DIFFERENTIABLE else "Not differentiable"
    return f"{kind}: for {', '.join(_takers(reward)) or 'no algorithm yet'}."


def _of_prompts() -> dict[str, str]:
    from tastemaker import manual

    first = {entry: name for name, entry in reversed(PROMPTS.items())}
    return {
        name: manual.headline(entry) if first[entry] == name else f"`{first[entry]}` by another name"
        for name, entry in PROMPTS.items()
    }


def _takers(reward: str) -> list[str]:
    """The algorithms that a reward will do for."""
    return [name for name in config.algorithms() if reward in DIFFERENTIABLE or not _differentiates(name)]


def _differentiates(algorithm: str) -> bool:
    return NEEDS.get(algorithm, "").startswith("a differentiable reward")


def _pairs() -> dict[str, str]:
    """Which of the names go together."""
    picky = [name for name in config.algorithms() if _differentiates(name)]
    free = [name for name in config.algorithms() if name not in picky]
    rows = {", ".join(free): "any reward, also one that only gives numbers: a count, a service, a person"}
    if picky:
        rows[", ".join(picky)] = f"{', '.join(sorted(DIFFERENTIABLE)) or 'none of ours'}, or a function in torch"
    for model in load.BUILT_IN:
        own = [name for name in (*PROMPTS, *REWARDS) if name.partition("_")[0] == model.partition("-")[0]]
        rows[model] = f"knows few words and is judged by them: {', '.join(own)}; and any reward that reads no prompt"
    rows["another model"] = "any prompts"
    rows["to begin with"] = (
        f"tastemaker train {free[0]} --model {next(iter(load.BUILT_IN))} --reward {next(iter(REWARDS))}"
    )
    return rows


def explain(name: str) -> str:
    """The pages of a name, one for each kind of thing that bears it."""
    pages = [page(name) for known, page in _shelves() if name in known]
    if not pages and name.endswith((".yaml", ".yml")):
        pages = [_recipe(name)]
    if not pages and Path(name).expanduser().is_dir():
        pages = [_trained(name)]
    pages = pages or _sampler(name) or _setting(name)
    if not pages:
        near = suggest(name, {key for known, _ in _shelves() for key in known} | _settings())
        guess = f"  Did you mean `{near}`?" if near else ""
        raise ValueError(f"nothing is called {name!r}.{guess}  (`tastemaker explain` lists all names)")
    return "\n".join(pages)


def _shelves() -> list[tuple[Any, Callable[[str], str]]]:
    return [
        (config.algorithms(), _algorithm),
        (config.recipes(), _recipe),
        (load.BUILT_IN, _model),
        (REWARDS, lambda name: _function("reward", REWARDS[name], name)),
        (PROMPTS, lambda name: _function("prompts", PROMPTS[name], name)),
        (PARTS, _run),
    ]


def _algorithm(name: str) -> str:
    from tastemaker import manual

    kind = attribute(config.algorithms()[name])
    recipes = [recipe for recipe, path in config.recipes().items() if config.algorithm_of(str(path)) == name]
    text = f"{name}, an algorithm\n\n{inspect.getdoc(sys.modules[kind.__module__]) or inspect.getdoc(kind)}\n\n"
    text += "Settings  [default: the paper's]\n" + manual.table(list(manual.settings(kind, "algorithm.")))
    return text + (f"\nRecipes: {', '.join(recipes)}\n" if recipes else "")


def _recipe(name: str) -> str:
    path = config.find(name)
    assert path is not None
    config.algorithm_of(name)
    return f"{name}, a recipe: tastemaker train {name}\n\n{path.read_text(encoding='utf-8')}"


def _model(name: str) -> str:
    try:
        folder = load.folder(name)
    except ValueError as error:
        return f"{name}, a built-in model\n{error}\n"
    said = config.model_defaults(folder) if folder else {}
    return f"{name}, a built-in model in {folder}\nIts defaults:\n{json.dumps(said, indent=2)}\n"


def _function(kind: str, entry: str, name: str) -> str:
    from tastemaker import manual

    found = attribute(entry)
    text = f"{name}, {'a reward' if kind == 'reward' else 'a set of prompts'}: --{kind} {name}\n\n"
    text += (inspect.getdoc(found) or entry) + "\n"
    text += f"\n{_gradient(name)}\n{_facts(name)}" if kind == "reward" else ""
    if dataclasses.is_dataclass(found) and isinstance(found, type):
        text += f"\nSettings  [default]\n{manual.table(list(manual.settings(found, f'{kind}.')))}"
    defaults = {
        one.name: one.default
        for one in inspect.signature(found).parameters.values()
        if one.default is not one.empty and not inspect.isclass(found)
    }
    if defaults:
        text += "\nSettings  [default]\n" + "".join(f"  --{kind}.{key}  [{value}]\n" for key, value in defaults.items())
    return text


def _trained(name: str) -> str:
    """What a trained reward's folder says of itself."""
    from tastemaker.rewards.trained import read_card

    card = read_card(Path(name).expanduser())
    told = {"kind": f"{card['kind']}, of {card['labels']:,} labels", "looks through": card["network"]["model"]}
    told["reads"] = ", ".join(card["features"])
    for where in ("validation", "test"):
        for measure, found in (card[where] or {}).items():
            told[f"{where}, {measure}"] = " ".join(
                f"{key} {value:.4g}" for key, value in found.items() if value is not None
            )
    rows = "".join(f"  {key:<32}{value}\n" for key, value in told.items())
    return f"{name}, a reward that `train-reward` made: --reward {name}\n\n{rows}\nMore: tastemaker explain trained\n"


def _facts(reward: str) -> str:
    """Whose networks a reward brings, on which terms, and what has to be installed."""
    facts = FACTS.get(reward)
    if facts is None:
        return "Weights: none to download.\nLicence: Apache-2.0, as Tastemaker.\nInstall: nothing beside Tastemaker.\n"
    places = [f"{one.name} ({one.megabytes} MB{_pin(one.revision)})" for one in facts.networks]
    weights = f"{', '.join(places)}; downloaded once" if places else facts.held
    text = f"Weights: {weights}.\nLicence: {facts.licence}.\n"
    text += f"With --reward.model shapes: {facts.small}.\n" if facts.small else ""
    return f"{text}Install: {facts.install}.\nCite: {facts.cite}.\n"


def _pin(revision: str | None) -> str:
    return f", commit {revision[:8]}" if revision else ""


def _run(name: str) -> str:
    from tastemaker import manual
    from tastemaker.settings import RunSettings

    rows = list(manual.settings(RunSettings))
    if name != "run":
        rows = [row for row in rows if row.path.startswith(f"{name}.")]
    return f"Settings of {'a run' if name == 'run' else name}  [default]\n{manual.table(rows, dashes=True)}"


def _sampler(name: str) -> list[str]:
    from tastemaker import manual
    from tastemaker.process.samplers import TABLE

    if name not in TABLE:
        return []
    kind = attribute(TABLE[name])
    rows = manual.table(list(manual.settings(kind, "algorithm.sampler.")))
    return [f"{name}, a sampler: --algorithm.sampler {name}\n\n{inspect.getdoc(kind)}\n\nSettings  [default]\n{rows}"]


def _rows() -> dict[str, list[Any]]:
    """The settings of the run and of every algorithm."""
    from tastemaker import manual
    from tastemaker.settings import RunSettings

    rows = {"run": list(manual.settings(RunSettings))}
    return rows | {key: list(manual.settings(attribute(e), "algorithm.")) for key, e in config.algorithms().items()}


def _settings() -> set[str]:
    return {row.path.rpartition(".")[2] for rows in _rows().values() for row in rows}


def _setting(name: str) -> list[str]:
    """One setting, of the run or of every algorithm that has it, by its path or its last part."""
    from tastemaker import manual

    key = name.lstrip("-").replace("-", "_")
    path = SHORT.get(key, key)
    found = {
        who: [row for row in rows if path in (row.path, row.path.rpartition(".")[2])] for who, rows in _rows().items()
    }
    return [f"Of {who}\n{manual.table(mine, dashes=True)}" for who, mine in found.items() if mine]
