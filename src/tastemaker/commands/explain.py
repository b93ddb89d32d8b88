"""`tastemaker explain [NAME]`: what an algorithm, recipe, reward, prompt set, model, sampler or setting is."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tastemaker import config, flags
from tastemaker.build import attribute, suggest
from tastemaker.layers import SHORT
from tastemaker.policy import load
from tastemaker.prompts.sources import TABLE as PROMPTS
from tastemaker.rewards import TABLE as REWARDS


def main(argv: Sequence[str]) -> int:
    """Print what a name stands for; all names without one."""
    words, tree, _ = flags.parse(argv)
    if tree or len(words) > 1:
        raise ValueError(f"tastemaker explain takes one name and no flags; found {' '.join(argv)}.")
    sys.stdout.write(explain(words[0]) if words else names())
    return 0


def names() -> str:
    """Every name that can be explained, by kind."""
    kinds = {
        "algorithms": config.algorithms(),
        "recipes": config.recipes(),
        "models": load.BUILT_IN,
        "rewards": REWARDS,
        "prompts": PROMPTS,
        "settings": ("run", *_parts()),
    }
    lines = [f"{kind:<12}{' '.join(known) or '-'}" for kind, known in kinds.items()]
    return (
        "\n".join(lines) + "\n\nor the path of a recipe, or a setting such as learning_rate: tastemaker explain NAME\n"
    )


def explain(name: str) -> str:
    """The pages of a name, one for each kind of thing that bears it."""
    pages = [page(name) for known, page in _shelves() if name in known]
    if not pages and name.endswith((".yaml", ".yml")):
        pages = [_recipe(name)]
    pages = pages or _sampler(name) or _setting(name)
    if not pages:
        near = suggest(name, {key for known, _ in _shelves() for key in known} | _settings())
        guess = f"  Did you mean `{near}`?" if near else ""
        raise ValueError(f"nothing is called {name!r}.{guess}\n\n{names()}".rstrip())
    return "\n".join(pages)


def _shelves() -> list[tuple[Any, Callable[[str], str]]]:
    return [
        (config.algorithms(), _algorithm),
        (config.recipes(), _recipe),
        (load.BUILT_IN, _model),
        (REWARDS, lambda name: _function("reward", REWARDS[name], name)),
        (PROMPTS, lambda name: _function("prompts", PROMPTS[name], name)),
        (("run", *_parts()), _run),
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
    folder = load.folder(name)
    said = config.model_defaults(folder) if folder else {}
    return f"{name}, a built-in model in {folder}\nIts defaults:\n{json.dumps(said, indent=2)}\n"


def _function(kind: str, entry: str, name: str) -> str:
    from tastemaker import manual

    found = attribute(entry)
    text = f"{name}, {'a reward' if kind == 'reward' else 'a set of prompts'}: --{kind} {name}\n\n"
    text += (inspect.getdoc(found) or entry) + "\n"
    if dataclasses.is_dataclass(found) and isinstance(found, type):
        text += f"\nSettings  [default]\n{manual.table(list(manual.settings(found, f'{kind}.')))}"
    return text


def _parts() -> tuple[str, ...]:
    """Groups of a run's settings; their classes stand in `settings.py`, which is not imported for a list of names."""
    return ("lora", "evaluation", "plan")


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
