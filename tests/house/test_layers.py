"""Who imports whom: the layers of the design, read from the imports, lazy ones and those for types included."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest

from house.syntax import ROOT, imports, outside, packages, source, sources

SEAM = {"world", "process", "credit", "prompts", "plan", "policy.policy", "rewards.reward"}
JUDGING = {"process", "prompts", "iteration", "rollout", "rewards", "policy", "world"}  # iteration: progress bars

# layer -> (our modules, each with all below it; other people's packages).  The most specific entry counts.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "groups": (set(), {"torch"}),
    "messages": (set(), set()),
    "summing": (set(), {"torch"}),
    "shards": (set(), {"torch"}),
    "dropping": (set(), {"torch"}),
    "world": ({"groups", "messages", "shards", "summing"}, {"torch"}),
    "process": ({"process"}, {"torch"}),
    "credit": (set(), {"torch"}),
    "prompts": ({"prompts"}, set()),
    "plan": (set(), set()),
    "policy.pictures": (set(), {"torch", "numpy", "PIL"}),
    "policy.policy": ({"process", "prompts", "policy.conditioning"}, {"torch"}),
    "rewards.reward": ({"process", "prompts", "rewards"}, {"torch", "numpy"}),
    "rewards": (
        {"prompts", "rewards"},
        {
            *("torch", "numpy", "PIL", "accelerate", "rapidocr", "transformers", "safetensors", "huggingface_hub"),
            *("filelock", "httpx2", "starlette", "uvicorn"),
        },
    ),
    "rewards.terms": ({"prompts"}, {"yaml"}),
    "policy": (
        {"process", "prompts", "shards", "dropping", "policy"},
        {"torch", "diffusers", "peft", "transformers", "safetensors", "huggingface_hub"},
    ),
    "policy.presets": (set(), {"yaml"}),
    "iteration": (SEAM, {"torch"}),
    "rollout": (SEAM | {"iteration", "rewards.scoring"}, {"torch"}),
    "surrogate": (SEAM | {"iteration", "rollout"}, {"torch"}),
    "algorithms": (
        {
            "process",
            "prompts.prompts",
            "policy.policy",
            "policy.pictures",
            "iteration",
            "rollout",
            "surrogate",
            "dropping",
            "credit",
            "algorithms",
        },
        {"torch"},
    ),
    "training": (
        SEAM | {"shards", "iteration", "algorithms.algorithm", "rewards.recorded", "reports", "training"},
        {"torch", "safetensors", "bitsandbytes", "tqdm"},
    ),
    "checks": (
        JUDGING | {"plan", "algorithms.algorithm", "algorithms.transitions", "training", "settings", "checks"},
        {"torch"},
    ),
    "metering": ({"dropping", "policy"}, {"torch", "diffusers", "transformers"}),
    "text_metering": ({"dropping", "metering", "policy"}, {"torch", "transformers"}),
    "memory": ({"policy", "plan", "metering", "text_metering"}, {"torch", "diffusers", "huggingface_hub"}),
    "budget": ({"memory"}, set()),
    "reports": ({"reports"}, {"PIL", "accelerate", "jinja2", "numpy", "tqdm", "rich", "trackio", "wandb", "yaml"}),
    "voting": ({"prompts", "reports.inline", "reports.loopback", "evaluation.statistics", "voting"}, {"jinja2"}),
    "evaluation": (JUDGING | {"evaluation"}, {"torch", "numpy", "safetensors"}),
    "reward_training": (
        {"policy.pictures", "prompts", "rewards", "evaluation.statistics", "reports", "reward_training"},
        {"torch", "numpy", "safetensors", "pyarrow", "tqdm"},
    ),
    # A program of its own: it measures the finished model as a user would.
    "shapes.gates": (JUDGING | {"evaluation", "shapes"}, {"torch", "numpy", "PIL", "diffusers", "tqdm"}),
    "shapes": (
        # rewards.preprocess: its CLIP learns on pictures as rewards show them.
        {"process", "prompts", "policy.families", "policy.padding", "rewards.reward", "rewards.preprocess", "shapes"},
        {"torch", "numpy", "PIL", "diffusers", "transformers", "safetensors", "tqdm"},
    ),
}
# The composition root and what stands around it may import all.
ROOT_MODULES = {"__init__", "__main__", "build", "cli", "commands", "compat", "config", "devices", "exports", "flags"}
ROOT_MODULES |= {
    "agreement",
    "examination",
    "fingerprint",
    "fitting",
    "folder",
    "keeping",
    "layers",
    "manual",
    "outcome",
    "planning",
    "preparation",
    "provision",
    "refusals",
    "reporting",
    "results",
    "run",
}
ROOT_MODULES |= {"comparison", "judging", "sampling", "settings", "shelf", "subjects", "sweep_report", "sweeping"}
# Reached through tables of strings, or by one module alone.
ONLY_FROM = {
    "shapes": {"shapes"},
    "memory": {"memory", "budget", "fitting", "provision"},
    "budget": {"budget", "fitting"},
    "metering": {"metering", "memory", "text_metering"},
    "text_metering": {"memory"},
}

# import name -> the name in pyproject.toml, where they differ
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}


def modules() -> set[str]:
    return {one.name for one in sources()} | packages()


def test_every_module_stands_in_its_layer() -> None:
    assert [wrong for one in sources() for wrong in outside(LAYERS, one, modules())] == []


def test_every_module_has_a_layer() -> None:
    assert {one.top for one in sources()} - {key.partition(".")[0] for key in LAYERS} - ROOT_MODULES == set()


def test_some_parts_are_imported_by_few() -> None:
    wrong = []
    for one in sources():
        for node, name in imports(one, modules()):
            part = name.removeprefix("tastemaker.").partition(".")[0]
            if name.startswith("tastemaker.") and one.top not in ONLY_FROM.get(part, {one.top}):
                wrong.append(one.at(node, f"imports {name}"))
    assert wrong == []


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in lines}
    used = {name for one in sources() for _, name in imports(one, modules()) if not name.startswith("tastemaker")}
    others = {DISTRIBUTIONS.get(name, name) for name in used - set(sys.stdlib_module_names)}
    assert others - declared == set()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("process.x", "from tastemaker.world import World"),
        ("process.x", "def f():\n    import diffusers"),
        ("prompts.x", "import torch"),
        ("rewards.x", "from tastemaker.policy.policy import Policy"),
        ("rewards.x", "from tastemaker import policy"),
        (
            "policy.x",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tastemaker.rewards.reward import Reward",
        ),
        ("policy.policy", "import diffusers"),
        ("iteration", "from tastemaker.policy.sd import StableDiffusion"),
        ("iteration", "from tastemaker.policy import sd"),
        ("algorithms.x", "import peft.utils"),
        ("algorithms.x", "from tastemaker.training.trainer import train"),
        ("training.x", "from tastemaker.algorithms.ddpo import DDPO"),
        ("training.x", "import tastemaker.config"),
        ("plan", "import numpy as np"),
    ],
)
def test_an_import_across_layers_is_found(name: str, text: str) -> None:
    assert outside(LAYERS, source(name, text), {*modules(), "policy.sd", "policy"}) != []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("process.x", "import math, torch.nn\nfrom tastemaker.process.schedule import Schedule"),
        ("iteration", "from tastemaker.policy.policy import Policy"),
        ("training.x", "from tastemaker.algorithms.algorithm import Algorithm"),
        ("run", "import diffusers\nfrom tastemaker.policy import sd"),
    ],
)
def test_an_import_within_the_layers_passes(name: str, text: str) -> None:
    assert outside(LAYERS, source(name, text), modules()) == []
