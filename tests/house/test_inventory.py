"""What has to exist beside the code: pages, recipes, tests, sentences, names that resolve, pins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import tastemaker
from house.syntax import PACKAGE, ROOT, Source, imports, packages, source, sources
from tastemaker import cli, config, manual
from tastemaker.build import attribute
from tastemaker.commands.doctor import EXTRAS
from tastemaker.policy import load
from tastemaker.prompts import files, hub
from tastemaker.prompts.sources import TABLE as PROMPTS
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.settings import RunSettings

SOURCE = re.compile(r"arxiv[:.\w/ ]{0,20}\d{4}\.\d{4,5}|doi[:.\w/ ]{0,20}10\.\d{4}", re.IGNORECASE)
ALGORITHMS = sorted(config.algorithms())
RECIPES = sorted(config.recipes())


# ---- algorithms


def lacking(name: str, root: Path, tests: Iterable[Source], recipes: dict[str, str]) -> list[str]:
    """What an algorithm lacks: a page with its source, a recipe, a test that imports it. recipes: name -> algorithm."""
    page = root / "docs" / "algorithms" / f"{name}.md"
    module = f"tastemaker.algorithms.{name}"
    lacks = []
    if not page.is_file():
        lacks.append(f"no page docs/algorithms/{name}.md")
    elif not SOURCE.search(page.read_text(encoding="utf-8")):
        lacks.append(f"docs/algorithms/{name}.md names no source (arXiv or DOI)")
    if name not in recipes.values():
        lacks.append(f"no recipe of {name}")
    if not any(module == found for one in tests for _, found in imports(one, [module.removeprefix("tastemaker.")])):
        lacks.append(f"no test imports {module}")
    return lacks


def test_an_algorithm_without_page_recipe_or_test_is_found(tmp_path: Path) -> None:
    assert len(lacking("new", tmp_path, [], {"a": "old"})) == 3
    page = tmp_path / "docs" / "algorithms" / "new.md"
    page.parent.mkdir(parents=True)
    page.write_text("New, by nobody.")
    mine = [source("t", "from tastemaker.algorithms.new import New")]
    assert lacking("new", tmp_path, mine, {"r": "new"}) == ["docs/algorithms/new.md names no source (arXiv or DOI)"]
    page.write_text("New, arXiv:2305.13301.")
    assert lacking("new", tmp_path, mine, {"r": "new"}) == []


@cache
def written() -> list[Source]:
    """All tests."""
    return [source(str(path), path.read_text()) for path in sorted((ROOT / "tests").rglob("test_*.py"))]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_page_a_recipe_and_a_test(name: str) -> None:
    assert lacking(name, ROOT, written(), {recipe: config.algorithm_of(recipe) for recipe in RECIPES}) == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_its_source_in_its_file_and_its_file_bears_its_name(name: str) -> None:
    kind = attribute(config.algorithms()[name])
    assert config.algorithms()[name].partition(":")[0] == f"tastemaker.algorithms.{name}"
    assert SOURCE.search(sys.modules[kind.__module__].__doc__ or "")
    kind()  # every setting has the paper's value


def tabled(page: str) -> dict[str, str]:
    """Setting -> default, of a page's table of settings."""
    part = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \| \S", part, re.MULTILINE))


def numbered(text: str) -> list[str]:
    """The numbered points of a text, each on one line."""
    points = re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]
    return [" ".join(point.partition("\n\n")[0].split()) for point in points]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_page_has_the_settings_and_the_departures_of_the_code(name: str) -> None:
    """Where it lists them: a page may also send to `explain` and to the file."""
    file, kind = ROOT / "docs" / "algorithms" / f"{name}.md", attribute(config.algorithms()[name])
    page = file.read_text(encoding="utf-8") if file.is_file() else ""  # a missing one is told of above
    if rows := tabled(page):
        assert rows == {row.path: row.default for row in manual.settings(kind)}
    if points := numbered(page.partition("\n## Departures\n")[2]):
        assert points == numbered((sys.modules[kind.__module__].__doc__ or "").partition("\nDeparts from ")[2])


def silent(kind: type) -> list[str]:
    """Settings without a sentence."""
    return [row.path for row in manual.settings(kind) if not row.sentence]


@pytest.mark.parametrize("entry", ["tastemaker.settings:RunSettings", *config.algorithms().values()])
def test_every_setting_has_a_sentence(entry: str) -> None:
    assert silent(attribute(entry)) == []


# ---- recipes


def test_algorithms_and_recipes_share_one_name_space() -> None:
    assert set(ALGORITHMS) & set(RECIPES) == set()


def unresolved(path: Path) -> list[str]:
    """What is wrong with a recipe: its header, its settings, its names."""
    text, name = path.read_text(encoding="utf-8"), path.stem
    header = "\n".join(line for line in text.partition("\nalgorithm")[0].splitlines() if line.startswith("#")).lower()
    words = ("paper", "expected", "cost", "run by us")
    wrong = [f"the header says no {word}" for word in words if word not in header]
    wrong += [] if re.search(rf"tastemaker (train|sweep) {name}\b", header) else ["the header has no command"]
    try:
        asked = config.asked(str(path), {})
        folder = load.folder(str(asked.get("model")))
        run = config.resolve(str(path), {}, config.model_defaults(folder) if folder else {}).run
    except ValueError as error:
        return [*wrong, str(error)]
    for spec, table in ((run.reward, REWARDS), (run.prompts, PROMPTS), (run.evaluation.prompts, PROMPTS)):
        named = spec.get("name") if isinstance(spec, dict) else spec
        if isinstance(named, str) and named not in table:
            wrong += [] if table is PROMPTS and fetched(named, text) else [f"there is no {named}"]
    return wrong


def fetched(prompts: str, recipe: str) -> bool:
    """Whether prompts come from a file or the hub, and the recipe's header says how; or are one text, written out."""
    if prompts.startswith("text:"):
        return True
    needed = "tastemaker[data]" if prompts.startswith(hub.PREFIX) else prompts
    known = prompts.startswith(hub.PREFIX) or Path(prompts).suffix in files.READERS
    return known and needed in recipe.partition("\nalgorithm")[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves(name: str) -> None:
    assert unresolved(config.recipes()[name]) == []


def test_a_recipe_that_does_not_resolve_is_found(tmp_path: Path) -> None:
    algorithm = ALGORITHMS[0]
    good = f"# Paper: x.  Expected: y.  Cost: z.  Run by us: w.\n# tastemaker train r\nalgorithm: {algorithm}\n"
    good += f"model: a/b\nreward: {next(iter(REWARDS))}\nprompts: {next(iter(PROMPTS))}\n"
    path = tmp_path / "r.yaml"
    path.write_text(good)
    assert unresolved(path) == []
    for text in (good.replace("Cost", ""), good.replace("tastemaker train r", ""), good + "clipp: 3\n"):
        path.write_text(text)
        assert len(unresolved(path)) == 1, text
    path.write_text(good.replace(f"prompts: {next(iter(PROMPTS))}", "prompts: mine.txt"))
    assert unresolved(path) == ["there is no mine.txt"]  # the header does not say where it comes from
    path.write_text(good.replace("reward: ", "reward: no_"))
    assert unresolved(path) == [f"there is no no_{next(iter(REWARDS))}"]


# ---- names


@pytest.mark.parametrize("name", tastemaker.__all__)
def test_a_public_name_resolves(name: str) -> None:
    assert getattr(tastemaker, name) is not None
    assert name in dir(tastemaker)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tastemaker.nothing


def test_every_all_is_true() -> None:
    for one in sources():
        if any("__all__" in text for text in one.text.splitlines()) and one.name != "__init__":
            module = __import__(f"tastemaker.{one.name}", fromlist=["*"])
            assert [name for name in module.__all__ if not hasattr(module, name)] == [], one.name


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_has_its_module_and_its_main(command: str) -> None:
    assert callable(attribute(f"{cli.COMMANDS[command][0]}:main"))


def test_every_command_is_in_the_table() -> None:
    files = {path.stem.replace("_", "-") for path in (PACKAGE / "commands").glob("*.py")} - {"--init--"}
    assert files == set(cli.COMMANDS)


def test_what_is_imported_early_is_light() -> None:
    """Packages and the command line come without torch, settings without diffusers; one process shows both."""
    early = [
        "",
        *sorted(f".{name}" for name in packages()),
        ".cli",
        ".config",
        ".flags",
        *(module.removeprefix("tastemaker") for module, _ in cli.COMMANDS.values()),
    ]
    code = f"""
import importlib, json, sys
heavy = ("torch", "numpy", "diffusers", "transformers", "peft")
for name in {[f"tastemaker{name}" for name in early]}:
    importlib.import_module(name)
first = [name for name in heavy if name in sys.modules]
import tastemaker.config as config
flags = dict(model="shapes", reward="r", prompts="p")
[config.resolve(name, flags, {{}}) for name in config.algorithms()]
print(json.dumps([first, [name for name in heavy[2:] if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], []]


# ---- the project's own files


def test_pins_are_within_the_ranges_and_extras_are_the_doctors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    assert all(version and "+" not in version for version in pins.values())
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["dev"]]:
        need = Requirement(line)
        assert need.specifier.contains(pins[need.name.lower().replace("_", "-")]), line
    assert set(extras) == set(EXTRAS)


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tastemaker.__version__


def test_run_settings_and_algorithms_share_no_name() -> None:
    """A flag without a path is the run's; `--learning_rate` and the like are written out in a table."""
    run = {row.path for row in manual.settings(RunSettings)}
    for name in ALGORITHMS:
        own = {row.path for row in manual.settings(attribute(config.algorithms()[name]))}
        assert own & run == set(), name
