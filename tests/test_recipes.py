"""Recipes hold the numbers that were published, on one device and on eight, and say what they wait for."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from huggingface_hub import constants

import runs
from tastemaker import config, fitting, flags, planning, preparation
from tastemaker.plan import Plan
from tastemaker.preparation import load_policy
from tastemaker.prompts import files, hub
from tastemaker.prompts.sources import Listed, source
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.rewards import named
from tastemaker.rewards.facts import FACTS
from tastemaker.sweeping import Sweep
from tastemaker.training.lines import read_lines
from tastemaker.world import World
from thinning import thinned

RECIPES = sorted(config.recipes())
LESSONS = {"lesson_clip", "lesson_decay", "lesson_lora", "lesson_prompts", "lesson_reinforce"}  # for sweeps
FROM_VALUES = {f"shapes_{name}" for name in ("ddpo_fast", "dpok", "flow_grpo")}
FROM_GRADIENTS = {f"shapes_{name}" for name in ("draft", "alignprop", "refl", "drtune", "grad_copy")}
NOISED = {f"shapes_{name}" for name in ("rwr", "diffusion_nft", "awm", "ram", "diffusion_dpo")}
SHAPES = FROM_VALUES | FROM_GRADIENTS
LOOKING = {"shapes_aesthetic_ddpo", "shapes_clip_draft"}  # through the built-in CLIP
CLIMBS = {f"lesson_{name}" for name in ("steps", "uniform", "kl", "remedies", "kl_ddpo")}  # lessons of reward gradients
OURS = SHAPES | LOOKING | NOISED | LESSONS | CLIMBS | {"shapes_demo"}  # no publication but this one
FEW = {
    "ddpo_quickstart": 1,
    "ddpo_trl": 3,
    "dpok_imagereward": 2,
    "shapes_flow_grpo": 4,
}  # pictures (or groups) an update, fewer than eight devices: made for one GPU


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


class Differentiated(NamedTuple):
    """The same of algorithms that differentiate the reward."""

    images: int
    updates: int
    iterations: int
    steps: int
    guidance: float
    eta: float
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    live: float  # steps with a gradient, of each picture, on average
    drawn: float  # steps without
    own: dict[str, Any]  # settings of the algorithm
    precision: str
    rank: int | None  # of the LoRA; none trains the whole network


MIXED = {"name": "uniform", "low": 0.0, "high": 1.0}
LAST = {"name": "fixed", "k": 1}
TARGET = {"loss_form": "target", "target": 10.0, "scale": 1.0, "coefficient": 0.01}
MINUS = {"loss_form": "one_minus", "coefficient": 0.01}
AVERAGE = sum(range(1, 51)) / 51 + 1 / 51  # of K ~ U(0, 50), where 0 is the last step, too
SOME, ONE = (AVERAGE, 50 - AVERAGE), (1, 49)
GRADIENTS = {
    name: Differentiated(256, 2, epochs, 50, 7.5, 0.0, 1e-3, 0.1, 5.0, *calls, loss | {"truncation": cut}, "fp16", 4)
    for name, epochs, calls, cut, loss in (
        ("alignprop_aesthetic", 7, SOME, MIXED, TARGET),
        ("alignprop_aesthetic_k1", 7, ONE, LAST, TARGET),
        ("alignprop_hps", 200, SOME, MIXED, MINUS),
        ("alignprop_hps_k1", 200, ONE, LAST, MINUS),
    )
} | {
    # the base's prediction of the last step is one more without a gradient
    "draft_plus_pickscore": Differentiated(
        *(16, 1, 10_000, 50, 7.5, 0.0, 1e-4, 0.0, 10.0, 1, 50, {"k": 1, "kl": 0.2, "copies": 0}, "bf16", 32)
    ),
    "refl_imagereward": Differentiated(
        *(64, 1, 100, 40, 1.0, 1.0, 1e-5, 0.01, 1.0, 1, 34.5, {"threshold": 2.0, "scale": 1e-3}, "fp16", None)
    ),
}


class Noised(NamedTuple):
    """The same of algorithms of the forward process."""

    images: int
    per_prompt: int
    updates: int
    iterations: int
    steps: int
    guidance: float
    learning_rate: float
    own: dict[str, Any]
    precision: str
    rank: int | None


FORWARD = {
    "rwr_aesthetic": Noised(10_240, 1, 40, 10, 50, 5.0, 1e-5, {"inner_epochs": 5, "levels": 1}, "fp16", None),
    "diffusion_nft_pickscore": Noised(
        *(1152, 24, 2, 1000, 10, 1.0, 3e-4, {"beta": 1.0, "kl": 1e-4, "levels": 10, "advantage_limit": 5.0}, "fp16", 32)
    ),
    "awm_pickscore": Noised(576, 24, 1, 1000, 14, 1.0, 3e-4, {"clip": 1.0, "kl": 5 * 1e-4, "levels": 6}, "fp16", 32),
    "diffusion_dpo_pickapic": Noised(
        *(2048, 1, 1, 2000, 50, 1.0, 2.048e-5, {"beta": 5000.0, "pairs": "given", "levels": 1}, "fp16", None)
    ),
}


class Ratio(NamedTuple):
    """The same of policy gradients that are held by the base."""

    images: int
    per_prompt: int
    updates: int
    iterations: int
    steps: int
    items: int  # of each picture
    guidance: float
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    own: dict[str, Any]
    rank: int


RATIOS = {
    "dpok_imagereward": Ratio(
        *(10, 1, 5, 2000, 50, 24, 7.5, 1e-5, 0.0, 0.1),
        {"clip": 1e-4, "kl": 0.01, "reward_weight": 10.0, "sampler": {"name": "ddim", "eta": 1.0}},
        4,
    ),
    "flow_grpo_pickscore": Ratio(
        *(48 * 24, 24, 2, 2500, 10, 10, 4.5, 3e-4, 1e-4, 1.0),
        {
            "clip": 1e-4,
            "kl": 0.01 / 10,
            "advantage": "global",
            "advantage_limit": 5.0,
            "sampler": {"name": "flow_sde", "a": 0.7},
        },
        32,
    ),
}
HELD = PUBLISHED.keys() | GRADIENTS.keys() | RATIOS.keys() | FORWARD.keys()


def fetched(prompts: Any) -> bool:
    """Whether prompts come from a file or the hub, not with the package."""
    if isinstance(prompts, dict) and "path" in prompts:
        return True
    name = str(prompts["name"] if isinstance(prompts, dict) else prompts)
    return name.startswith(hub.PREFIX) or Path(name).suffix in files.READERS


def others(asked: dict[str, Any]) -> tuple[str, ...]:
    """Flags for prompts that are part of the package, where a recipe's own are not."""
    own = runs.reward("choices") if asked["algorithm"].get("pairs") == "given" else "animals"
    return ("--prompts", own, "--evaluation.prompts", "animals_heldout") if fetched(asked.get("prompts")) else ()


class Apart(World):
    """One of several devices whose others are not there: they say what it says."""

    def broadcast_text(self, text: str | None) -> str:
        assert text is not None
        return text

    def sum(self, n: int) -> int:
        return n * self.size


MEASURED = {config.algorithm_of(name): name for name in RECIPES}.values()
POLICIES: dict[str, Any] = {}


def policy(recipe: str, *request: Any) -> Any:
    """The recipe's policy, loaded once: no dry run changes it."""
    if recipe not in POLICIES:
        POLICIES[recipe] = load_policy(*request)
    return POLICIES[recipe]


@functools.cache
def dry_run(recipe: str, devices: int, *more: str) -> tuple[Plan, dict[str, Any], str]:
    """The command's dry run on so many devices: its plan, its settings, what it prints.

    A model of the hub is replaced by a tiny one with its scheduler, prompts that are no part of the package by some
    that are. The first run of a recipe loads its policy, others take that. Of an algorithm's recipes one has its memory
    estimated, which takes long.
    """
    asked = config.asked(recipe, {})
    model = () if asked["model"] in ("shapes", "shapes-flow") else ("--model", runs.model())
    prompts = others(asked)
    found: list[tuple[Plan, dict[str, Any]]] = []
    show = planning.show

    def keep(plan: Plan, tree: dict[str, Any], *rest: Any) -> None:
        found.append((plan, tree))
        show(plan, tree, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "show", keep)
        patch.setattr(World, "here", classmethod(lambda cls, device="auto": Apart(size=devices)))
        patch.setenv("COLUMNS", "200")
        patch.setattr(
            preparation, "load_policy", lambda settings, device, sets, _: policy(recipe, settings, device, sets)
        )
        if (devices, more) != (1, ()) or recipe not in MEASURED:
            patch.setattr(fitting, "table", lambda *about: [])
        patch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        ran = runs.train(["train", recipe, *model, *prompts, "--device", "cpu", "--dry-run", *more])
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
    assert set(RECIPES) - OURS == HELD


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


@pytest.mark.parametrize("name", GRADIENTS)
def test_one_device_has_the_published_numbers_of_a_reward_gradient(name: str) -> None:
    said = GRADIENTS[name]
    plan, tree, out = dry_run(name, 1)
    algorithm = tree["algorithm"]
    assert (plan.images, plan.updates, plan.iterations) == (said.images, said.updates, said.iterations)
    assert (plan.steps, plan.guidance, plan.items) == (said.steps, said.guidance, 1)
    assert (plan.learned, plan.drawn) == pytest.approx((said.live, said.drawn))
    assert algorithm["sampler"] == {"name": "ddim", "eta": said.eta}
    assert (algorithm["learning_rate"], algorithm["weight_decay"]) == (said.learning_rate, said.weight_decay)
    assert said.own.items() <= algorithm.items()
    assert (tree["mixed_precision"], tree["max_grad_norm"]) == (said.precision, said.max_grad_norm)
    assert (tree["lora"] and tree["lora"]["rank"]) == said.rank
    assert f"{said.updates} updates of {said.images // said.updates} images" in out


@pytest.mark.parametrize("name", FORWARD)
def test_one_device_has_the_published_numbers_of_the_forward_process(name: str) -> None:
    said = FORWARD[name]
    plan, tree, _ = dry_run(name, 1)
    algorithm = tree["algorithm"]
    assert (plan.images, plan.per_prompt, plan.updates) == (said.images, said.per_prompt, said.updates)
    assert (plan.iterations, plan.steps, plan.guidance) == (said.iterations, said.steps, said.guidance)
    assert algorithm["learning_rate"] == said.learning_rate and said.own.items() <= algorithm.items()
    assert tree["mixed_precision"] == said.precision and (tree["lora"] and tree["lora"]["rank"]) == said.rank


@pytest.mark.parametrize("name", RATIOS)
def test_one_device_has_the_published_numbers_of_a_policy_gradient_that_is_held(name: str) -> None:
    said = RATIOS[name]
    plan, tree, out = dry_run(name, 1)
    algorithm = tree["algorithm"]
    assert (plan.images, plan.per_prompt, plan.updates) == (said.images, said.per_prompt, said.updates)
    assert (plan.iterations, plan.steps, plan.items, plan.guidance) == said[3:7]
    assert (algorithm["learning_rate"], algorithm["weight_decay"]) == (said.learning_rate, said.weight_decay)
    assert said.own.items() <= algorithm.items()
    assert (tree["mixed_precision"], tree["max_grad_norm"]) == ("fp16", said.max_grad_norm)
    assert tree["lora"]["rank"] == said.rank
    assert f"{said.updates} updates of {said.images // said.updates} images" in out


@pytest.mark.parametrize("name", thinned(sorted(FROM_VALUES - {"shapes_ddpo_fast"}), every=2, first=1))
def test_a_recipe_of_the_built_in_model_takes_a_step_from_values(name: str, tmp_path: Path) -> None:
    """Two updates of a group of four, or of four: the first ratio is 1, and then the base is left."""
    few = ("--algorithm.images", "8", "--algorithm.updates", "2", "--algorithm.steps", "4", "--iterations", "1")
    more = ("--evaluation.count", "1", "--evaluation.images_per_prompt", "1", "--evaluation.steps", "2")
    more += ("--algorithm.kl", "0.004") if name == "shapes_flow_grpo" else ()  # its own is 0
    ran = runs.call(
        "train", name, *few, *more, "--alarms.strips", "0", "--device", "cpu", "--output_dir", str(tmp_path / "run")
    )
    assert ran.code == 0 and (tmp_path / "run" / runs.LORA).is_file(), ran.err
    (row,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    first, second = row["updates"]
    assert row["queries"] == 8 and first["grad_norm"] > 0 and first["skipped"] == second["skipped"] == 0
    assert first["mismatch"] == 0.0 and first["kl"] == 0.0 < second["kl"]
    assert first.get("zero_std", 0.0) == 0.0


@pytest.mark.parametrize("name", sorted(FROM_GRADIENTS))
def test_a_recipe_of_the_built_in_model_is_judged_by_the_real_files_and_the_oracle(name: str) -> None:
    plan, tree, _ = dry_run(name, 1)
    assert (tree["reward"], tree["held_out_rewards"]) == ("jpeg_proxy", ["jpeg_compressibility", "shapes_alignment"])
    assert (plan.images, plan.steps) == (16, 10) and tree["evaluation"]["prompts"] == "shapes_heldout"
    assert tree["algorithm"]["name"] == name.removeprefix("shapes_")


@pytest.mark.parametrize("name", thinned(sorted(FROM_GRADIENTS), every=4, first=1))
def test_a_recipe_of_the_built_in_model_learns_from_a_few_pictures(name: str, tmp_path: Path) -> None:
    """One update of two pictures: the files of a run are there, and real files are judged beside the estimate."""
    few = ("--algorithm.images", "2", "--iterations", "1", "--evaluation.count", "2")
    more = (
        "--evaluation.images_per_prompt",
        "1",
        "--evaluation.steps",
        "2",
        "--device",
        "cpu",
        "--output_dir",
        str(tmp_path / "run"),
    )
    ran = runs.call("train", name, *few, *more, "--alarms.strips", "0")
    assert ran.code == 0 and (tmp_path / "run" / runs.LORA).is_file(), ran.err
    (row,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    before, after = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert row["queries"] == 2 and row["updates"][0]["grad_norm"] > 0 and row["updates"][0]["skipped"] == 0
    for judge in ("jpeg_proxy", "jpeg_compressibility"):
        assert before["reward"][judge]["mean"] != after["reward"][judge]["mean"]


@pytest.mark.parametrize("name", thinned(sorted(NOISED), every=4, first=1))
def test_a_recipe_of_the_forward_process_learns_from_a_few_pictures(name: str, tmp_path: Path) -> None:
    """One update of four pictures, scored once each: the files of a run are there, and pictures change."""
    few = ("--algorithm.images", "4", "--iterations", "1", "--evaluation.count", "2", "--device", "cpu")
    more = ("--evaluation.images_per_prompt", "1", "--evaluation.steps", "2", "--output_dir", str(tmp_path / "run"))
    ran = runs.call("train", name, *few, *more, "--alarms.strips", "0")
    assert ran.code == 0 and (tmp_path / "run" / runs.LORA).is_file(), ran.err
    (row,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    before, after = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert row["queries"] == 4 and row["updates"][0]["grad_norm"] > 0 and row["updates"][0]["skipped"] == 0
    assert before["reward"]["jpeg_compressibility"]["mean"] != after["reward"]["jpeg_compressibility"]["mean"]


@pytest.mark.parametrize("name", thinned(sorted(set(RECIPES) - set(FEW) - LESSONS - CLIMBS), every=4))
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
    one, _, _ = dry_run(name, 1)  # a GPU's numbers, as theirs, on each of eight
    if said := (PUBLISHED | RATIOS).get(name):
        assert (one.images, one.updates, one.effective_batch) == (said.images, said.images // FEW[name], FEW[name])
    assert (plan.images, plan.updates, plan.effective_batch) == (8 * one.images, one.updates, 8 * one.effective_batch)


@pytest.mark.parametrize("name", thinned(sorted(LOOKING), every=2))
def test_a_recipe_looks_through_the_built_in_clip_with_the_oracle_beside(name: str, tmp_path: Path) -> None:
    few = ("--algorithm.images", "4", "--iterations", "1", "--evaluation.count", "1")  # all five steps are live
    more = ("--evaluation.images_per_prompt", "2", "--evaluation.steps", "2", "--device", "cpu")
    ran = runs.call("train", name, *few, *more, "--alarms.strips", "0", "--output_dir", str(tmp_path / "run"))
    assert ran.code == 0 and (tmp_path / "run" / runs.LORA).is_file(), ran.err
    settings = runs.settings(tmp_path / "run")
    assert settings["reward"]["model"] == "shapes" and "shapes_alignment" in settings["held_out_rewards"]
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["updates"][0]["grad_norm"] > 0


def test_the_demo_adds_a_judge_to_the_size_and_holds_another_one_out(tmp_path: Path) -> None:
    plan, _, _ = dry_run("shapes_demo", 1)
    assert (plan.images, plan.updates, plan.iterations, plan.guidance) == (256, 4, 7, 1.0)
    assert plan.items == 3  # noise in the first three steps alone
    few = ("--algorithm.images", "8", "--iterations", "1", "--evaluation.count", "2", "--evaluation.steps", "2")
    more = ("--evaluation.images_per_prompt", "2", "--alarms.strips", "0", "--device", "cpu")
    ran = runs.call("train", "shapes_demo", *few, *more, "--output_dir", str(tmp_path / "run"))
    assert ran.code == 0 and "ALARM" not in ran.err + ran.out, ran.err
    (row,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    parts = row["reward"]["parts"]
    assert row["reward"]["mean"] == pytest.approx(parts["jpeg_compressibility"] + 3 * parts["shapes_judge"], abs=1e-5)
    assert {"held_out.clip_score"} == {key for key in row["watch"] if key.startswith("held_out.")}  # never the oracle
    makefile = Path(__file__).parents[1] / "Makefile"
    assert "tastemaker train shapes_demo\n" in makefile.read_text(encoding="utf-8")


# ---- what is said of them


@pytest.mark.parametrize("name", RECIPES)
def test_a_header_says_where_the_numbers_are_from_and_what_was_run(name: str) -> None:
    header = [line for line in config.recipes()[name].read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    said = [key for line in header for key in re.findall(r"^# ([A-Z][a-z ]+): ", line)]
    assert [key for key in said if key not in ("The judge", "The prompts", "Departs")] == [
        "Paper",
        *(["Numbers"] if name in HELD else []),
        "Expected",
        "Cost",
        "Run by us",
        "Run",
    ]
    assert header[0].endswith(".") and header[1] == "#"  # the line that `tastemaker explain` shows
    assert all(len(line) <= 120 for line in header)


def swept_by(name: str, folder: Path) -> tuple[list[config.Resolved], set[str]]:
    """Every variant of the sweep in a recipe's header, and what they differ in."""
    header = config.recipes()[name].read_text(encoding="utf-8")
    (told,) = re.findall(r"^# Run: tastemaker sweep (.*)$", header, re.MULTILINE)
    (target, *_), tree, _ = flags.parse(shlex.split(told))
    over = tree.pop("over")
    sweep = Sweep(target, tree, over, int(tree.pop("seeds", "1")), folder)
    assert target == name
    swept = {part.partition("=")[0].strip().rpartition(".")[2] for part in re.split("[;|]", over)}
    return [sweep._resolved(variant, 0) for variant in sweep.variants], swept


@pytest.mark.parametrize(
    ("names", "reward", "queries"),
    [
        (("lesson_steps", "lesson_uniform"), "jpeg_proxy", 192),
        (("lesson_kl", "lesson_remedies"), "jpeg_proxy+shapes_judge", 256),
    ],
)
def test_lessons_of_one_plot_differ_in_what_they_sweep_alone(
    names: tuple[str, ...], reward: str, queries: int, tmp_path: Path
) -> None:
    common = []
    for name in names:
        for one in (found := swept_by(name, tmp_path))[0]:
            algorithm = {key: value for key, value in one.tree["algorithm"].items() if key not in found[1]}
            common.append(
                {key: algorithm[key] for key in ("images", "per_prompt", "steps", "guidance", "learning_rate")}
            )
            assert algorithm["images"] * algorithm["iterations"] == queries
            assert named(one.run.reward).name == reward
            assert one.run.held_out_rewards == ("jpeg_compressibility", "shapes_alignment")
            judged = one.run.evaluation
            assert (judged.prompts, judged.count, judged.images_per_prompt) == ("shapes_heldout", 32, 4)
            assert (judged.steps, judged.guidance, judged.every) == (20, 3.0, 4)
    assert all(one == common[0] for one in common)


@pytest.mark.parametrize("name", sorted(LESSONS))
def test_a_lessons_command_is_a_sweep_that_differs_in_what_it_names_alone(name: str, tmp_path: Path) -> None:
    found, swept = swept_by(name, tmp_path)
    header = config.recipes()[name].read_text(encoding="utf-8")
    assert len(found) > 1
    for one in found:
        algorithm, run = one.tree["algorithm"], one.run
        short = {"images": 32, "steps": 10, "guidance": 1.0, "iterations": 40, "learning_rate": 3e-3, "clip": 1e-3}
        own = {"lesson_decay": {"iterations", "learning_rate"}, "lesson_clip": {"clip"}}.get(name, set()) | swept
        assert {key for key, value in short.items() if algorithm.get(key, value) != value} <= own
        assert (run.model, run.reward, run.held_out_rewards) == (
            "shapes",
            "jpeg_compressibility",
            ("shapes_alignment", "shapes_judge"),
        )
        judged = run.evaluation
        assert (judged.prompts, judged.count, judged.images_per_prompt) == ("shapes_heldout", 32, 4)
        assert (judged.steps, judged.guidance, judged.every) == (20, 3.0, {"lesson_lora": 0}.get(name, judged.every))
        assert judged.every == yaml.safe_load(header)["evaluation"]["every"]
    assert len({str(one.tree | {"output_dir": ""}) for one in found}) == len(found)


FETCHED = [name for name in RECIPES if fetched(config.asked(name, {}).get("prompts"))]


@pytest.mark.parametrize("name", FETCHED)
def test_prompts_that_are_no_part_of_the_package_are_fetched_as_the_header_says(name: str) -> None:
    header = config.recipes()[name].read_text(encoding="utf-8").partition("\nalgorithm")[0]
    tree = config.asked(name, {})
    specs = [spec for spec in (tree["prompts"], tree.get("evaluation", {}).get("prompts")) if spec]
    for spec in specs:
        file = spec.get("path") if isinstance(spec, dict) else spec
        said = rf"(/|> |: ){re.escape(file)}\b" if file else r"'tastemaker\[data\]'"
        assert re.search(said, header)
    if isinstance(specs[0], str):
        ran = runs.call("train", name, "--model", runs.model(), "--reward", runs.reward("brightness"), "--dry-run")
        assert ran.code == 2 and ran.err.startswith(f"tastemaker: recipe {name}: prompts: {specs[0]} does not exist")


def test_the_prompts_of_trls_script_are_among_the_papers() -> None:
    ours, papers = (source(config.asked(name, {})["prompts"]) for name in ("ddpo_trl", "ddpo_aesthetic"))
    assert isinstance(ours, Listed) and isinstance(papers, Listed)
    assert {text for text, _ in ours.entries} < {text for text, _ in papers.entries}


# ---- what they wait for


@pytest.mark.parametrize("name", [name for name in RECIPES if str(config.asked(name, {})["reward"]) in FACTS])
def test_a_recipe_whose_reward_is_to_be_downloaded_says_so_before_its_model_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, and with nothing in the cache."""

    def never(*about: Any) -> None:
        raise AssertionError("the model was asked for")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(preparation, "load_policy", never)
    asked = config.asked(name, {})
    ran = runs.call("train", name, *others(asked), "--output_dir", str(tmp_path / "run"))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: reward `{asked['reward']}` needs "), ran.err
    assert " MB), which is neither on this machine" in ran.err and "`hf download " in ran.err
    assert not (tmp_path / "run").exists()


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
