"""Recipes hold the numbers that were published, on one device and on eight, and say what they wait for."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import runs
from tastemaker import config, fitting, planning, preparation
from tastemaker.plan import Plan
from tastemaker.preparation import load_policy
from tastemaker.prompts.sources import Listed, source
from tastemaker.rewards import PENDING
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.world import World

RECIPES = sorted(config.recipes())
OURS = {"shapes_ddpo_fast"}  # no publication but this one
FEW = {"ddpo_quickstart": 1, "ddpo_trl": 3}  # pictures an update, fewer than eight devices: published for one GPU


class Published(NamedTuple):
    """What a source states, as its table or its code has it."""

    images: int
    updates: int
    iterations: int
    learning_rate: float
    advantage_limit: float
    history: int  # of each prompt's rewards, used from 16 on; 0 where the algorithm has none
    prompts: int
    precision: str
    lora: bool = True


PUBLISHED = {
    "ddpo_quickstart": Published(1 * 2, 2, 100, 3e-4, 5, 16, 398, "fp16"),
    "ddpo_compressibility": Published(256, 4, 100, 3e-4, 5, 16, 398, "fp16"),
    "ddpo_incompressibility": Published(256, 4, 100, 3e-4, 5, 16, 398, "fp16"),
    "ddpo_aesthetic": Published(256, 2, 200, 3e-4, 5, 32, 45, "fp16"),
    "ddpo_alignment": Published(288, 2, 200, 3e-4, 5, 32, 45 * 3, "fp16"),
    "ddpo_trl": Published(24, 8, 200, 3e-4, 5, 32, 27, "fp16"),
    "ddpo_full": Published(256, 4, 200, 1e-5, 10, 32, 398, "no", lora=False),
    "reinforce_compressibility": Published(256, 1, 200, 1e-5, 10, 0, 398, "no", lora=False),
}


class Apart(World):
    """One of several devices whose others are not there: a dry run asks them for nothing."""

    def broadcast_text(self, text: str | None) -> str:
        assert text is not None
        return text


POLICIES: dict[str, Any] = {}


def policy(recipe: str, *request: Any) -> Any:
    """The recipe's policy, loaded once: no dry run changes it."""
    if recipe not in POLICIES:
        POLICIES[recipe] = load_policy(*request)
    return POLICIES[recipe]


@functools.cache
def dry_run(recipe: str, devices: int, *more: str) -> tuple[Plan, dict[str, Any], str]:
    """The command's dry run on so many devices: its plan, its settings, what it prints.

    A model of the hub is replaced by a tiny one with its scheduler, a reward that is not built yet by a user's. The
    first run of a recipe is the whole command; others take its policy, and measure no memory, which takes long.
    """
    asked = config.asked(recipe, {})
    model = () if asked["model"] == "shapes" else ("--model", runs.model())
    reward = ("--reward", runs.reward("brightness")) if asked["reward"] in PENDING else ()
    found: list[tuple[Plan, dict[str, Any]]] = []
    show = planning.show

    def keep(plan: Plan, tree: dict[str, Any], *rest: Any) -> None:
        found.append((plan, tree))
        show(plan, tree, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "show", keep)
        patch.setattr(World, "here", classmethod(lambda cls, device="auto": Apart(size=devices)))
        patch.setenv("COLUMNS", "200")
        patch.setattr(preparation, "load_policy", lambda settings, device, sets: policy(recipe, settings, device, sets))
        if (devices, more) != (1, ()):
            patch.setattr(fitting, "table", lambda *about: [])
        patch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        ran = runs.train(["train", recipe, *model, *reward, "--device", "cpu", "--dry-run", *more])
    return *found.pop(), ran.out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to stand in, which nothing here leaves anything in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


# ---- the published arithmetic


def test_every_recipe_with_a_publication_is_held_against_it() -> None:
    assert set(PUBLISHED) == set(RECIPES) - OURS


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_device_has_the_published_numbers(name: str) -> None:
    said = PUBLISHED[name]
    plan, tree, out = dry_run(name, 1)
    algorithm = tree["algorithm"]
    assert (plan.images, plan.updates, plan.iterations) == (said.images, said.updates, said.iterations)
    assert (plan.steps, plan.items, plan.guidance, plan.learning_guidance) == (50, 50, 5.0, 5.0)  # every step is random
    assert algorithm["sampler"] == {"name": "ddim", "eta": 1.0}
    assert (algorithm["learning_rate"], algorithm["weight_decay"]) == (said.learning_rate, 1e-4)
    assert (algorithm["advantage_limit"], algorithm.get("prompt_history", 0)) == (said.advantage_limit, said.history)
    assert algorithm.get("prompt_minimum", 16) == 16 and algorithm.get("clip", 1e-4) == 1e-4
    assert (tree["mixed_precision"], tree["max_grad_norm"]) == (said.precision, 1.0)
    assert (tree["lora"] and tree["lora"]["rank"]) == (4 if said.lora else None)
    prompts = source(tree["prompts"])
    assert isinstance(prompts, Listed) and len(prompts.entries) == said.prompts
    each = said.images // said.updates
    assert f"{said.updates} updates of {each} images" in out and f"{each * 50} " in out


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(FEW)))
def test_devices_and_rows_of_a_call_change_neither_pictures_nor_updates(name: str) -> None:
    """The authors' rule for a single small GPU, one row a call and as much more accumulation, is solved for."""
    one, tree, _ = dry_run(name, 1)
    small, with_one, _ = dry_run(name, 1, "--plan.micro_batch", "1")
    eight, same, out = dry_run(name, 8)
    assert (small.micro_batch, small.sampling_batch, eight.devices) == (1, 1, 8)
    for plan in (small, eight):
        assert (plan.images, plan.updates, plan.effective_batch) == (one.images, one.updates, one.effective_batch)
        assert (plan.optimizer_steps, plan.learning_rows) == (one.optimizer_steps, one.learning_rows)
    assert same == tree and with_one["algorithm"] == tree["algorithm"]
    assert f"{one.images // 8} " in out and "equal shares" in out and "UNEQUAL" not in out


@pytest.mark.parametrize("name", FEW)
def test_what_is_too_small_for_eight_devices_says_so_and_its_header_has_the_command(name: str) -> None:
    with pytest.raises(
        AssertionError, match=f"{FEW[name]} groups an update cannot be shared by 8 devices: use images="
    ):
        dry_run(name, 8)
    header = config.recipes()[name].read_text(encoding="utf-8")
    flag = re.search(rf"on 8 GPUs.*train {name} (--algorithm\.images \d+)\n", header)
    assert flag is not None
    plan, _, _ = dry_run(name, 8, *flag[1].split())
    said = PUBLISHED[name]  # a GPU's numbers, as theirs, on each of eight
    assert (plan.images, plan.updates, plan.effective_batch) == (8 * said.images, said.updates, 8 * FEW[name])


# ---- what is said of them


@pytest.mark.parametrize("name", RECIPES)
def test_a_header_says_where_the_numbers_are_from_and_what_was_run(name: str) -> None:
    header = [line for line in config.recipes()[name].read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    said = [key for line in header for key in re.findall(r"^# ([A-Z][a-z ]+): ", line)]
    assert [key for key in said if key != "The judge"] == [
        "Paper",
        *(["Numbers"] if name in PUBLISHED else []),
        "Expected",
        "Cost",
        "Run by us",
        "Run",
    ]
    assert header[0].endswith(".") and header[1] == "#"  # the line that `tastemaker explain` shows
    assert all(len(line) <= 120 for line in header)


def test_the_prompts_of_trls_script_are_among_the_papers() -> None:
    ours, papers = (source(config.asked(name, {})["prompts"]) for name in ("ddpo_trl", "ddpo_aesthetic"))
    assert isinstance(ours, Listed) and isinstance(papers, Listed)
    assert {text for text, _ in ours.entries} < {text for text, _ in papers.entries}


# ---- what they wait for


@pytest.mark.parametrize("name", [name for name in RECIPES if config.asked(name, {})["reward"] in PENDING])
def test_a_recipe_whose_reward_is_not_built_asks_for_another(name: str) -> None:
    reward = config.asked(name, {})["reward"]
    ran = runs.call("train", name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"tastemaker: recipe {name}: reward: `{reward}` is not built yet ({PENDING[reward]}); ")
    assert "give another with --reward NAME (" in ran.err and all(other in ran.err for other in REWARDS)


def test_a_pending_reward_is_named_by_the_flag_that_asks_for_it(tmp_path: Path) -> None:
    for name in PENDING:
        for flag in ("--reward", "--held_out_rewards"):
            ran = runs.call(*runs.words(tmp_path / "run", flag, name))
            assert ran.code == 2 and ran.err.startswith(f"tastemaker: {flag}: `{name}` is not built yet")
            assert f"give another with {flag} NAME" in ran.err


def test_a_wrong_name_in_a_recipe_is_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    for reward, prompts, said in (
        ("no_such", "animals", "reward: `no_such`"),
        (next(iter(REWARDS)), "no", "prompts: "),
    ):
        recipe.write_text(f"algorithm: ddpo\nmodel: shapes\nreward: {reward}\nprompts: {prompts}\n")
        ran = runs.call("train", str(recipe), "--dry-run")
        assert ran.code == 2 and ran.err.startswith(f"tastemaker: recipe mine: {said}")
    recipe.write_text("algorithm: ddpo\nmodel: shapes\nreward: no_such\n")
    assert runs.call("train", str(recipe), "--reward", "other").err.startswith("tastemaker: --reward: `other` is not")
