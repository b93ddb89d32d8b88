"""ddpo-pytorch's published configs, as dicts, have the published arithmetic and are our recipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tastemaker import config
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.build import plain
from tastemaker.compat.ddpo_pytorch import settings
from tastemaker.prompts.sources import Listed, source
from tastemaker.rewards import named
from tastemaker.rewards.vlm import Vlm
from tastemaker.settings import RunSettings


def dgx(batches: int, accumulation: int, epochs: int, history: int, prompts: str, reward: str) -> dict[str, Any]:
    """What the four configs of config/dgx.py have in common."""
    return {
        "pretrained": {"model": "CompVis/stable-diffusion-v1-4"},
        "num_epochs": epochs,
        "use_lora": True,
        "save_freq": 1,
        "num_checkpoint_limit": 100000000,
        "sample": {"batch_size": 8, "num_batches_per_epoch": batches},
        "train": {"batch_size": 4, "gradient_accumulation_steps": accumulation},
        "prompt_fn": prompts,
        "prompt_fn_kwargs": {},
        "reward_fn": reward,
        "per_prompt_stat_tracking": {"buffer_size": history, "min_count": 16},
    }


class Published(NamedTuple):
    """A config, the devices it is for, our recipe, and what its authors' arithmetic gives."""

    config: dict[str, Any]
    devices: int
    recipe: str
    images: int
    updates: int
    behind: int  # images behind an update


FILES = {"nouns_file": "simple_animals.txt", "activities_file": "activities.txt"}
PUBLISHED = {
    "compressibility": Published(
        dgx(4, 2, 100, 16, "imagenet_animals", "jpeg_compressibility"), 8, "ddpo_compressibility", 256, 4, 64
    ),
    "incompressibility": Published(
        dgx(4, 2, 100, 16, "imagenet_animals", "jpeg_incompressibility"), 8, "ddpo_incompressibility", 256, 4, 64
    ),
    "aesthetic": Published(dgx(4, 4, 200, 32, "simple_animals", "aesthetic_score"), 8, "ddpo_aesthetic", 256, 2, 128),
    "prompt_image_alignment": Published(
        dgx(6, 6, 200, 32, "nouns_activities", "llava_bertscore") | {"prompt_fn_kwargs": FILES},
        6,
        "ddpo_alignment",
        288,
        2,
        144,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_our_recipe(name: str) -> None:
    said = PUBLISHED[name]
    made = settings(said.config, devices=said.devices)
    algorithm = made["algorithm"]
    assert (algorithm.images, algorithm.updates) == (said.images, said.updates)
    assert algorithm.images // algorithm.updates == said.behind
    recipe = config.asked(said.recipe, {})
    ours = plain(algorithm)
    recipe["algorithm"].pop("name")
    assert {key: ours[key] for key in recipe["algorithm"]} == recipe.pop("algorithm")
    assert set(recipe) == {"model", "reward", "prompts", "mixed_precision"}
    assert {key: made[key] for key in recipe} == recipe
    rest = DDPO(**{key: ours[key] for key in ("images", "updates", "iterations", "prompt_history")})
    assert algorithm == rest  # whatever the recipe leaves out is the algorithm's default
    assert made["plan"] == {"micro_batch": 4, "sampling_batch": 8} and made["seed"] == 42
    assert "lora" not in made and made["checkpointing_steps"] == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_resolves_as_a_run(name: str) -> None:
    said = PUBLISHED[name]
    made = settings(said.config, devices=said.devices, reward="jpeg_compressibility")
    algorithm = made.pop("algorithm")
    resolved = config.resolve(algorithm, made, {}, spelling="argument")
    assert resolved.algorithm == algorithm and isinstance(resolved.run, RunSettings)
    assert (resolved.run.max_grad_norm, resolved.run.lr_warmup_steps, resolved.run.mixed_precision) == (1.0, 0, "fp16")


class ConfigDict:
    """As ml_collections': no dict, but it has items."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def items(self) -> Iterator[tuple[str, Any]]:
        return iter(self._values.items())


def test_an_empty_config_is_base_py_and_a_config_dict_is_read() -> None:
    base = settings({})
    recipe = config.asked("ddpo_quickstart", {})
    ours = plain(base["algorithm"])
    assert {key: value for key, value in recipe["algorithm"].items() if key != "name"}.items() <= ours.items()
    assert (base["reward"], base["prompts"], base["model"]) == (
        recipe["reward"],
        recipe["prompts"],
        "runwayml/stable-diffusion-v1-5",  # found by its copy when it is loaded
    )
    assert (base["checkpointing_steps"], base["checkpoints_total_limit"], base["seed"]) == (20, 5, 42)
    nested: Any = ConfigDict(seed=1, sample=ConfigDict(num_steps=10), per_prompt_stat_tracking=None, use_lora=False)
    made = settings(nested)
    assert (made["seed"], made["algorithm"].steps, made["algorithm"].prompt_history) == (1, 10, 0)
    assert made["lora"] is None


@pytest.mark.parametrize(
    ("prompt_fn", "arguments", "ours", "count"),
    [
        ("simple_animals", {}, "animals", 45),
        ("imagenet_all", {}, "imagenet", 1000),
        ("nouns_activities", FILES, "nouns_activities", 135),
        ("nouns_activities", FILES | {"nouns_file": "everyday_objects.txt"}, None, 150),
        ("counting", {"nouns_file": "simple_animals.txt", "low": 2, "high": 4}, None, 135),
    ],
)
def test_prompts_are_ours(prompt_fn: str, arguments: dict[str, Any], ours: str | None, count: int) -> None:
    made = settings({"prompt_fn": prompt_fn, "prompt_fn_kwargs": arguments})["prompts"]
    assert made == ours or ours is None
    found = source(made)
    assert isinstance(found, Listed) and len(found.entries) == count


def test_questions_to_a_judge() -> None:
    """The prompts of `counting` carry them; how answers are read is ours (docs/rewards/vlm.md)."""
    made = settings({"reward_fn": "llava_strict_satisfaction", "prompt_fn": "counting"})
    reward = named(made["reward"]).function
    assert isinstance(reward, Vlm) and reward.mode == "questions"


def test_files_and_functions_of_ones_own() -> None:
    assert settings({"prompt_fn": "from_file", "prompt_fn_kwargs": {"path": "my.txt"}})["prompts"] == "my.txt"
    made = settings({"reward_fn": "mine", "prompt_fn": "mine"}, reward="r.py:f", prompts=["a cat"])
    assert (made["reward"], made["prompts"]) == ("r.py:f", ["a cat"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sample": {"num_step": 3}}, "sample.num_step is not a setting of ddpo-pytorch.  Did you mean `sample.num_st"),
        ({"train": 3}, "train is 3; it is a dict of settings."),
        ({"reward_fn": "llava_vqa"}, "reward_fn 'llava_vqa' has no counterpart here"),
        ({"prompt_fn": "mine"}, "prompt_fn 'mine' has no counterpart here (simple_animals, imagenet_all"),
        ({"prompt_fn_kwargs": {"seed": 1}}, "prompt_fn_kwargs: seed is none of nouns_file"),
        ({"prompt_fn": "from_file", "prompt_fn_kwargs": {"path": "p", "low": 2}}, "prompt_fn 'from_file' has no count"),
    ],
)
def test_what_has_no_counterpart_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings(values)
    assert str(caught.value).startswith(said)
